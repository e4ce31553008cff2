"""Writes one case of a layout as files of a data set: pictures, volumes, or a volume's slices."""

import hashlib
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from dim_hf.data.images import write_png
from dim_hf.data.importers.cases import Case, Pixels
from dim_hf.data.volumes.resampling import at_spacing
from dim_hf.data.volumes.slices import cut_slices, slice_dtype
from dim_hf.data.volumes.volume import Volume, canonical, reoriented, same_grid, write_nifti

_UNSAFE = re.compile(r"[^A-Za-z0-9._-]+")


@dataclass(frozen=True)
class WriteOptions:
    """How cases become files.

    Attributes:
        plane: Cut volumes into slices of this plane, one of `slices.PLANES`; None keeps volumes.
        spacing_mm: Resample volumes to this spacing (x, y, z) in mm; None keeps their own.
        in_place: Leave images that need no change where they are; the manifest then names them by absolute paths.
        trust_image_geometry: A label volume of the image's shape takes the image's affine.
    """

    plane: str | None = None
    spacing_mm: tuple[float, float, float] | None = None
    in_place: bool = False
    trust_image_geometry: bool = False


def safe_name(text: str) -> str:
    """`text` as a file name: letters, digits, dot, dash and underscore; never hidden, never empty.

    Where something had to be replaced, a short hash keeps different names apart.
    """
    safe = _UNSAFE.sub("_", text).lstrip(".")
    if safe == text:
        return text
    return f"{safe or '_'}_{hashlib.blake2b(text.encode('utf-8', 'surrogateescape'), digest_size=4).hexdigest()}"


def write_case(case: Case, folder: Path, options: WriteOptions) -> list[dict[str, Any]]:
    """Write image and label map of a case below `folder/<domain>/{images,masks}/`.

    Args:
        case: What to write.
        folder: Root of the data set; the two folders of the domain exist.
        options: How.

    Returns:
        One row, or one for each slice, with paths relative to `folder`.

    Raises:
        ValueError: Naming the file, if it cannot be read or image and label map do not fit.
    """
    image, label = case.read()
    _check_label(case, image, label)
    row = {"domain": case.domain, "patient": case.patient, "name": case.name, "split": case.split, **case.columns}
    if not isinstance(image, Volume):
        return [{**row, **_write_picture(case, image, label, folder, options)}]
    image, label = _on_one_grid(case, image, label, options)
    if options.spacing_mm:
        image = at_spacing(image, options.spacing_mm, is_label=False)
        label = at_spacing(label, options.spacing_mm, is_label=True) if label is not None else None
    if options.plane is None:
        return [{**row, **_write_volume(case, image, label, folder, options)}]
    return [{**row, **piece} for piece in _write_slices(case, image, label, folder, options.plane)]


def _check_label(case: Case, image: Pixels, label: Pixels | None) -> None:
    if label is None:
        return
    if isinstance(image, Volume) != isinstance(label, Volume):
        raise ValueError(f"{case.source}: image and label map must both be pictures or both volumes")
    if isinstance(image, Volume):
        return
    shapes = [part.shape[:2] for part in (image, label)]
    if shapes[0] != shapes[1]:
        raise ValueError(
            f"{case.source}: the image has shape {shapes[0]}, its label map {shapes[1]}; bring both to one grid"
        )


def _on_one_grid(
    case: Case, image: Volume, label: Volume | None, options: WriteOptions
) -> tuple[Volume, Volume | None]:
    if label is None:
        return image, None
    if image.orientation != label.orientation and same_grid(canonical(image), canonical(label)) is None:
        label = reoriented(label, image.affine)  # the same grid, stored along other axes
    difference = same_grid(image, label)
    may_trust = image.array.shape == label.array.shape and image.orientation == label.orientation
    if difference and not (options.trust_image_geometry and may_trust):
        raise ValueError(
            f"{case.source}: image and label map lie on different grids ({difference}); correct the label's geometry"
            + (", or say --trust-image-geometry if voxel i, j, k is the same in both" if may_trust else "")
        )
    return image, Volume(label.array, image.affine)


def _write_picture(
    case: Case, image: np.ndarray, label: np.ndarray | None, folder: Path, options: WriteOptions
) -> dict[str, Any]:
    stem = safe_name(case.name)
    paths: dict[str, Any] = {"label": None}
    if case.copies:
        paths["image"] = _keep_file(
            case, f"{safe_name(case.domain)}/images/{stem}{case.source.suffix.lower()}", folder, options
        )
    else:
        paths["image"] = _write_below(folder, f"{safe_name(case.domain)}/images/{stem}", image)
    if label is not None:
        paths["label"] = _write_below(folder, f"{safe_name(case.domain)}/masks/{stem}", label)
    return paths


def _write_below(folder: Path, name: str, pixels: np.ndarray) -> str:
    """Write a picture without loss: 8 or 16 bits as PNG, floats as TIFF; its path below `folder`."""
    if pixels.dtype.kind != "f":
        write_png(pixels, folder / f"{name}.png")
        return f"{name}.png"
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels, dtype=np.float32))
    picture.save(folder / f"{name}.tiff", compression="tiff_adobe_deflate")
    return f"{name}.tiff"


def _keep_file(case: Case, name: str, folder: Path, options: WriteOptions) -> str:
    if options.in_place:
        return str(case.source.absolute())
    shutil.copyfile(case.source, folder / name)
    return name


def _stated(case: Case, spacing_mm: Sequence[float]) -> list[float] | None:
    return [round(step, 6) for step in spacing_mm] if case.has_spacing else None


def _write_volume(
    case: Case, image: Volume, label: Volume | None, folder: Path, options: WriteOptions
) -> dict[str, Any]:
    domain, name = safe_name(case.domain), f"{safe_name(case.name)}.nii.gz"
    row: dict[str, Any] = {"label": None, "spacing_mm": _stated(case, image.spacing_mm)}
    if case.copies and options.spacing_mm is None and case.source.name.lower().endswith(".nii.gz"):
        row["image"] = _keep_file(case, f"{domain}/images/{name}", folder, options)
    else:
        row["image"] = f"{domain}/images/{name}"
        write_nifti(image, folder / row["image"])
    if label is not None:
        row["label"] = f"{domain}/masks/{name}"
        write_nifti(label, folder / row["label"])
    return row


def _write_slices(
    case: Case, image: Volume, label: Volume | None, folder: Path, plane: str
) -> list[Mapping[str, Any]]:
    domain, stem = safe_name(case.domain), safe_name(case.name)
    pixels = Volume(image.array.astype(slice_dtype(image.array), copy=False), image.affine)
    images = cut_slices(pixels, plane)
    labels = cut_slices(label, plane) if label is not None else [None] * len(images)
    rows = []
    for cut, cut_label in zip(images, labels, strict=True):
        name = f"{stem}_s{cut.slice_index:04d}"
        row = {
            "name": f"{case.name}_s{cut.slice_index:04d}",
            "image": _write_below(folder, f"{domain}/images/{name}", cut.pixels),
            "label": None,
            "spacing_mm": _stated(case, cut.spacing_mm),
            "affine": [float(number) for number in image.affine.ravel()],
            "volume": case.name,
            "slice_index": cut.slice_index,
            "slice_axis": cut.slice_axis,
            "num_slices": len(images),
        }
        if cut_label is not None:
            row["label"] = _write_below(folder, f"{domain}/masks/{name}", cut_label.pixels)
        rows.append(row)
    return rows
