"""What several layouts need: the folder they start at, label values, and reading a picture with its mask."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from dim_hf.data.archives import visible
from dim_hf.data.images import EXTENSIONS, read_mask, read_picture
from dim_hf.data.trees import Formats

PICTURES = Formats("an image file", EXTENSIONS)
MAX_VALUES = 32
"""A mask with more different values is no label map."""
_CHUNK = 2**22
_SHOWN = 8


def base_folder(root: Path, fits: Callable[[Path], bool], tree: str, depth: int = 2) -> Path:
    """The folder at which a layout starts: `root`, or the only one below it that fits.

    Args:
        root: Folder that the user names.
        fits: Whether a folder is the start of the layout.
        tree: The layout, for the error.
        depth: How many levels below `root` are looked at.

    Raises:
        ValueError: If `root` is no folder, or none or several folders of one level fit.
    """
    if not root.is_dir():
        raise ValueError(f"{root} is not a folder; give the folder that holds {tree}")
    level = [root]
    for _ in range(depth + 1):
        found = [folder for folder in level if fits(folder)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ValueError(f"{root} holds the layout twice, in {found[0]} and {found[1]}; name one of them")
        level = [path for folder in level for path in visible(folder) if path.is_dir() and not path.is_symlink()]
    names = [path.name for path in visible(root)]
    raise ValueError(
        f"{root} holds {_listed(names) or 'nothing'}, but the layout is {tree}; name the folder that holds it"
    )


def refuse_twins(cases: Iterable[tuple[str, Path]]) -> None:
    """Refuse two cases of one name.

    Args:
        cases: Name and source of each.

    Raises:
        ValueError: Naming both sources.
    """
    seen: dict[str, Path] = {}
    for name, source in cases:
        if name in seen:
            raise ValueError(f"{source} and {seen[name]} are both case {name!r}; rename or remove one")
        seen[name] = source


def relative(path: Path, root: Path) -> str:
    """`path` below `root` with "/", as it is recorded."""
    return path.relative_to(root).as_posix()


def label_values(array: np.ndarray, file: Path, limit: int = MAX_VALUES) -> list[int]:
    """The different values of a mask, sorted.

    Args:
        array: Of any shape and real type.
        file: Named in errors.
        limit: Most different values that a label map may hold.

    Raises:
        ValueError: If a value is no whole number, or there are more than `limit`.
    """
    flat = array.ravel(order="K")  # "K": no copy of a volume in Fortran order
    values: set[float] = set()
    for start in range(0, flat.size, _CHUNK):
        values.update(_unique(flat[start : start + _CHUNK]).tolist())
        broken = [value for value in values if not float(value).is_integer()]
        if broken:
            raise ValueError(
                f"{file}: the value {min(broken, key=str)} is no whole number, so this is no label map; write one "
                "integer class id a pixel"
            )
        if len(values) > limit:
            raise ValueError(
                f"{file}: more than {limit} different values, so this looks like a photograph or a "
                "JPEG-compressed mask; write the mask as PNG with one class id a pixel"
            )
    return sorted(int(value) for value in values)


def _unique(values: np.ndarray) -> np.ndarray:
    if values.dtype == np.uint8:  # counting is an order of magnitude faster than sorting
        return np.flatnonzero(np.bincount(values, minlength=256))
    return np.unique(values)


def remap(array: np.ndarray, mapping: Mapping[int, int], file: Path) -> np.ndarray:
    """Replace the values of a mask by class ids.

    Args:
        array: Mask of any shape and real type.
        mapping: Value → class id, 0..255.
        file: Named in errors.

    Returns:
        uint8 array of the same shape.

    Raises:
        ValueError: If a value is not in `mapping`, or as `label_values`.
    """
    values = label_values(array, file, max(MAX_VALUES, len(mapping)))
    unknown = [value for value in values if value not in mapping]
    if unknown:
        raise ValueError(
            f"{file}: the mask holds the values {_listed(unknown)}, but only {_listed(sorted(mapping))} are known "
            "here; correct the mask, or say with --label-map what they mean"
        )
    classes = np.zeros_like(array, dtype=np.uint8)
    for value in values:
        classes[array == value] = mapping[value]
    return classes


def require_equal_size(image: np.ndarray, mask: np.ndarray, image_file: Path, mask_file: Path) -> None:
    """Refuse a mask of another size than its image.

    Raises:
        ValueError: Naming both files and sizes.
    """
    if image.shape[:2] != mask.shape[:2]:
        sizes = [f"{array.shape[1]}x{array.shape[0]}" for array in (image, mask)]
        raise ValueError(
            f"{mask_file} is {sizes[1]} pixels (width x height), but its image {image_file} is {sizes[0]}; "
            "take the mask that belongs to the image, at its size"
        )


def read_pictures(image: Path, mask: Path | None, mapping: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray | None]:
    """Read a picture and its mask.

    Args:
        image: A picture.
        mask: A mask of its size, or None.
        mapping: Value in the mask → class id.

    Returns:
        Pixels (H, W) or (H, W, 3), and the class map (H, W) uint8 or None.

    Raises:
        ValueError: If a file cannot be read, sizes differ, or a value is not in `mapping`.
    """
    pixels = read_picture(image)
    if mask is None:
        return pixels, None
    values = read_mask(mask)
    require_equal_size(pixels, values, image, mask)
    return pixels, remap(values, mapping, mask)


def count_of(number: int, noun: str) -> str:
    """`1 image`, `2 images`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _listed(values: Sequence[object]) -> str:
    more = len(values) - _SHOWN
    return ", ".join(map(str, values[:_SHOWN])) + (f" and {more} more" if more > 0 else "")
