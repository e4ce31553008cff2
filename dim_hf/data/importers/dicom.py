"""Reads folders of DICOM series; patients become pseudonyms."""

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dim_hf.data.importers.cases import Case, Found, ImportOptions, Layout
from dim_hf.data.patients import compile_pattern, patient_of
from dim_hf.data.volumes.header import require
from dim_hf.data.volumes.locales import kept_locale
from dim_hf.data.volumes.volume import Volume, find_dicom_series, read_dicom_series
from dim_hf.metrics.cases import default_structures

_TREE = "<domain>/<any folders>/<files of DICOM series>"
_IMAGE_TYPE, _PATIENT_ID, _SERIES_NUMBER = "0008|0008", "0010|0020", "0020|0011"
_MODALITY = "0008|0060"
_COLUMNS = {"modality": _MODALITY, "manufacturer": "0008|0070", "magnetic_field_strength": "0018|0087"}
# Objects that refer to images, or are computed from them.
_NO_IMAGES = ("SEG", "SR", "PR", "KO", "REG", "DOC", "RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD")


@dataclass(frozen=True)
class _Series:
    uid: str
    files: tuple[Path, ...]
    tags: Mapping[str, str]

    @property
    def folder(self) -> Path:
        return self.files[0].parent

    @property
    def number(self) -> int:
        text = self.tags.get(_SERIES_NUMBER, "")
        return int(text) if text.lstrip("+-").isdecimal() else 0


def find_dicom(root: Path, options: ImportOptions) -> Found:
    """Find the image series below a folder: each is one unlabeled volume.

    Each folder directly below `root` is a domain. All is one domain if the options name it, if files lie in `root`
    itself, or if the folders below `root` hold series of one patient. Localizers are left out, and so is what is no
    image; masks, such as RTSTRUCT and SEG, are not read.

    Nothing that names a person is kept: the patient is "p" and the first 12 digits of the SHA-256 of the PatientID.
    That is a pseudonym and not anonymity: who knows a patient's ID, or can guess it, can compute it. Where there is no
    PatientID, it is the name of the folder below the domain, as it stands.

    Args:
        root: The folder.
        options: `domain`, `class_names` and `structures` are used, and `patient_pattern`, which is searched in the
            path of a series' folder below `root` and then goes before the PatientID.

    Raises:
        ValueError: If there is no image series, or the files of one lie in several domains.
        ImportError: If the extra `volumes` is not installed.
    """
    root = Path(os.path.abspath(root))
    series, left_out = _image_series(root)
    domain = options.domain or ("dicom" if _is_one_domain(series, root) else None)
    named = [(domain or _top_folder(one, root), _patient(one, root, domain is None, options), one) for one in series]
    cases, seen = [], Counter()
    for place, patient, one in sorted(named, key=lambda item: (*item[:2], item[2].number, item[2].uid)):
        name = f"{patient}_{one.number}"
        seen[place, name] += 1
        if seen[place, name] > 1:
            name = f"{name}-{seen[place, name]}"
        columns = {column: one.tags[tag] for column, tag in _COLUMNS.items() if one.tags.get(tag)}
        cases.append(Case(place, patient, name, "", one.folder, partial(_read, one.files), columns=columns))
    id2label = dict(enumerate(options.class_names or ("background", "foreground")))
    return Found(
        cases=sorted(cases, key=lambda case: (case.domain, case.name)),
        id2label=id2label,
        structures=options.structures or default_structures(id2label),
        label_values={},
        num_channels=1,
        spatial_dims=3,
        split_rule="nothing is published; the split is open",
        notes=_notes(series, left_out, options),
    )


def _image_series(root: Path) -> tuple[list[_Series], int]:
    """The series that are images, and the number of those left out."""
    found = [_Series(uid, tuple(files), _tags(files[0])) for uid, files in find_dicom_series(root).items()]
    series = [one for one in found if _is_image(one.tags)]
    if not series:
        others = f" but {len(found)} series that are none" if found else ""
        raise ValueError(f"{root} holds no DICOM image series{others}; the layout is {_TREE}")
    return series, len(found) - len(series)


@kept_locale()
def _tags(file: Path) -> dict[str, str]:
    """Tags of a file as text; none where it is no image that can be read."""
    reader = require("SimpleITK").ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(file))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        return {}
    # Bytes of another character set than stated come out as halves of characters, which no manifest can hold.
    texts = {key: reader.GetMetaData(key).encode("utf-8", "replace").decode() for key in reader.GetMetaDataKeys()}
    return {key: " ".join(text.strip(" \0").split()) for key, text in texts.items()}


def _is_image(tags: Mapping[str, str]) -> bool:
    return bool(tags) and tags.get(_MODALITY) not in _NO_IMAGES and "LOCALIZER" not in tags.get(_IMAGE_TYPE, "")


def _is_one_domain(series: Sequence[_Series], root: Path) -> bool:
    folders = {file.parent for one in series for file in one.files}
    if root in folders:
        return True
    patients = {one.tags.get(_PATIENT_ID) for one in series}
    return len(patients) == 1 and None not in patients and all(folder.parent == root for folder in folders)


def _top_folder(series: _Series, root: Path) -> str:
    tops = sorted({file.relative_to(root).parts[0] for file in series.files})
    if len(tops) > 1:
        raise ValueError(
            f"{root}: the folders {tops[0]} and {tops[1]} both hold files of series {series.uid}; remove the copy, or "
            "name one domain with --domain"
        )
    return tops[0]


def _patient(series: _Series, root: Path, below_domain: bool, options: ImportOptions) -> str:
    pattern = compile_pattern(options.patient_pattern)
    parts = series.folder.relative_to(root).parts
    if pattern is not None:
        return patient_of(series.folder, "/".join(parts), pattern)
    if patient_id := series.tags.get(_PATIENT_ID):
        return "p" + hashlib.sha256(patient_id.encode()).hexdigest()[:12]
    # The folder of the patient, or of the series if there is no other.
    return [root.name, *parts][min(len(parts), 2 if below_domain else 1)]


def _notes(series: Sequence[_Series], left_out: int, options: ImportOptions) -> tuple[str, ...]:
    notes = ["DICOM objects that hold masks (RTSTRUCT, SEG) are not read: all images are unlabeled"]
    if options.patient_pattern is None:
        notes.append("patients are pseudonyms: p and 12 digits of the SHA-256 of the PatientID, which can be guessed")
        without = sum(not one.tags.get(_PATIENT_ID) for one in series)
        if without:
            notes.append(f"{without} series have no PatientID; their patient is the name of a folder, as it stands")
    if left_out:
        notes.append(f"{left_out} series are localizers or no images and were left out")
    return tuple(notes)


def _read(files: Sequence[Path]) -> tuple[Volume, None]:
    return read_dicom_series(files), None


DICOM = Layout("dicom", _TREE, find_dicom, ("domain", "patient_pattern", "class_names", "structures"))
