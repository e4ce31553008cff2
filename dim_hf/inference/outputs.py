"""Writes masks in the format and on the grid of their images; a file appears when it is complete."""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import PIL.Image

from dim_hf.data.images import write_png
from dim_hf.data.volumes.header import require
from dim_hf.data.volumes.nifti import nifti_fields
from dim_hf.data.volumes.volume import Volume, write_nifti
from dim_hf.inference.inputs import Case
from dim_hf.inference.prediction import Prediction
from dim_hf.whole_files import write_text

LABELS_FILE = "labels.json"
ASIDE = ".writing"
_GEOMETRY = (
    *("pixdim", "xyzt_units", "dim_info", "qform_code", "sform_code"),
    *("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z"),
)
_LABEL_INTENT = "label"
_ITK = {".mha": "MetaImageIO", ".mhd": "MetaImageIO", ".nrrd": "NrrdImageIO", ".nhdr": "NrrdImageIO"}
_TIFF = (".tif", ".tiff")


def mask_extension(case: Case) -> str:
    """Extension of a case's mask: that of its image; JPEG, which loses class ids, and BMP give PNG, DICOM NIfTI."""
    name = case.files[0].name.lower()
    if case.is_series:
        return ".nii.gz"
    if case.is_picture:
        return case.files[0].suffix.lower() if name.endswith(_TIFF) else ".png"
    return ".nii.gz" if name.endswith(".nii.gz") else case.files[0].suffix.lower()


def write_prediction(prediction: Prediction, case: Case, folder: Path) -> list[str]:
    """Write the mask of a case, and its maps if it has any.

    Args:
        prediction: What was predicted.
        case: Whose image says format and grid.
        folder: Of the output.

    Returns:
        Paths of the files below `folder`, the mask first.

    Raises:
        OSError: If something cannot be written.
    """
    extension, aside = mask_extension(case), folder / ASIDE
    place = folder / case.target
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        mask = aside / f"{place.name}{extension}"
        _write(prediction.labels, prediction, case, mask)
        for name, values in prediction.maps().items():
            map_extension = ".png" if case.is_picture else extension
            _write(values, prediction, case, aside / f"{place.name}.{name}{map_extension}")
        place.parent.mkdir(parents=True, exist_ok=True)
        # The mask comes last: where it is, everything is. Headers after the files of voxels that they name.
        written = sorted(aside.iterdir(), key=lambda path: (path == mask, path.suffix in (".mhd", ".nhdr"), path.name))
        for path in written:
            _sync(path)
            os.replace(path, place.parent / path.name)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return [(place.parent / path.name).relative_to(folder).as_posix() for path in reversed(written)]


def write_labels(id2label: Mapping[int, str], structures: Mapping[str, Sequence[int]], folder: Path) -> None:
    """Write `labels.json`: what the values of all masks of the folder mean."""
    values = {"id2label": dict(id2label), "structures": {name: list(ids) for name, ids in structures.items()}}
    write_text(folder / LABELS_FILE, json.dumps(values, indent=2) + "\n")


def _write(array: np.ndarray, prediction: Prediction, case: Case, path: Path) -> None:
    if case.is_picture:
        _write_picture(array, path)
    elif case.is_series:
        write_nifti(Volume(array, prediction.affine), path)
    elif path.suffix in _ITK:
        _write_itk(array, case.files[0], path)
    else:
        _write_nifti(array, prediction.id2label, case.files[0], path)


def _write_picture(array: np.ndarray, path: Path) -> None:
    """Class ids as they are; a map in [0, 1] as 16-bit grey."""
    if array.dtype.kind == "f":
        array = np.rint(array * np.iinfo(np.uint16).max).astype(np.uint16)
    if path.suffix == ".png":
        write_png(array, path)
    else:
        PIL.Image.fromarray(np.ascontiguousarray(array)).save(path, format="TIFF", compression="tiff_adobe_deflate")


def _write_nifti(array: np.ndarray, id2label: Mapping[int, str], source: Path, path: Path) -> None:
    """With the very fields that place the image, so that every program puts the mask where it puts the image."""
    nibabel = require("nibabel")
    theirs, shape, _, _ = nifti_fields(source)
    is_second = theirs.sizeof_hdr == nibabel.Nifti2Header.sizeof_hdr
    header = (nibabel.Nifti2Header if is_second else nibabel.Nifti1Header)()
    header.set_data_shape(_as_stored(array, shape).shape)
    for name in _GEOMETRY:
        header[name] = theirs[name]
    header.set_data_dtype(array.dtype)
    if array.dtype.kind != "f":
        header.set_intent(_LABEL_INTENT, allow_unknown=True)
        names = json.dumps({"labels": dict(id2label)}).encode("ascii")
        header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", names))
    image = (nibabel.Nifti2Image if is_second else nibabel.Nifti1Image)(_as_stored(array, shape), None, header)
    nibabel.save(image, path)


def _as_stored(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The mask with the axes of length 1 that its image has, or has not."""
    return array.reshape(shape, order="F") if array.size == np.prod(shape) else array


def _write_itk(array: np.ndarray, source: Path, path: Path) -> None:
    sitk = require("SimpleITK")
    reader = sitk.ImageFileReader()
    reader.SetImageIO(_ITK[path.suffix])
    reader.SetFileName(str(source))
    reader.ReadImageInformation()
    axes = 3 if reader.GetDimension() == 4 and reader.GetSize()[3] > 1 else reader.GetDimension()
    shape = reader.GetSize()[:axes]
    image = sitk.GetImageFromArray(np.ascontiguousarray(array.reshape(shape, order="F").T), isVector=False)
    whole = np.reshape(reader.GetDirection(), (reader.GetDimension(),) * 2)
    image.SetSpacing(reader.GetSpacing()[:axes])
    image.SetOrigin(reader.GetOrigin()[:axes])
    image.SetDirection(whole[:axes, :axes].ravel().tolist())
    try:
        sitk.WriteImage(image, str(path), useCompression=True)
    except RuntimeError as error:
        raise OSError(f"{path} cannot be written; is the disk full?") from error


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
