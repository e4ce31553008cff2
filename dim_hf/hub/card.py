"""The card of a published model: for whom it is, what it reached at each site, and where it ends."""

import math
import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCardData

from dim_hf.data.hub.card import licence_fields, markdown
from dim_hf.evaluation.result import SELECTED_ON_TEST
from dim_hf.hub.eval_results import Score, model_index
from dim_hf.hub.privacy import without_machine
from dim_hf.hub.run_folder import STARTED, FinishedRun
from dim_hf.hub.statements import Statements
from dim_hf.inference.drift_file import STATISTICS_FILE, read_statistics
from dim_hf.metrics.cases import default_structures
from dim_hf.metrics.summary import Summary
from dim_hf.metrics.summary_text import FEW_PATIENTS, format_summary

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
TAGS = ("dim-hf", "medical", "semi-supervised", "domain-generalization")
_SHOWN = ("dice", "hd95", "asd")
_CHANNELS = {1: "grey", 3: "color"}
# Arguments of the method that a card names, in their order; the rest is in job.json.
_SETTINGS = (
    "learning_rate", "labeled_batch_size", "unlabeled_batch_size", "consistency_weight", "divergence_weight",
    "f_divergence", "divergence_estimator", "rho", "adaptive", "ema_decay",
    "half_resolution_ratio", "weak_view_ratio", "seed",
)  # fmt: skip
# Weight of each part of the method, and what it does where it is not 0.
_METHOD = {
    "consistency_weight": "a teacher, the moving average of the network, outlines the images without outlines, and "
    "where it is sure the network learns from that",
    "divergence_weight": "predictions on images with and without outlines are drawn together",
    "rho": "the optimizer seeks flat minima of the loss",
}


def render_card(
    run: FinishedRun,
    statements: Statements,
    repo_id: str,
    scores: Sequence[Score],
    figures: Mapping[str, str],
    *,
    has_code: bool,
    names_kept: bool,
) -> str:
    """README.md of a model: front matter and text.

    Args:
        run: A run without obstacles (see `statements.find_obstacles`).
        statements: What people said; all of it is escaped.
        repo_id: `org/name`.
        scores: For the front matter.
        figures: Path in the repository and what is seen there.
        has_code: Whether the repository holds the model's code.
        names_kept: Whether `cases.csv` holds the names that the data set gives its cases.
    """
    import jinja2

    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    environment.filters |= {"md": markdown, "paragraphs": _paragraphs, "sites": _sites}
    body = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        _facts(run),
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        statements=statements,
        dataset=dataset_name(run, statements),
        figures=figures,
        has_code=has_code,
        names_kept=names_kept,
    )
    text = re.sub(r"\n{3,}", "\n\n", body)
    return f"---\n{_front_matter(run, statements, repo_id, scores)}\n---\n\n{text}"


def _facts(run: FinishedRun) -> dict[str, Any]:
    """What the card says of the run itself."""
    summary, in_mm = run.summary(), run.summary_in_mm()
    return {
        "split": run.split,
        "training": run.training,
        "cost": run.results.get("cost", {}),
        "environment": run.results.get("environment", {}),
        "is_phantom": run.is_phantom,
        "is_volume": run.config.get("spatial_dims", 2) == 3,
        "by_image": bool(run.data.get("allow_shared_patients")),
        "structures": _structures(run.config),
        "image": _image(run.config),
        "size": _size(run),
        "uses": _uses(run),
        "learned_unlabeled": run.learned_unlabeled,
        "dice": _dice(summary),
        "selection": _selection(run),
        "stamp": SELECTED_ON_TEST if run.selected_on_test else "",
        "table": _table(summary),
        "table_in_mm": _table(in_mm) if in_mm else "",
        "limits": _limits(run, summary, in_mm),
        "method": _method(run),
        "method_is_dim": any(run.weight_of(name) > 0 for name in _METHOD),
        "settings": _settings(run),
        "minutes": _minutes(run),
        "drift": _drift(run),
    }


def dataset_name(run: FinishedRun, statements: Statements) -> str:
    """What the data set is called in public: its name on the Hub, a phantom's, or no name at all."""
    if statements.dataset_id:
        return statements.dataset_id
    return str(run.data["dataset"]) if run.is_phantom else "unpublished data"


def _paragraphs(text: str) -> str:
    """A statement with its paragraphs, shown as it was written."""
    return "\n\n".join(markdown(part) for part in re.split(r"\n\s*\n", text.strip()))


def _sites(domains: Sized) -> str:
    return "one site" if len(domains) == 1 else f"{len(domains)} sites"


def _structures(config: Mapping[str, Any]) -> dict[str, str]:
    """Structure → the classes that it is made of, in words."""
    names = {int(index): str(name) for index, name in config.get("id2label", {}).items()}
    found = config.get("structures") or default_structures(names)
    return {
        str(name): " + ".join(names.get(index, str(index)) for index in classes) for name, classes in found.items()
    }


def _image(config: Mapping[str, Any]) -> str:
    kind = "volumes" if config.get("spatial_dims", 2) == 3 else "images"
    return f"{_CHANNELS.get(config.get('num_channels', 3), '')} {kind}".strip()


def _size(run: FinishedRun) -> str:
    """The network's input in pixels, as far as the job says it."""
    volume = run.data.get("volume_size")
    if run.config.get("spatial_dims", 2) == 3:
        return " × ".join(map(str, volume)) + " voxels" if volume else ""
    side = run.data.get("image_size")
    return f"{side} × {side} pixels" if side else ""


def _dice(summary: Summary) -> dict[str, Any]:
    """Mean Dice of all sites, of the labeled and of the worst one."""
    labeled = summary.labeled_domain if summary.labeled_domain in summary.domains else None
    named = {"mean": summary.row(), "worst": summary.row(summary.worst_domain)}
    named |= {"labeled": summary.row(labeled)} if labeled else {}
    return {name: row.intervals["dice"].mean for name, row in named.items()} | {"worst_site": summary.worst_domain}


def _table(summary: Summary) -> str:
    """The table by site; names are shown as they are, whatever they hold."""
    rows = tuple(replace(row, domain=_cell(row.domain), structure=_cell(row.structure)) for row in summary.rows)
    labeled = summary.labeled_domain
    shown = replace(
        summary,
        rows=rows,
        labeled_domain=None if labeled is None else _cell(labeled),
        worst_domain=_cell(summary.worst_domain),
    )
    return format_summary(shown, metrics=_SHOWN)


def _cell(text: str) -> str:
    return markdown(text).replace("\\|", "|")  # the table escapes bars itself


def _selection(run: FinishedRun) -> str:
    """How the step was chosen, in a sentence."""
    validation = run.split.get("validation", {})
    weights = f"The weights are those of step {run.training.get('step')} of {run.training.get('max_steps')}"
    if "test-legacy" in run.selected:
        chosen = f"{weights}: the best mean Dice on the TEST images (test-legacy)."
    elif run.selected == "last step":
        chosen = f"{weights}, the last one: no image had a part in choosing the step."
    else:
        where = ", ".join(validation.get("domains", {})) or "the labeled site"
        chosen = (
            f"{weights}: the best mean Dice on {validation.get('images')} validation images of {where}, which "
            "this run used for nothing else."
        )
    return " ".join(filter(None, [chosen, _start(run)]))


def _start(run: FinishedRun) -> str:
    """What the run started from, where its own labels are not all that it knows."""
    start = run.started_from
    if not start:
        return ""
    labels = f", which had learned from {start['labeled_images']} labeled images" if "labeled_images" in start else ""
    selected, _, before = str(start.get("selected", "unknown")).partition(STARTED)
    if "test-legacy" in selected:
        chosen = "its weights were chosen on TEST images (test-legacy), so these scores owe something to them"
    elif "test-legacy" in before:
        chosen = f"its weights: {selected}, but it goes back to a model chosen on TEST images (test-legacy)"
    else:
        chosen = f"its weights: {selected}"
    return f"Training started from another model{labels} ({chosen})."


def _limits(run: FinishedRun, summary: Summary, in_mm: Summary | None) -> list[str]:
    """What a reader must know before trusting a number, from the run itself."""
    rows = (row for row in summary.rows if row.domain in summary.domains and row.patients < FEW_PATIENTS)
    few = list(dict.fromkeys(row.domain for row in rows))
    missed, spurious = (sum(getattr(case, kind) for case in run.cases) for kind in ("missed", "spurious"))
    skipped = run.training.get("skipped_steps")
    limits = (
        (run.is_phantom, "All images were drawn by a program (a phantom): the scores say nothing about patients."),
        (run.selected_on_test, SELECTED_ON_TEST),
        (few, f"Fewer than {FEW_PATIENTS} test patients at {', '.join(few)}: the intervals there are too narrow."),
        (summary.gap is not None, _gap_sentence(summary)),
        (run.started_from, _start(run)),
        (
            True,
            f"In the test cases a structure was overlooked {missed} times and drawn where there is none {spurious} "
            "times.",
        ),
        (True, "Scanners, protocols and patients other than those of the sites above were not tested; expect worse."),
        (True, "One training run: another seed gives other numbers."),
        (
            summary.unit == "px",
            f"The {'first table is' if in_mm else 'scores are'} in pixels at the network's size, not in millimetres.",
        ),
        (skipped, f"{skipped} training steps were skipped for values that were not finite."),
    )
    return [sentence for holds, sentence in limits if holds] + [str(text) for text in run.training.get("warnings", ())]


def _gap_sentence(summary: Summary) -> str:
    """How much worse the worst site is than the one where the labels are from; "" where that is not known."""
    if summary.gap is None:
        return ""
    if summary.gap <= 0:
        return f"No other site was worse than {summary.labeled_domain}, where the labels are from."
    return (
        f"At {summary.worst_domain} the Dice is {summary.gap:.3f} lower than at {summary.labeled_domain}, where the "
        "labels are from."
    )


def _drift(run: FinishedRun) -> str:
    """What the statistics of the seen sites are good for, in words; "" where the run has none."""
    path = run.folder / STATISTICS_FILE
    if not path.is_file():
        return ""
    statistics = read_statistics(path)
    share = f"{100 * statistics.false_alarm_rate:.1f} %"
    promise = f"at most {share}" if statistics.is_bound else f"about {share} (no bound)"
    return (
        f"With `dim-hf` each prediction has a drift score in [0, 1], from `{STATISTICS_FILE}`: how unlike the images\n"
        f"of the sites that the model saw an image is. From {statistics.threshold:.3f} on it is flagged for review,\n"
        f"as {promise} of new images of those sites would be; a low score does not say that a mask is right."
    )


def _method(run: FinishedRun) -> str:
    """The parts of the method that this run used, in words."""
    used = [text for name, text in _METHOD.items() if run.weight_of(name) > 0]
    return "; ".join(used) if used else "supervised: the network learned from the outlined images alone"


def _uses(run: FinishedRun) -> list[tuple[str, Mapping[str, Any]]]:
    """What each part of the data was for; parts that nothing was learned or chosen from are left out."""
    split, on_test = run.split, "test-legacy" in run.selected
    uses = [("learning, with outlines", split["labeled"])]
    if run.learned_unlabeled:
        uses.append(("learning, without outlines", split["unlabeled"]))
    if run.selected != "last step" and not on_test:
        uses.append(("choosing the weights", split["validation"]))
    tests = split["test"].values()
    total = {name: sum(part[name] for part in tests) for name in ("images", "patients")}
    total["domains"] = {site: part["images"] for site, part in split["test"].items()}
    return [*uses, ("testing, and choosing the weights" if on_test else "testing", total)]


def _settings(run: FinishedRun) -> dict[str, Any]:
    job = without_machine(run.results.get("job", {}))
    arguments = job.get("training", {})
    started = job.get("model", {}).get("model_name_or_path")
    settings = {name: arguments[name] for name in _SETTINGS if name in arguments}
    return {"started from": started} | settings if started else settings


def _minutes(run: FinishedRun) -> str:
    seconds = (run.results.get("cost", {}).get("seconds_per_step") or math.nan) * (run.training.get("max_steps") or 0)
    if math.isnan(seconds):
        return ""
    return f"{seconds / 3600:.1f} hours" if seconds >= 5400 else f"{max(seconds / 60, 0.1):.1f} minutes"


def _front_matter(run: FinishedRun, statements: Statements, repo_id: str, scores: Sequence[Score]) -> str:
    name = repo_id.split("/")[-1]
    data = ModelCardData(
        **licence_fields(statements.licence),
        library_name="transformers",
        pipeline_tag="image-segmentation",
        tags=[*TAGS, *(["3d"] if run.config.get("spatial_dims", 2) == 3 else [])],
        datasets=[statements.dataset_id] if statements.dataset_id else None,
        metrics=sorted({score.metric for score in scores}),
        model_name=name,
        eval_results=model_index(list(scores), dataset_name(run, statements), statements.dataset_id),
    )
    return data.to_yaml()
