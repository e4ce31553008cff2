"""What a run's folder says about the model in it, and which images it may be tested on."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets

from dim_hf.data.rows import is_present
from dim_hf.data.sources import PHANTOM_PREFIX, PhantomOptions
from dim_hf.data.splits import SemiSupervisedSplit, describe_part, mark_test_patients, semi_supervised_split
from dim_hf.evaluation.result import Provenance

RESULTS_FILE = "results.json"
_ALL_LABELED = -1  # `num_labeled` of a run that trains on every mask
SPLITS = ("test", "validation", "train", "all")


@dataclass(frozen=True)
class RunFacts:
    """The parts of `results.json` that an evaluation needs; all empty for a model from elsewhere."""

    split: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    arguments: dict[str, Any]
    environment: dict[str, Any]
    hashes: dict[str, str] = field(default_factory=dict)


def read_run(model: str) -> RunFacts:
    """Read `results.json` beside a model, if there is one.

    Raises:
        ValueError: If it is no JSON object.
    """
    path = Path(model) / RESULTS_FILE
    if not path.is_file():
        return RunFacts({}, {}, {}, {}, {})
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        job = results.get("job", {})
        return RunFacts(
            results.get("split", {}),
            job.get("data", {}),
            results.get("training", {}),
            job.get("training", {}),
            results.get("environment", {}),
            results.get("sha256", {}),
        )
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it, or train again") from error


def reading_of(dataset: str, run: RunFacts) -> dict[str, Any]:
    """How a run read its data set: options of `load_source`, to read the same rows again.

    Args:
        dataset: What `load_source` is to read.
        run: The run; of another data set it says nothing.
    """
    data = run.data
    known = data.get("dataset")
    if known is None or (known != dataset and Path(known).resolve() != Path(dataset).resolve()):
        return {}
    if dataset.startswith(PHANTOM_PREFIX):
        return {"phantom": PhantomOptions(data["phantom_images_per_domain"], data["image_size"], data["phantom_seed"])}
    options = {name: data.get(name) for name in ("class_names", "structures", "patient_pattern")}
    if options["structures"]:
        options["structures"] = json.loads(options["structures"])
    return {name: value for name, value in options.items() if value is not None}


def rows_to_score(rows: datasets.Dataset, split: str, run: RunFacts) -> datasets.Dataset:
    """The rows of a split; test images that no row marks are those that the run's own seed drew.

    Raises:
        ValueError: If the split is unknown or has no row, or the images differ from those of the run's split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    if split == "all":
        return rows
    marked = _marked(rows, run) if run.data else rows
    chosen = [index for index, part in enumerate(marked["split"]) if part == split]
    if not chosen:
        raise ValueError(
            f"no image is marked {split!r}; mark some in the manifest (dim-hf import --test-fraction), or score all "
            "of them with --split all"
        )
    scored = marked.select(chosen)
    if split == "test":
        _check_hashes(scored, run)
    return scored


def _marked(rows: datasets.Dataset, run: RunFacts) -> datasets.Dataset:
    """The rows with the test images that the run drew in the domains where none are marked."""
    drawn = rows
    if run.data.get("allow_shared_patients"):  # each image counts as a patient of its own
        drawn = rows.remove_columns("patient").add_column("patient", rows["name"])
    seed, fraction = int(run.data.get("split_seed", 0)), float(run.data.get("test_fraction", 0.2))
    split = mark_test_patients(drawn, seed=seed, test_fraction=fraction)["split"]
    return rows.remove_columns("split").add_column("split", split)


def _check_hashes(rows: datasets.Dataset, run: RunFacts) -> None:
    """Refuse to call images test images if the run had others: some may have been trained on."""
    expected = {domain: part.get("names_sha256") for domain, part in run.split.get("test", {}).items()}
    rows = rows.select(is_present(rows, "label").nonzero()[0])
    places: dict[str, list[int]] = {}
    for index, domain in enumerate(rows["domain"]):
        places.setdefault(domain, []).append(index)
    for domain, own in places.items():
        if domain in expected and expected[domain] != describe_part(rows.select(own))["names_sha256"]:
            raise ValueError(
                f"the test images of domain {domain!r} are not those that the run held out, so the model may have "
                "seen some; evaluate on the data set that it was trained on, or score everything with --split all"
            )


def provenance_of(
    model: str,
    dataset: str,
    protocol: str,
    split: str,
    run: RunFacts,
    *,
    rows: datasets.Dataset,
    scored: datasets.Dataset,
) -> Provenance:
    """Say where numbers come from.

    Args:
        model: Folder or name of the model.
        dataset: As `load_source` takes it.
        protocol: Key in `protocols.PROTOCOLS`.
        split: Of `SPLITS`.
        run: Of the model.
        rows: All rows of the data set.
        scored: Those of the split, from `rows_to_score`.
    """
    if not run.split:
        return Provenance(model, dataset, protocol, split=split)
    labeled = run.split.get("labeled", {})
    hashes = {
        name: run.split[name]["names_sha256"] for name in ("labeled", "unlabeled", "validation") if run.split.get(name)
    }
    hashes |= {f"test of {domain}": part["names_sha256"] for domain, part in run.split.get("test", {}).items()}
    selection = run.training.get("selected", "unknown")
    parts = scored_parts(rows, scored, run)
    return Provenance(
        model,
        dataset,
        protocol,
        labeled_domain=run.split.get("labeled_domain"),
        labeled_images=labeled.get("images"),
        labeled_patients=labeled.get("patients"),
        seeds=[int(run.arguments["seed"])] if "seed" in run.arguments else [],
        selection=selection,
        selected_on_test=is_chosen_on_test(selection),
        transductive=None if parts is None else parts["unlabeled"] > 0,
        scored_model=run.training.get("scored_model"),
        split_hashes=hashes,
        environment=run.environment,
        split=split,
        scored_parts=parts,
        run_hashes=run.hashes,
    )


def is_chosen_on_test(selection: str) -> bool:
    """Whether test images had a part in choosing the step, by how a run describes its choice."""
    return "test-legacy" in selection


def scored_parts(rows: datasets.Dataset, scored: datasets.Dataset, run: RunFacts) -> dict[str, int] | None:
    """Of the scored images with masks, how many each part of the run's split holds.

    Args:
        rows: All rows of the data set.
        scored: Those to be scored.
        run: The run.

    Returns:
        By "labeled", "unlabeled", "validation" and "test"; None where drawing the run's split from these rows does not
        give the parts that the run trained on, by the hashes of their names.
    """
    try:
        split = _split_of(rows, run)
    except (ValueError, KeyError, TypeError):  # another data set, or a run of an earlier version
        return None
    known = {name: part for name, part in split.summary().items() if name not in ("seed", "labeled_domain")}
    if any(_hashes(part) != _hashes(run.split.get(name, {})) for name, part in known.items()):
        return None
    part_of = {}
    parts = {"labeled": [split.labeled], "unlabeled": [split.unlabeled], "validation": [split.validation]}
    for name, sets in (parts | {"test": list(split.test.values())}).items():
        part_of |= {key: name for one in sets for key in _names(one)}
    counts = Counter(part_of.get(key) for key in _names(scored.select(is_present(scored, "label").nonzero()[0])))
    return {name: counts[name] for name in ("labeled", "unlabeled", "validation", "test")}


def _split_of(rows: datasets.Dataset, run: RunFacts) -> SemiSupervisedSplit:
    count = run.data["num_labeled"]
    return semi_supervised_split(
        rows,
        labeled_domain=run.split["labeled_domain"],
        num_labeled="all" if count == _ALL_LABELED else count,
        num_validation=run.data["num_validation"],
        seed=run.data["split_seed"],
        test_fraction=run.data["test_fraction"],
        allow_shared_patients=run.data.get("allow_shared_patients", False),
    )


def _hashes(part: Mapping[str, Any]) -> Any:
    """The hash of a part's names; of the test images, by domain."""
    return part.get("names_sha256") or {domain: own.get("names_sha256") for domain, own in part.items()}


def _names(rows: datasets.Dataset) -> list[tuple[str, str]]:
    return list(zip(rows["domain"], rows["name"], strict=True))
