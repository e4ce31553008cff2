"""A folder for each domain with images and masks, of pictures or of volumes, whose label values may be any."""

import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from dim_hf.data.description import IGNORE_INDEX
from dim_hf.data.images import EXTENSIONS, picture_facts, read_mask
from dim_hf.data.importers.cases import Case, Found, ImportOptions, Layout
from dim_hf.data.importers.finding import MAX_VALUES, count_of, label_values, read_pictures, relative
from dim_hf.data.importers.volume_folders import copies, read_pair
from dim_hf.data.parallel import parallel_map
from dim_hf.data.patients import compile_pattern, patient_of
from dim_hf.data.trees import Formats, Pair, domain_pairs
from dim_hf.data.volumes.volume import VOLUME_EXTENSIONS, is_volume_file, read_volume
from dim_hf.metrics.cases import default_structures

FOLDERS_TREE = "<domain>/{images,masks}/ or <domain>/{train,test}/{image,mask}/, pictures or volumes"
_FORMATS = Formats(
    "an image or volume", (*EXTENSIONS, *VOLUME_EXTENSIONS), companions=(".raw", ".zraw", ".raw.gz", ".img")
)
# Modes whose pixels are read as a file holds them.
_PLAIN_MODES = ("L", "RGB", "I;16")
_JPEG = (".jpg", ".jpeg")
_Result = TypeVar("_Result")


def find_folders(root: Path, options: ImportOptions) -> Found:
    """Find the images of the plain layouts (`trees.domain_pairs`).

    Without `label_map` the masks are read, and `resolve_label_map` says what becomes of their values. A mask that
    cannot be read has no part in it: reading its case raises the error.

    Args:
        root: Holds a folder for each domain.
        options: `patient_pattern`, `label_map`, `class_names` and `structures` are used, `modality` for volumes.

    Raises:
        ValueError: If the tree is none of the layouts, pictures and volumes are mixed, no mask can be read, or the
            values are ambiguous.
    """
    root = Path(os.path.abspath(root))
    pattern = compile_pattern(options.patient_pattern)
    pairs = domain_pairs(root, _FORMATS)
    is_volume = _are_volumes(pairs)
    if options.modality is not None and not is_volume:
        raise ValueError(f"{root} holds pictures, of which all channels are read: leave out --modality")
    mapping = options.label_map
    if mapping is None:
        by_mask = _values_by_mask(pairs)
        mapping = resolve_label_map({v for _, _, values in by_mask for v in values}, options.class_names, str(root))
        _refuse_two_codings(by_mask, mapping, root)
    id2label = _class_names(mapping, options.class_names)
    read = partial(read_pair, channel=options.modality) if is_volume else read_pictures
    facts = _map(_channels_and_copies, [pair.image for pair in pairs], "reading headers")
    cases = [
        Case(
            domain=pair.domain,
            patient=patient_of(pair.image, pair.stem, pattern),
            name=pair.stem,
            split=pair.split,
            source=pair.image,
            read=partial(read, pair.image, pair.mask, mapping),
            copies=as_it_is,
            columns={"source_file": relative(pair.image, root)},
        )
        for pair, (_, as_it_is) in zip(pairs, facts, strict=True)
    ]
    return Found(
        cases=cases,
        id2label=id2label,
        structures=options.structures or default_structures(id2label),
        label_values={str(value): label for value, label in sorted(mapping.items())},
        num_channels=max(channels for channels, _ in facts),
        spatial_dims=3 if is_volume else 2,
        split_rule=_split_rule(pairs),
        notes=_notes(pairs),
    )


FOLDERS = Layout(
    "folders", FOLDERS_TREE, find_folders, ("patient_pattern", "label_map", "class_names", "structures", "modality")
)


def resolve_label_map(values: Iterable[int], class_names: Sequence[str] | None, where: str) -> dict[int, int]:
    """What the values of masks mean, where nobody says it.

    With K the number of `class_names`, or the largest value + 1 (at most `MAX_VALUES`) without them:

    - 0 and 255 alone are background and foreground.
    - Values in 0..K-1 are class ids; 255 beside them marks ignored pixels, and stays. Where names are given, that
      takes all of 0..K-1: else 255 may be one of the named classes.
    - Other values are numbered in ascending order.

    Args:
        values: All values that occur in the masks.
        class_names: Names of the classes, or None.
        where: Named in errors.

    Returns:
        Value → class id, or 255 for ignored pixels.

    Raises:
        ValueError: If a value is negative, there are more than `MAX_VALUES`, their number is not that of the names, or
            255 may be a class or ignored.

    >>> resolve_label_map([0, 255], None, "data")
    {0: 0, 255: 1}
    >>> resolve_label_map([0, 128, 255], None, "data")
    {0: 0, 128: 1, 255: 2}
    >>> resolve_label_map([0, 2, 255], None, "data")
    {0: 0, 1: 1, 2: 2, 255: 255}
    """
    found = sorted(set(values))
    names = len(class_names) if class_names else None
    stated = f"the masks of {where} hold the values {found[:MAX_VALUES]}"
    if len(found) > MAX_VALUES or (found and found[0] < 0):
        reason = ", since one is negative" if found[0] < 0 else ""
        raise ValueError(f"{stated}{' and more' * (not reason)}; say with --label-map what each means{reason}")
    others = [value for value in found if value != IGNORE_INDEX]
    if found in ([0, IGNORE_INDEX], [IGNORE_INDEX]):
        mapping = {0: 0, IGNORE_INDEX: 1}
    elif not others or others[-1] < (names or MAX_VALUES):
        classes = {value: value for value in range(names or max(others[-1] + 1 if others else 0, 2))}
        if IGNORE_INDEX not in found:
            return classes
        if not names or others == list(classes):
            return {**classes, IGNORE_INDEX: IGNORE_INDEX}
        raise ValueError(f"{stated}, and {IGNORE_INDEX} may be a class or ignored pixels; say which with --label-map")
    else:
        mapping = {value: index for index, value in enumerate(found)}
    if names and len(mapping) != names:
        raise ValueError(
            f"{stated}, {len(mapping)} classes, but {names} are named ({', '.join(class_names)}); correct the names, "
            "or say with --label-map what each value means"
        )
    return mapping


def _class_names(mapping: Mapping[int, int], names: Sequence[str] | None) -> dict[int, str]:
    classes = set(mapping.values())
    wrong = sorted(classes - set(range(IGNORE_INDEX + 1)))
    if not mapping or wrong:
        raise ValueError(
            f"a label map gives class ids from 0, or {IGNORE_INDEX} for ignored pixels, got {dict(mapping)}"
        )
    num_classes = max(max(classes - {IGNORE_INDEX}, default=0) + 1, 2)
    if names is None:
        names = ["background", "foreground"]
        if num_classes > 2:
            names = ["background", *(f"class_{index}" for index in range(1, num_classes))]
    if len(names) < num_classes:
        raise ValueError(
            f"{len(names)} classes are named ({', '.join(names)}), but the label map has the class {num_classes - 1}; "
            "name every class"
        )
    return dict(enumerate(names))


def _are_volumes(pairs: Sequence[Pair]) -> bool:
    files = [file for pair in pairs for file in (pair.image, pair.mask) if file]
    volumes = [is_volume_file(file) for file in files]
    if any(volumes) and not all(volumes):
        raise ValueError(
            f"pictures and volumes are mixed, such as {files[volumes.index(False)]} and {files[volumes.index(True)]}; "
            "import them from two folders"
        )
    return any(volumes)


def _values_by_mask(pairs: Sequence[Pair]) -> list[tuple[str, Path, set[int]]]:
    """Domain, file and values of all masks that can be read; if there is none, the first one's error."""
    labeled = [(pair.domain, pair.mask) for pair in pairs if pair.mask]
    results = _map(_values_or_error, [mask for _, mask in labeled], "reading label values")
    known = [(*about, set(found)) for about, found in zip(labeled, results, strict=True) if isinstance(found, list)]
    if results and not known:
        raise results[0]
    return known


def _refuse_two_codings(by_mask: Sequence[tuple[str, Path, set[int]]], mapping: Mapping[int, int], root: Path) -> None:
    """One mask's 255 may be the foreground where another's is 1: together they would be taken for ignored pixels.

    Masks of a domain that hold 255 beside classes say that it stands for ignored pixels in all of the domain; where
    all values are grey levels, 255 is a class.
    """
    ignored = {0, IGNORE_INDEX}
    ignoring = {domain for domain, _, values in by_mask if IGNORE_INDEX in values and values - ignored}
    narrow = [one for one in by_mask if one[2] - ignored]
    wide = [one for one in by_mask if one[0] not in ignoring and IGNORE_INDEX in one[2]]
    if mapping.get(IGNORE_INDEX) != IGNORE_INDEX:
        domains = {domain for domain, _, _ in narrow}
        wide = [one for one in wide if one[0] not in domains]
    if wide and narrow:
        (_, first, values), (_, second, others) = wide[0], narrow[0]
        raise ValueError(
            f"{root}: the mask {relative(first, root)} holds {sorted(values)}, {relative(second, root)} "
            f"{sorted(others)[:8]}, so 255 may be a class or ignored pixels; say what each value means with "
            '--label-map, such as {"0": 0, "1": 1, "255": 1}, or import domains that differ one by one with --append'
        )


def _values_or_error(mask: Path) -> list[int] | ValueError:
    try:
        array = read_volume(mask).array if is_volume_file(mask) else read_mask(mask)
        values = label_values(array, mask)
    except ValueError as error:
        return error
    if mask.suffix.lower() in _JPEG and not set(values) <= {0, IGNORE_INDEX}:
        return ValueError(
            f"{mask} is JPEG-compressed and holds the values {values[:8]}, which are not those that were drawn; write "
            "masks as PNG"
        )
    return values


def _channels_and_copies(image: Path) -> tuple[int, bool]:
    """Channels of an image, and whether a data set can hold its file as it is; from the header."""
    if is_volume_file(image):
        return 1, copies(image)
    try:
        facts = picture_facts(image)
    except ValueError:  # reading the case will say so
        return 1, False
    return (1 if facts.is_grey else 3), facts.mode in _PLAIN_MODES and not facts.has_alpha


def _map(function: Callable[[Path], _Result], files: Sequence[Path], description: str) -> list[_Result]:
    return parallel_map(function, files, description=description, unit="file", progress=sys.stderr.isatty())


def _split_rule(pairs: Sequence[Pair]) -> str:
    published = sorted({pair.split for pair in pairs if pair.split})
    if not published:
        return "none published"
    undecided = sorted({pair.domain for pair in pairs if not pair.split})
    rule = f"the folders {', '.join(published)}"
    return f"{rule}; none in {', '.join(undecided)}" if undecided else rule


def _notes(pairs: Sequence[Pair]) -> tuple[str, ...]:
    unlabeled = sum(pair.mask is None for pair in pairs)
    return (f"{count_of(unlabeled, 'image')} without a mask",) if unlabeled else ()
