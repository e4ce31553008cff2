"""A diagnosis from end to end: images, models, every measure, and the files that it leaves."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from dim_hf.data.checks import check_rows
from dim_hf.data.sources import Source
from dim_hf.diagnostics.agreement import (
    LOGGED_KEY,
    TEACHER_FOLDER,
    CheckpointPair,
    find_pairs,
    measure_agreement,
    read_log,
)
from dim_hf.diagnostics.domains import DomainDivergences, divergences_between_domains, domain_mass
from dim_hf.diagnostics.figures import draw_diagnosis
from dim_hf.diagnostics.hessian import Eigenvalue, hessian_trace, largest_eigenvalue
from dim_hf.diagnostics.landscape import explore_landscape
from dim_hf.diagnostics.loss_sharpness import Sharpness, measure_sharpness
from dim_hf.diagnostics.objective import Objective, SecondDerivativeError, segmentation_objective
from dim_hf.diagnostics.records import (
    DEFAULTS,
    Diagnosis,
    Effort,
    MeasuredAgreement,
    ModelDiagnosis,
    Options,
    to_json,
)
from dim_hf.diagnostics.samples import (
    DomainRows,
    LoadedModel,
    batches_of,
    choose_rows,
    dataset_for,
    labeled_batches,
    load_model,
    load_network,
)
from dim_hf.diagnostics.text import format_diagnosis


class _Bar:
    """One progress bar over all measures; a task that ends early fills its share."""

    def __init__(self, total: int, shown: bool) -> None:
        self.bar = tqdm(total=total, disable=not shown, unit="pass", desc="diagnosing")

    @contextmanager
    def task(self, name: str, size: int) -> Iterator[Callable[[], None]]:
        self.bar.set_description(name)
        end = self.bar.n + size
        done = 0

        def advance() -> None:
            nonlocal done
            if done < size:
                done += 1
                self.bar.update()

        yield advance
        self.bar.update(max(0, end - self.bar.n))


def diagnose(
    model: str,
    source: Source,
    *,
    dataset: str = "",
    baseline: str | None = None,
    options: Options = DEFAULTS,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Measure a model and, if given, a baseline on the same images.

    Args:
        model: folder or name on the Hub of a model for semantic segmentation, with its image processor. In the folder
            of a checkpoint or run, teacher and student and the training's log are found, too.
        source: the data set.
        dataset: its name, for the report.
        baseline: a model to compare with: "before" of before and after.
        options: what to measure.
        device: of torch; a GPU where there is one when None.
        progress: show a progress bar.

    Raises:
        ValueError: for an option out of range, or images and models that do not fit together.
        OSError: if a model cannot be found.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    names = {"model": model} | ({"baseline": baseline} if baseline is not None else {})
    loaded = {role: load_model(name, device) for role, name in names.items()}
    chosen = _checked_images(list(loaded.values()), source, options)
    batch_size = 1 if source.description.spatial_dims == 3 else options.batch_size
    pairs = find_pairs(model)[-options.effort.checkpoints :]
    bar = _Bar(len(loaded) * _size_of_model(chosen, options) + len(pairs) * len(chosen), progress)
    with bar.bar:
        models = {role: _diagnose_model(each, chosen, options, batch_size, bar, role) for role, each in loaded.items()}
        agreements = _measure_pairs(pairs, loaded["model"], chosen, batch_size, bar)
    return Diagnosis(
        dataset=dataset,
        options=options,
        labeled_images={domain: len(part.labeled) for domain, part in chosen.items() if len(part.labeled)},
        pooled_images=sum(_pooled_counts(chosen, options).values()),
        unlabeled_images={domain: len(part.unlabeled) for domain, part in chosen.items()},
        models=models,
        agreements=agreements,
        log=[(int(e["step"]), float(e[LOGGED_KEY])) for e in read_log(model) if LOGGED_KEY in e and "step" in e],
    )


def _checked_images(models: Sequence[LoadedModel], source: Source, options: Options) -> dict[str, DomainRows]:
    chosen = choose_rows(
        source.rows,
        images=options.images,
        unlabeled_images=options.unlabeled_images,
        seed=options.seed,
        split=options.split,
    )
    num_labels = _check_classes(models, source)
    for part in chosen.values():
        for rows in (part.labeled, part.unlabeled):
            check_rows(rows, num_labels, progress=False)
    return chosen


def _check_classes(models: Sequence[LoadedModel], source: Source) -> int:
    """The number of classes, one for all models and, where they state it, the data."""
    counts = {f"the model {model.name}": model.network.config.num_labels for model in models}
    if source.is_described:
        counts["the data set"] = source.description.num_labels
    if len(set(counts.values())) > 1:
        found = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise ValueError(f"models and data differ in their number of classes: {found}; diagnose models of this data")
    return next(iter(counts.values()))


def _pooled_counts(chosen: Mapping[str, DomainRows], options: Options) -> dict[str, int]:
    """Images of each domain for Hessian and landscape: an equal share, at least one."""
    labeled = {domain: len(part.labeled) for domain, part in chosen.items() if len(part.labeled)}
    share = max(1, options.pooled_images // len(labeled))
    return {domain: min(share, count) for domain, count in labeled.items()}


def _size_of_model(chosen: Mapping[str, DomainRows], options: Options) -> int:
    effort = options.effort
    sharpness = sum(1 for part in chosen.values() if len(part.labeled)) * _size_of_sharpness(effort)
    hessian = effort.eigenvalue_iterations + effort.trace_probes
    return sharpness + hessian + effort.line_points + effort.plane_points**2 + len(chosen)


def _size_of_sharpness(effort: Effort) -> int:
    return effort.random_directions + effort.ascent_steps + 1


def _diagnose_model(
    model: LoadedModel, chosen: Mapping[str, DomainRows], options: Options, batch_size: int, bar: _Bar, role: str
) -> ModelDiagnosis:
    effort = options.effort
    sharpness = {}
    for domain, part in chosen.items():
        if len(part.labeled):
            with bar.task(f"{role}: sharpness on {domain}", _size_of_sharpness(effort)) as advance:
                batches = labeled_batches(model, part.labeled, batch_size)
                sharpness[domain] = _sharpness(segmentation_objective(model.network, batches), options, advance)
    pooled = []
    for domain, count in _pooled_counts(chosen, options).items():
        pooled += labeled_batches(model, chosen[domain].labeled.select(range(count)), batch_size)
    objective = segmentation_objective(model.network, _joined(pooled, batch_size))
    with bar.task(f"{role}: Hessian", effort.eigenvalue_iterations + effort.trace_probes) as advance:
        curvature = _curvature(objective, effort, options.seed, advance)
    with bar.task(f"{role}: landscape", effort.line_points + effort.plane_points**2) as advance:
        landscape = explore_landscape(
            objective,
            line_points=effort.line_points,
            plane_points=effort.plane_points,
            extent=options.extent,
            seed=options.seed,
            progress=advance,
        )
    with bar.task(f"{role}: divergence between domains", len(chosen)) as advance:
        divergences = _domain_divergences(model, chosen, options, batch_size, advance)
    num_weights = sum(parameter.numel() for parameter in objective.parameters)
    return ModelDiagnosis(model.name, num_weights, sharpness, *curvature, landscape, divergences)


def _sharpness(objective: Objective, options: Options, advance: Callable[[], None]) -> Sharpness:
    return measure_sharpness(
        objective,
        options.rho,
        ascent_steps=options.effort.ascent_steps,
        random_directions=options.effort.random_directions,
        adaptive=options.adaptive,
        seed=options.seed,
        progress=advance,
    )


def _curvature(
    objective: Objective, effort: Effort, seed: int, advance: Callable[[], None]
) -> tuple[Eigenvalue | None, str, tuple[float, float] | None]:
    """Largest eigenvalue, why it is missing, and the trace."""
    try:
        iterations = effort.eigenvalue_iterations
        eigenvalue = largest_eigenvalue(objective, max_iterations=iterations, seed=seed, progress=advance)
        probes = effort.trace_probes
        trace = hessian_trace(objective, probes=probes, seed=seed, progress=advance) if probes else None
    except (SecondDerivativeError, ArithmeticError) as error:
        return None, str(error), None
    return eigenvalue, "", trace


def _joined(batches: list[dict[str, Tensor]], batch_size: int) -> list[dict[str, Tensor]]:
    """Small batches of images of one size put together, for fewer passes."""
    joined: list[dict[str, Tensor]] = []
    for batch in batches:
        last = joined[-1] if joined else None
        fits = last is not None and len(last["labels"]) + len(batch["labels"]) <= batch_size
        if fits and last["pixel_values"].shape[1:] == batch["pixel_values"].shape[1:]:
            joined[-1] = {name: torch.cat([last[name], batch[name]]) for name in last}
        else:
            joined.append(batch)
    return joined


def _domain_divergences(
    model: LoadedModel,
    chosen: Mapping[str, DomainRows],
    options: Options,
    batch_size: int,
    advance: Callable[[], None],
) -> list[DomainDivergences]:
    masses = {}
    for domain, part in chosen.items():
        masses[domain] = domain_mass(model.network, _with_halves(model, part, batch_size), options.grid_size)
        advance()
    return divergences_between_domains(masses, options.f_divergences)


def _with_halves(model: LoadedModel, part: DomainRows, batch_size: int) -> Iterator[tuple[Tensor, tuple[int, ...]]]:
    start = 0
    for batch in batches_of(dataset_for(model, part.unlabeled), batch_size, model.device):
        end = start + len(batch["pixel_values"])
        yield batch["pixel_values"], part.halves[start:end]
        start = end


def _measure_pairs(
    pairs: Sequence[CheckpointPair],
    model: LoadedModel,
    chosen: Mapping[str, DomainRows],
    batch_size: int,
    bar: _Bar,
) -> list[MeasuredAgreement]:
    """Agreement of each checkpoint's teacher and student on each domain, through the model's image processor."""
    found = []
    datasets = {domain: dataset_for(model, part.unlabeled) for domain, part in chosen.items()}
    for pair in pairs:
        with bar.task(f"teacher and student of {pair.folder.name}", len(chosen)) as advance:
            student, teacher = (load_network(f, model.device) for f in (pair.folder, pair.folder / TEACHER_FOLDER))
            for domain, samples in datasets.items():
                images = (batch["pixel_values"] for batch in batches_of(samples, batch_size, model.device))
                agreement = measure_agreement(student, teacher, images)
                found.append(MeasuredAgreement(str(pair.folder), pair.step, domain, agreement))
                advance()
    return found


def write_diagnosis(diagnosis: Diagnosis, folder: str | Path) -> list[Path]:
    """Write the figures, `table.md` and, last, `diagnosis.json`.

    Args:
        diagnosis: what was measured.
        folder: made if it is missing; files of the same names are replaced.

    Returns:
        The files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = draw_diagnosis(diagnosis, folder)
    table, record = folder / "table.md", folder / "diagnosis.json"
    table.write_text(format_diagnosis(diagnosis) + "\n", encoding="utf-8")
    record.write_text(json.dumps(to_json(diagnosis), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    return [*files, table, record]
