"""What stands behind the numbers of an evaluation, in words that table, terminal and page share."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dim_hf.evaluation.result import Provenance
from dim_hf.metrics.summary import Summary

_SPLIT_WORDS = {
    "test": "test images",
    "validation": "validation images",
    "train": "training images",
    "all": "all images",
}


@dataclass(frozen=True)
class Fact:
    """A line of the provenance; `kind` is "", "warning" or "error"."""

    name: str
    text: str
    kind: str = ""


def background(source: Provenance, summary: Summary) -> list[Fact]:
    """Labels, seeds, checkpoint, which images were scored, and whether training saw them.

    Args:
        source: Of the evaluation.
        summary: Of the evaluation.
    """
    scored = summary.row() if summary.rows else None
    return [
        Fact("Labels for training", _labels(source), "" if source.labeled_images is not None else "warning"),
        Fact("Seeds", _seeds(source.seeds), "" if source.seeds else "warning"),
        Fact("Checkpoint", _selection(source), "error" if source.selected_on_test else _unknown(source.selection)),
        *([Fact("Predicted", "mean of the probabilities over mirror images")] if source.flips else []),
        Fact("Images scored", *_images(source)),
        _seen(source),
        *([Fact("Left out", _without_mask(source.without_mask), "warning")] if source.without_mask else []),
        Fact("Scored on", _scored_on(summary) if scored else "no case", "" if scored else "error"),
    ]


def heading(source: Provenance) -> str:
    """Model, data set and split in one line.

    >>> heading(Provenance("runs/dim", "data/x", "image", split="train"))
    'runs/dim on the training images of data/x'
    """
    words = _SPLIT_WORDS.get(source.split or "", "")
    part = "" if not words else f"{words} of " if source.split == "all" else f"the {words} of "
    return f"{source.model} on {part}{source.dataset}"


def _count(value: int, name: str) -> str:
    return f"{value:,} {name}{'s' * (value != 1)}"


def _labels(source: Provenance) -> str:
    if source.labeled_images is None:
        return "unknown" + (f", of the domain {source.labeled_domain}" if source.labeled_domain else "")
    text = _count(source.labeled_images, "image")
    text += "" if source.labeled_patients is None else f" of {_count(source.labeled_patients, 'patient')}"
    return text + (f", 1 domain ({source.labeled_domain})" if source.labeled_domain else "")


def _seeds(seeds: Sequence[int]) -> str:
    return f"{len(seeds)} ({', '.join(map(str, seeds))})" if seeds else "unknown"


def _unknown(text: str) -> str:
    return "warning" if text == "unknown" else ""


def _selection(source: Provenance) -> str:
    return source.selection + (" (test images had a part in it)" if source.selected_on_test else "")


def _images(source: Provenance) -> tuple[str, str]:
    words = _SPLIT_WORDS.get(source.split or "")
    if words is None:
        return "unknown", "warning"
    return (words, "") if source.split == "test" else (f"{words}: no test of the model", "error")


def _seen(source: Provenance) -> Fact:
    """Whether the images that were scored, or their labels, were used for training."""
    if source.split not in ("test", None):
        return Fact("Scored images in training", *_overlap(source))
    known = ("yes, without their labels (transductive)", "warning") if source.transductive else ("no (inductive)", "")
    return Fact("Test images in training", *(_why_unknown(source) if source.transductive is None else known))


def _overlap(source: Provenance) -> tuple[str, str]:
    parts = source.scored_parts
    if parts is None:
        return _why_unknown(source)
    text = f"includes {parts['labeled']:,} labeled and {_count(parts['validation'], 'validation image')}"
    text += f", and {parts['unlabeled']:,} without their labels (transductive)" if parts["unlabeled"] else ""
    return text, "error" if parts["labeled"] or parts["unlabeled"] else "warning"


def _why_unknown(source: Provenance) -> tuple[str, str]:
    of_run = bool(source.split_hashes)
    return "unknown" + ": another data set, or its parts are not the run's" * of_run, "warning"


def _without_mask(counts: Mapping[str, int]) -> str:
    domains = ", ".join(f"{count:,} of {domain}" for domain, count in counts.items())
    return f"{_count(sum(counts.values()), 'image')} without a mask ({domains})"


def _scored_on(summary: Summary) -> str:
    mean = summary.row()
    domains = _count(len(summary.domains), "domain")
    return f"{_count(mean.cases, 'case')} of {_count(mean.patients, 'patient')}, {domains}"
