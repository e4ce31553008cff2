"""The row format that every reader writes and everything downstream reads."""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import datasets
import numpy as np
from datasets.features.features import FeatureType

COLUMNS = ("image", "label", "domain", "patient", "name", "split")
SPLITS = ("train", "validation", "test")
# Free columns that this package reads; every other one is text.
TYPED_COLUMNS = {
    "spacing_mm": datasets.List(datasets.Value("float64")),  # along the array's axes: (H, W) of a slice
    "affine": datasets.List(datasets.Value("float64")),  # 16 numbers, by rows: voxel of `volume` to RAS mm
    "volume": datasets.Value("string"),  # the volume that a slice was cut from
    "slice_index": datasets.Value("int64"),
    "slice_axis": datasets.Value("int64"),  # axis of the volume's array
    "num_slices": datasets.Value("int64"),
    "labeled_order": datasets.Value("int64"),  # place among the domain's labeled images, for a fixed labeled subset
}


def row_features(image: FeatureType, label: FeatureType | None = None, free: Iterable[str] = ()) -> datasets.Features:
    """Typed columns of a row.

    Args:
        image: Feature of the image: `datasets.Image()`, `datasets.Nifti()` or an `ArrayND`.
        label: Feature of the label map; the image's own when None.
        free: Names of further columns: those of `TYPED_COLUMNS` as they are there, others text.

    Returns:
        `image`, `label` (may be null), `domain`, `patient`, `name` (unique within its domain), `split`
        ("train", "validation", "test", or "" for undecided), and the free columns.
    """
    texts = {column: datasets.Value("string") for column in COLUMNS[2:]}
    typed = {column: TYPED_COLUMNS.get(column, datasets.Value("string")) for column in free}
    return datasets.Features({"image": image, "label": image if label is None else label, **texts, **typed})


def require_columns(rows: datasets.Dataset, columns: Sequence[str] = COLUMNS) -> None:
    """Refuse rows that lack a column.

    Raises:
        ValueError: Naming the missing columns and those found.
    """
    missing = [column for column in columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"the rows lack the columns {missing} (found: {rows.column_names}); "
            f"rename or add them: a row has {', '.join(COLUMNS)}"
        )


def column_view(rows: datasets.Dataset, column: str, decode: bool = True) -> datasets.Dataset:
    """One column of `rows`, with arrays as numpy arrays and files decoded, or not, on access.

    Args:
        rows: The rows.
        column: Name of the column.
        decode: Decode `Image` and `Nifti` columns; otherwise their values are `{"path", "bytes"}`.
    """
    feature = rows.features[column]
    view = rows.select_columns([column]).with_format(None)
    if hasattr(feature, "decode"):
        return view.cast_column(column, replace(feature, decode=decode))
    # numpy for plain arrays only: it would cut the trailing zeros off the bytes of a file.
    return view.with_format("numpy")


def row_name(rows: datasets.Dataset, index: int) -> str:
    """Domain, name and files of a row, for messages; its number where it states no name."""
    known = [column for column in ("domain", "name") if column in rows.column_names]
    about = rows.select_columns(known).with_format(None)[index] if known else {}
    words = "/".join(about.values()) if about.get("name") and all(about.values()) else f"row {index}"
    files = []
    for column in ("image", "label"):
        if hasattr(rows.features.get(column), "decode"):
            path = (column_view(rows, column, decode=False)[index][column] or {}).get("path")
            files += [f"{column} {path}"] if path else []
    return words + (f" ({', '.join(files)})" if files else "")


def is_present(rows: datasets.Dataset, column: str, batch_size: int = 256) -> np.ndarray:
    """Which rows have a value in `column`, found without decoding it.

    Returns:
        Boolean array of shape (len(rows),); all False where the column itself is missing.
    """
    if column not in rows.column_names:
        return np.zeros(len(rows), dtype=bool)
    present = np.zeros(len(rows), dtype=bool)
    start = 0
    for batch in rows.select_columns([column]).with_format("arrow").iter(batch_size):
        values = batch.column(column).combine_chunks()
        valid = values.is_valid().to_numpy(zero_copy_only=False)
        if hasattr(rows.features[column], "decode"):
            # A reader may also write "nothing" as a file without path and content.
            parts = [values.field(part).is_valid().to_numpy(zero_copy_only=False) for part in ("path", "bytes")]
            valid = valid & (parts[0] | parts[1])
        present[start : start + len(valid)] = valid
        start += len(valid)
    return present
