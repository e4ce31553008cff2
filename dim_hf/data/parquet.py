"""How much parquet files unpack to, found before: a value that is stored once may stand in millions of rows."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_BATCH = 1024
_TEXT = "BYTE_ARRAY"
_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8}


def check_parquet(paths: Iterable[str | os.PathLike], *, max_rows: int, max_bytes: int, each: int = 0) -> None:
    """Refuse files whose rows would fill the memory or the disk.

    Args:
        paths: The files of one table.
        max_rows: Largest allowed number of rows of all files together.
        max_bytes: Largest allowed size of all values together, each as often as it stands in a row.
        each: Bytes that a value takes beside its content.

    Raises:
        ValueError: Naming the file at which a limit is passed.
        OSError: If one cannot be read; and `pyarrow.ArrowException`, if it is no parquet.
    """
    rows = size = 0
    for path in paths:
        metadata = pq.read_metadata(path)
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        rows += max(metadata.num_rows, sum(group.num_rows for group in groups))
        if rows > max_rows:
            raise ValueError(f"{path} has {rows} rows, more than the limit of {max_rows}; split it")
        places = range(metadata.num_columns)
        size += each * sum(group.column(place).num_values for group in groups for place in places)
        most = sum(_most_bytes(metadata, group.column(place), place) for group in groups for place in places)
        # Looked at closely where it may matter only: that takes as long as reading the file.
        for part in [most] if size + most <= max_bytes else _sizes(Path(path), metadata):
            size += part
            if size > max_bytes:
                raise ValueError(
                    f"{path} unpacks to {size} bytes or more, which is above the limit of {max_bytes}; if it is "
                    "trustworthy, write it with fewer rows or shorter values"
                )


def read_shared(path: str | os.PathLike) -> pa.Table:
    """A checked file of flat columns and lists of numbers, with texts as dictionaries: each is in memory once."""
    return pq.ParquetFile(path, memory_map=True, read_dictionary=_texts(pq.read_metadata(path))).read()


def _texts(metadata: pq.FileMetaData) -> list[str]:
    schema = metadata.schema
    columns = [schema.column(number) for number in range(len(schema))]
    return [column.path for column in columns if column.physical_type == _TEXT]


def _most_bytes(metadata: pq.FileMetaData, column: pq.ColumnChunkMetaData, place: int) -> int:
    """What the values of a column in a group of rows take at most."""
    if column.physical_type != _TEXT:
        return column.num_values * _WIDTHS.get(column.physical_type, metadata.schema.column(place).length)
    return column.total_uncompressed_size * (max(column.num_values, 1) if column.has_dictionary_page else 1)


def _sizes(path: Path, metadata: pq.FileMetaData) -> Iterator[int]:
    """What the values of each column of each group of rows take, texts counted one by one."""
    file = pq.ParquetFile(path, memory_map=True, read_dictionary=_texts(metadata))
    for number in range(metadata.num_row_groups):
        for place in range(metadata.num_columns):
            column = metadata.row_group(number).column(place)
            if column.physical_type != _TEXT or not column.has_dictionary_page:
                yield _most_bytes(metadata, column, place)
                continue
            for batch in file.iter_batches(_BATCH, row_groups=[number], columns=[column.path_in_schema]):
                yield sum(map(_text_bytes, batch.columns))


def _text_bytes(values: pa.Array) -> int:
    """Bytes of all texts in nested arrays, each as often as it occurs."""
    if pa.types.is_dictionary(values.type):
        lengths = pc.binary_length(values.dictionary).cast(pa.int64())
        return pc.sum(pc.take(lengths, values.indices)).as_py() or 0
    if pa.types.is_struct(values.type):
        return sum(map(_text_bytes, values.flatten()))
    if pa.types.is_list(values.type) or pa.types.is_large_list(values.type) or pa.types.is_map(values.type):
        parts = [values.keys, values.items] if pa.types.is_map(values.type) else [values.values]
        return sum(map(_text_bytes, parts))
    return values.nbytes
