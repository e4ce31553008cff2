"""What a folder of images holds besides them: masks beside their images, and files of kinds that are not read."""

from collections.abc import Collection, Mapping
from pathlib import Path

from dim_hf.data.texts import printable
from dim_hf.data.trees import MASK_ENDING

MASKS = "masks"
_NO_EXTENSION = "without extension"
_SHOWN = 6
_HEADERS = (".mhd", ".nhdr")
_VOXELS = (".raw.gz", ".raw", ".zraw")  # of the files of these headers


def masks_beside(stems: Mapping[str, str]) -> set[str]:
    """Names of the masks among the images of one folder: `<stem>_segmentation` where `<stem>` lies beside it.

    Args:
        stems: Name without extension by name.

    >>> masks_beside({"a.nii.gz": "a", "A_Segmentation.mha": "A_Segmentation", "b_segmentation.nii": "b_segmentation"})
    {'A_Segmentation.mha'}
    """
    known = {stem.casefold() for stem in stems.values()}
    return {
        name
        for name, stem in stems.items()
        if stem.casefold().endswith(MASK_ENDING) and stem.casefold().removesuffix(MASK_ENDING) in known
    }


def holds_voxels(name: str, names: Collection[str]) -> bool:
    """Whether a file belongs to a header beside it, with which it is read.

    >>> holds_voxels("a.raw", {"a.raw", "a.mhd"}), holds_voxels("b.raw", {"a.raw", "a.mhd"})
    (True, False)
    """
    ending = next((ending for ending in _VOXELS if name.lower().endswith(ending)), None)
    return ending is not None and any(name[: -len(ending)] + header in names for header in _HEADERS)


def kind_of(name: str) -> str:
    """The last extension of a file that is not read, in lower case.

    >>> kind_of("scan.nii.BZ2"), kind_of("README")
    ('.bz2', 'without extension')
    """
    return Path(name).suffix.lower() or _NO_EXTENSION


def sentences(left_out: Mapping[str, int]) -> list[str]:
    """What was left out, for a person.

    Args:
        left_out: Number of files by `kind_of`, and of `MASKS`.

    >>> sentences({".img": 2, ".hdr": 1, "masks": 4})
    ['3 files of other kinds were left out (.img, .hdr)', '4 masks beside their images were left out']
    >>> sentences({".txt": 1})
    ['1 file of another kind was left out (.txt)']
    """
    kinds = sorted((kind for kind in left_out if kind != MASKS), key=lambda kind: -left_out[kind])
    count, masks = sum(left_out[kind] for kind in kinds), left_out.get(MASKS, 0)
    shown = ", ".join([*map(printable, kinds[:_SHOWN]), *(["..."] if len(kinds) > _SHOWN else [])])
    found = []
    if count:
        said = "1 file of another kind was" if count == 1 else f"{count} files of other kinds were"
        found.append(f"{said} left out ({shown})")
    if masks:
        said = "1 mask beside its image was" if masks == 1 else f"{masks} masks beside their images were"
        found.append(f"{said} left out")
    return found
