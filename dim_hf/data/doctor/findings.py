"""What can be wrong with a data set: one table of codes, each with severity, meaning and fix."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

SEVERITIES = ("error", "warning", "note")
"""From worst to mildest: training would fail or learn something wrong; probably a mistake; good to know."""


@dataclass(frozen=True)
class Code:
    """One kind of finding.

    Attributes:
        severity: One of `SEVERITIES`.
        title: What it means, as a heading.
        fix: What to do about it, for every finding of the kind.
        blocks: Training refuses to start (`checks.check_rows`); only for findings of single files.
    """

    severity: str
    title: str
    fix: str
    blocks: bool = False


_COPY = "copy the file again or remove the row"
_REWRITE = "rewrite the mask with one integer class id a pixel"
_GRID = "bring mask and image to the same grid"


def _blocker(title: str, fix: str) -> Code:
    return Code("error", title, fix, blocks=True)


CODES: dict[str, Code] = {
    # Single files: what makes training fail.
    "missing-file": _blocker("The file does not exist", "restore the file, correct the path or remove the row"),
    "empty-file": _blocker("The file is empty", _COPY),
    "truncated-file": _blocker("The file ends too early", _COPY),
    "unreadable-file": _blocker("The file cannot be read", _COPY),
    "no-image": _blocker("The row has no image", "fill in the image or remove the row"),
    "too-large": _blocker("The image is too large to be read", "cut or shrink the image"),
    "not-finite": _blocker("The image has pixels that are NaN or infinite", "replace them or remove the row"),
    "mask-size": _blocker("Mask and image differ in size", _GRID),
    "mask-channels": _blocker("The mask has several channels", _REWRITE),
    "mask-not-integer": _blocker("The mask has values that are no integers", _REWRITE),
    "mask-values": _blocker(
        "The mask has values that are no class", f"{_REWRITE}, or name more classes (raise num_labels)"
    ),
    # Single files: what the network's image processor does not take (`intake.Intake`).
    "more-bits": _blocker(
        "The image has more bits than the image processor takes",
        "save the images with 8 bits, or start from a model of dim_hf, whose processor keeps them",
    ),
    "no-range": _blocker(
        "The image has values that its type gives no range",
        "save all images as one of these, or train a new network with `--intensity percentile` (or zscore, local), "
        "which scales each image by its own values",
    ),
    # Single files: what makes training learn something wrong.
    "mask-affine": _blocker(
        "Mask and image lie at different places", f"{_GRID}, or copy the affine of the image if only it is off"
    ),
    "invalid-affine": _blocker(
        "The volume's affine places no voxel", "set spacing and orientation of the volume again"
    ),
    "wrong-dimensions": Code(
        "error",
        "The image has another number of axes than the data set",
        "keep images of one kind in a data set, and cut series in time or of several contrasts into single ones",
    ),
    # The data set as a whole.
    "foreground-ignored": Code(
        "error",
        "All masks hold nothing but 0 and the ignored value",
        "write the foreground as class 1 (or 2, ...); `dim-hf import folders` does it for a folder",
    ),
    "patient-across-splits": Code(
        "error",
        "One patient is in two splits",
        "correct the split column; an empty split counts as train",
    ),
    "duplicate-across-splits": Code(
        "error",
        "The same image is in training and in validation or test",
        "remove all copies but one; an empty split counts as train",
    ),
    "duplicate-name": Code("error", "A name occurs twice in a domain", "rename one of them"),
    "unknown-split": Code("error", "The split is not known", "use train, validation, test or nothing"),
    "no-masks": Code("error", "No row has a mask", "add the masks of some images: training needs labeled ones"),
    "duplicate-image": Code(
        "warning", "The same image occurs twice in a split", "remove all copies but one, or give them one patient"
    ),
    "duplicate-across-domains": Code(
        "warning",
        "The same image occurs in two domains",
        "keep it in one domain, or a model is scored on what it has seen",
    ),
    "constant-image": Code("warning", "The image has one single value", "export the image again, or remove the row"),
    "ignored-mask": Code(
        "warning",
        "The mask holds nothing but background and the ignored value",
        "write the foreground as class 1 (or 2, ...) if 255 was meant to be it",
    ),
    "wide-mask": Code("warning", "The mask has more than 8 bits a pixel", "write it as 8-bit PNG with class ids"),
    "alpha-channel": Code(
        "warning",
        "The image has an alpha channel",
        "write it without: training drops alpha, and what was transparent may show",
    ),
    "flip-suspected": Code(
        "warning",
        "The mask seems to belong to the image flipped or turned (a suspicion)",
        "look at the overlay; if it is off, flip the mask back",
    ),
    "flipped-domain": Code(
        "warning",
        "Most masks of the domain seem to be flipped or turned (a suspicion)",
        "look at the overlays; if they are off, read images and masks with the same axes",
    ),
    "odd-name": Code(
        "warning",
        "A name holds blanks or characters beyond ASCII",
        "rename it: such names break on other systems and in shell scripts",
    ),
    "absent-class": Code(
        "warning", "A class occurs in no mask of the domain", "check the values of the masks, and the list of classes"
    ),
    "mixed-channels": Code(
        "warning",
        "A domain mixes images of different numbers of channels",
        "find out whether two devices were mixed; training turns them all into one kind",
    ),
    "empty-mask": Code("note", "The mask is all background", "nothing, if the structure is not in this image"),
    "no-domain-masks": Code("note", "No image of the domain has a mask", "nothing, if it is to be used unlabeled"),
    "mixed-types": Code(
        "note",
        "A domain mixes types of numbers",
        "nothing, if intensities are scaled for each image (zscore); else bring them to one range",
    ),
    "mixed-sizes": Code("note", "Sizes within a domain differ much", "nothing, if one device made them all"),
    "mixed-spacings": Code("note", "Spacings within a domain differ much", "resample the volumes to one spacing"),
    "mixed-orientations": Code(
        "note", "A domain mixes orientations", "bring the volumes to one orientation, such as RAS"
    ),
}


@dataclass(frozen=True)
class Problem:
    """What one file has, before it is known which row it belongs to.

    Attributes:
        code: Key of `CODES`.
        problem: What is wrong, with the value found.
        column: "image" or "label".
    """

    code: str
    problem: str
    column: str = "image"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or good to know.

    Attributes:
        severity: One of `SEVERITIES`.
        code: Key of `CODES`.
        file: The file, or `<domain>/<name> (<column>)` where there is none, or the domain.
        problem: What is wrong, with the value found.
        fix: What to do about it.
        domain: Domain of the file; empty for the data set as a whole.
        row: Number of the row, or None where several or none are meant.
    """

    severity: str
    code: str
    file: str
    problem: str
    fix: str
    domain: str
    row: int | None = None

    def to_dict(self) -> dict[str, str | int | None]:
        """The attributes, ready for JSON."""
        return asdict(self)


def finding(code: str, file: str, problem: str, domain: str = "", row: int | None = None) -> Finding:
    """A finding with severity and fix from the table."""
    return Finding(CODES[code].severity, code, file, problem, CODES[code].fix, domain, row)


def sort_key(item: Finding) -> tuple:
    """Worst first, then by code, domain and file."""
    return SEVERITIES.index(item.severity), list(CODES).index(item.code), item.domain, item.file, item.problem


def count_severities(findings: Iterable[Finding]) -> dict[str, int]:
    """How many findings there are of each severity, worst first."""
    found = Counter(item.severity for item in findings)
    return {severity: found[severity] for severity in SEVERITIES}
