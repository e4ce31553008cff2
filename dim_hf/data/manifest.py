"""The manifest: one table of images, label maps, domains, patients and splits, as CSV or parquet."""

import csv
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from dim_hf.data.limits import MAX_FILES
from dim_hf.data.parquet import check_parquet, read_shared
from dim_hf.data.rows import COLUMNS, SPLITS, TYPED_COLUMNS, row_features
from dim_hf.data.volumes.volume import is_volume_file, volume_stem
from dim_hf.whole_files import whole_file

SUFFIXES = (".csv", ".parquet")
NAMES = tuple(f"manifest{suffix}" for suffix in SUFFIXES)
REQUIRED = ("image", "domain")
_PATHS = ("image", "label")
_MEANT = ("mask", "masks", "labels", "segmentation", "Mask", "Labels")
_EXAMPLE = "image,label,domain,patient,split\nscans/a.png,masks/a.png,hospital_1,patient_7,train"
_MAX_COLUMNS = 1000
_MAX_TABLE_BYTES, _VALUE_BYTES = 2**31, 32  # of a parquet manifest in memory, and of each value beside its content
_MAX_FIELD = 2**17  # characters of a CSV field: longer ones are no manifest


def find_manifest(path: str | os.PathLike) -> Path | None:
    """The manifest that `path` names or holds, or None.

    Raises:
        ValueError: If a folder holds both `manifest.csv` and `manifest.parquet`.
    """
    path = Path(path)
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        return path
    found = [path / name for name in NAMES if (path / name).is_file()]
    if len(found) > 1:
        raise ValueError(f"{path} holds {found[0].name} and {found[1].name}; remove one or name the one that counts")
    return found[0] if found else None


def read_manifest(path: str | os.PathLike) -> datasets.Dataset:
    """Read a manifest; no image is opened.

    Columns: `image` and `domain` are required. `label` is empty where there is no mask; `patient` and `name` are by
    default the image's stem (`name` with its folders where stems repeat within a domain); `split` is empty, `train`,
    `validation` or `test`. Relative paths start at the manifest's folder. Further columns travel along: as text,
    those of `rows.TYPED_COLUMNS` as numbers (in a CSV, lists are written as JSON).

    Args:
        path: A `.csv` (UTF-8) or `.parquet` file.

    Returns:
        Rows in the order of the file, with `datasets.Image()` columns for pictures, or `datasets.Nifti()` columns for
        volumes.

    Raises:
        ValueError: Naming file, line, value and fix: no table, a column missing or named twice, an empty image or
            domain, an unknown split, a name twice in a domain, a number that is none, pictures and volumes mixed, or a
            volume that is no NIfTI file.
    """
    path = Path(os.path.abspath(path))
    read = {".csv": _read_csv, ".parquet": _read_parquet}.get(path.suffix.lower())
    if read is None:
        raise ValueError(f"{path} is no manifest: its name must end in {' or '.join(SUFFIXES)}")
    table = read(path)
    meant = next((column for column in _MEANT if column in table), None)
    if meant and "label" not in table:
        raise ValueError(f"{path} has a column {meant!r} and none named 'label', which holds the masks; rename it")
    missing = [column for column in REQUIRED if column not in table]
    if missing:
        raise ValueError(
            f"{path} lacks the columns {missing} (found: {list(table)}); a manifest begins like\n{_EXAMPLE}"
        )
    size = len(table["image"])
    if not size:
        raise ValueError(f"{path} has no rows; add one for each image, like\n{_EXAMPLE}")
    table = {column: table.get(column, [None] * size) for column in dict.fromkeys((*COLUMNS, *table))}
    _check_texts(table, path)
    _check_numbers(table, path)
    for column in _PATHS:
        table[column] = [_absolute(value, path.parent) for value in table[column]]
    _fill_names(table, path)
    feature = _image_feature(table, path)
    free = [column for column in table if column not in COLUMNS]
    return datasets.Dataset.from_dict(table, features=row_features(feature, free=free))


def write_manifest(rows: Mapping[str, Sequence[Any]], path: str | os.PathLike) -> Path:
    """Write a manifest: complete or not at all.

    Args:
        rows: Columns as `read_manifest` describes them, paths as they shall be written (relative ones with "/").
        path: A `.csv` or `.parquet` file; an existing one is replaced.

    Raises:
        ValueError: If the name ends otherwise.
    """
    path = Path(path)
    write = {".csv": _write_csv, ".parquet": _write_parquet}.get(path.suffix.lower())
    if write is None:
        raise ValueError(f"{path} cannot be a manifest: its name must end in {' or '.join(SUFFIXES)}")
    with whole_file(path) as partial:
        write(rows, partial)
    return path


def _read_csv(path: Path) -> dict[str, list]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            csv.field_size_limit(_MAX_FIELD)
            lines = csv.reader(file, strict=True)
            header = [_column(name.strip()) for name in next(lines, [])]
            _check_header(header, path)
            _check_separator(header, path)
            table: dict[str, list] = {name: [] for name in header}
            for values in lines:
                if not any(value.strip() for value in values):
                    continue  # spreadsheets leave empty lines
                if len(values) != len(header):
                    raise ValueError(
                        f"{path}, line {lines.line_num}: {len(values)} fields, but the header has {len(header)}; "
                        "quote fields that hold commas"
                    )
                for name, value in zip(header, values, strict=True):
                    table[name].append(_parse(name, value.strip(), f"{path}, line {lines.line_num}"))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as a table in UTF-8 ({error}); save it as CSV UTF-8") from error
    return table


def _column(name: str) -> str:
    """Columns of a row are known in any case."""
    return name.lower() if name.lower() in COLUMNS else name


def _check_separator(header: list[str], path: Path) -> None:
    for separator, word in ((";", "semicolons"), ("\t", "tabs")):
        if len(header) == 1 and separator in header[0]:
            raise ValueError(f"{path} is separated by {word}; save it as CSV with commas")


def _check_header(header: list[str], path: Path) -> None:
    if len(header) > _MAX_COLUMNS:
        raise ValueError(f"{path} has {len(header)} columns, more than the limit of {_MAX_COLUMNS}; remove some")
    twice = sorted(name for name, count in Counter(header).items() if count > 1)
    if twice:
        raise ValueError(f"{path} has the columns {twice} twice; rename or remove one of each")


def _parse(column: str, text: str, where: str) -> Any:
    """A field of a CSV as its column's type; empty is None."""
    if text == "" or column not in TYPED_COLUMNS or column == "volume":
        return text or None
    feature = TYPED_COLUMNS[column]
    try:
        if isinstance(feature, datasets.List):
            return _numbers(json.loads(text))
        number = float(text)
        if not number.is_integer() or abs(number) >= 2**63:
            raise ValueError(text)
        return int(number)
    except (ValueError, TypeError, RecursionError, OverflowError) as error:
        kind = "a list of numbers like [0.5, 0.5]" if isinstance(feature, datasets.List) else "a whole number"
        raise ValueError(f"{where}: {column} is {text!r}; write {kind} or leave it empty") from error


def _numbers(values: Any) -> list[float]:
    if not isinstance(values, list) or not all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        raise ValueError(values)
    return [float(value) for value in values]


def _check_numbers(table: dict[str, list], path: Path) -> None:
    """Spacings are lengths and affines 4 x 4 numbers: nothing is scored in mm by what is none."""
    for row, values in enumerate(table.get("spacing_mm", []), start=1):
        if values and not (_are_finite(values) and min(values) > 0):
            raise ValueError(f"{path}, row {row}: spacing_mm is {values!r}; write mm above 0, or leave it empty")
    for row, values in enumerate(table.get("affine", []), start=1):
        if values and not (_are_finite(values) and len(values) == 16):
            raise ValueError(f"{path}, row {row}: affine is {values!r}; write its 16 numbers, or leave it empty")


def _are_finite(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(v, int | float) and math.isfinite(v) for v in values)


def _read_parquet(path: Path) -> dict[str, list]:
    try:
        schema = pq.read_schema(path)
        names = [_column(name.strip()) for name in schema.names]
        _check_header(names, path)
        for name, kind in zip(names, schema.types, strict=True):
            if pa.types.is_nested(kind) and not isinstance(TYPED_COLUMNS.get(name), datasets.List):
                hint = (
                    "a manifest holds paths of files" if name in _PATHS else "write texts or numbers, or leave it out"
                )
                raise ValueError(f"{path}: {name} holds values of the type {kind}; {hint}")
        check_parquet([path], max_rows=MAX_FILES, max_bytes=_MAX_TABLE_BYTES, each=_VALUE_BYTES)
        columns = read_shared(path).columns
    except (OSError, pa.ArrowException) as error:
        raise ValueError(f"{path} cannot be read as parquet ({error}); write it again") from error
    return {name: _parquet_values(values, name, path) for name, values in zip(names, columns, strict=True)}


def _parquet_values(column: pa.ChunkedArray, name: str, path: Path) -> list:
    """Values of a column: texts without blanks around them, as in a CSV, unless they are typed."""
    is_typed = name in TYPED_COLUMNS
    values: list = []
    for chunk in column.chunks:
        if not pa.types.is_dictionary(chunk.type):
            values += [value if is_typed else _text(value, name, path) for value in chunk.to_pylist()]
            continue
        words = [_text(word, name, path) for word in chunk.dictionary.to_pylist()]
        values += [None if index is None else words[index] for index in chunk.indices.to_pylist()]
    return values


def _text(value: Any, column: str, path: Path) -> str | None:
    """A value as a CSV would hold it; an empty one is None."""
    if value is None:
        return None
    if column in _PATHS and not isinstance(value, str):
        raise ValueError(f"{path}: {column} holds {type(value).__name__} values; a manifest holds paths of files")
    return str(value).strip() or None


def _check_texts(table: dict[str, list], path: Path) -> None:
    """Required values are there, and splits are known; missing texts become ''."""
    for column in REQUIRED:
        if None in table[column] or "" in table[column]:
            row = next(i for i, value in enumerate(table[column], start=1) if not value)
            raise ValueError(f"{path}, row {row}: {column} is empty; fill it in or remove the row")
    table["split"] = [value or "" for value in table["split"]]
    for row, split in enumerate(table["split"], start=1):
        if split not in ("", *SPLITS):
            raise ValueError(f"{path}, row {row}: split is {split!r}; use one of {', '.join(SPLITS)}, or nothing")


def _absolute(value: str | None, folder: Path) -> str | None:
    if value and os.sep == "/" and "\\" in value:
        raise ValueError(f"the manifest in {folder} has the path {value!r}; write paths with /, not \\")
    return os.path.normpath(folder / value) if value else None


def _fill_names(table: dict[str, list], path: Path) -> None:
    stems = [volume_stem(image) for image in table["image"]]
    own_names = [name or stem for name, stem in zip(table["name"], stems, strict=True)]
    keys = list(zip(table["domain"], own_names, strict=True))
    if len(set(keys)) != len(keys) and not any(table["name"]):
        # The same stem in the folders of two patients: the path says which is which.
        own_names = [_relative_stem(image, path.parent) for image in table["image"]]
        keys = list(zip(table["domain"], own_names, strict=True))
    seen: dict[tuple[str, str], int] = {}
    for row, key in enumerate(keys, start=1):
        if key in seen:
            raise ValueError(
                f"{path}: rows {seen[key]} and {row} both name {key[1]!r} in domain {key[0]!r}; remove one, or give "
                "each a name of its own in the column `name`"
            )
        seen[key] = row
    table["name"] = own_names
    table["patient"] = [patient or name for patient, name in zip(table["patient"], own_names, strict=True)]


def _relative_stem(image: str, folder: Path) -> str:
    relative = Path(os.path.relpath(image, folder))
    return (relative.parent / volume_stem(image)).as_posix()


def _image_feature(table: dict[str, list], path: Path) -> datasets.Image | datasets.Nifti:
    files = [value for column in _PATHS for value in table[column] if value]
    volumes = [is_volume_file(file) for file in files]
    if not any(volumes):
        return datasets.Image()
    if not all(volumes):
        raise ValueError(
            f"{path} mixes volumes and pictures, such as {files[volumes.index(True)]} and "
            f"{files[volumes.index(False)]}; put them into two manifests"
        )
    other = next((file for file in files if not file.lower().endswith((".nii", ".nii.gz"))), None)
    if other:
        raise ValueError(
            f"{path} names {other}, which is no NIfTI file; `dim-hf import folders` converts volumes, or write .nii.gz"
        )
    return datasets.Nifti()


def _write_csv(rows: Mapping[str, Sequence[Any]], path: Path) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(rows)
        writer.writerows([_as_text(value) for value in values] for values in zip(*rows.values(), strict=True))


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return json.dumps(list(value)) if isinstance(value, list | tuple) else str(value)


def _write_parquet(rows: Mapping[str, Sequence[Any]], path: Path) -> None:
    schema = pa.schema([(name, _arrow_type(name)) for name in rows])
    pq.write_table(pa.table({name: list(values) for name, values in rows.items()}, schema=schema), path)


def _arrow_type(column: str) -> pa.DataType:
    feature = TYPED_COLUMNS.get(column)
    if isinstance(feature, datasets.List):
        return pa.list_(pa.float64())
    return pa.int64() if feature is not None and feature.dtype == "int64" else pa.string()


def relative_path(file: str | os.PathLike, folder: str | os.PathLike) -> str:
    """Path of `file` as a manifest in `folder` writes it: relative with "/" where it lies below, else absolute."""
    file, folder = Path(os.path.abspath(file)), Path(os.path.abspath(folder))
    return file.relative_to(folder).as_posix() if file.is_relative_to(folder) else str(file)


def columns_of(rows: Iterable[Mapping[str, Any]], free: Iterable[str]) -> dict[str, list]:
    """Records as columns: those of every row, then the free ones (None where a record lacks one)."""
    rows = list(rows)
    return {column: [row.get(column) for row in rows] for column in (*COLUMNS, *free)}
