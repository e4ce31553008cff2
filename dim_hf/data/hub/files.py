"""The files of a data set on the Hub: parquet that holds every image, and no path of the machine it was written on."""

import os
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets.features.features import require_storage_embed
from tqdm.auto import tqdm

from dim_hf.data.description import DatasetDescription
from dim_hf.data.rows import COLUMNS, SPLITS, column_view, is_present

DATA_FOLDER = "data"
MAX_SHARD_BYTES = 500_000_000
UNDECIDED = "train"
"""The split whose files hold the rows of no split; their `split` column stays empty."""
_NO_LICENCE = ("", "unknown", "none", "n/a")
_MAX_CONFIG_NAME = 96
_ROW_GROUP_BYTES = 2**25
_ROW_GROUP_ROWS = 100
_MAX_FILE_BYTES = 2**31 - 1  # what a binary value of parquet's readers can hold
# A whole value that is a path of this machine, and such a path within a sentence.
_LOCAL_PATH = r"^(/[^/]+/|[A-Za-z]:[\\/]|\\\\|file:|~[\\/])"
_LOCAL_PATH_IN_TEXT = re.compile(
    r"""(?:^|[\s"'(=,;])(?:/(?:data|home|media|mnt|opt|private|root|scratch|srv|tmp|Users|var|Volumes|work)/"""
    r"""|[A-Za-z]:\\|\\\\\w|file://|~/)"""
)


@dataclass(frozen=True)
class Part:
    """The files of one configuration's split.

    Attributes:
        config: Name of the configuration.
        split: "train", "validation" or "test".
        num_rows: Rows in all its files.
        num_bytes: Their size in memory.
        files: Paths relative to the repository.
    """

    config: str
    split: str
    num_rows: int
    num_bytes: int
    files: tuple[str, ...]


def config_names(domains: Iterable[str]) -> dict[str, str]:
    """The configuration of each domain: its name in ASCII letters, digits, "_", "-" and ".".

    Returns:
        Domain → configuration, sorted by domain.

    Raises:
        ValueError: If nothing is left of a name, it is longer than 96 characters, or two are the same but for case.
    """
    names: dict[str, str] = {}
    taken: dict[str, str] = {}
    for domain in sorted(set(domains)):
        plain = unicodedata.normalize("NFKD", domain).encode("ascii", "ignore").decode()
        # Files whose names begin with "." or "__" are overlooked by readers.
        name = re.sub(r"[^A-Za-z0-9_.-]+", "_", plain).strip("._-")
        if not name or len(name) > _MAX_CONFIG_NAME:
            raise ValueError(
                f"domain {domain!r} cannot name a configuration (1 to {_MAX_CONFIG_NAME} letters, digits, _, -, .); "
                "rename the domain"
            )
        other = taken.setdefault(name.casefold(), domain)
        if other != domain:
            raise ValueError(f"domains {other!r} and {domain!r} would both be configuration {name!r}; rename one")
        names[domain] = name
    return names


def description_obstacles(description: DatasetDescription) -> list[str]:
    """Everything in a description that keeps it from being published, each as a sentence with its fix."""
    obstacles = []
    if description.licence.strip().lower() in _NO_LICENCE:
        obstacles.append("the licence is empty; give the one that the data's owner chose, e.g. --licence cc-by-4.0")
    if not any(source.strip() for source in description.source):
        obstacles.append(
            "the source is empty; say where the data come from (--origin, or `source` of the description)"
        )
    return obstacles + _local_paths("description", _texts(asdict(description)))


def find_obstacles(rows: datasets.Dataset, description: DatasetDescription, faults: Iterable[str] = ()) -> list[str]:
    """Everything that keeps rows and description from being published, each as a sentence with its fix.

    No file is opened; `checks.find_faults` does that. Known `faults` are looked through for local paths.
    """
    obstacles = description_obstacles(description) + _local_paths("list of known faults", faults)
    missing = [column for column in COLUMNS if column not in rows.column_names]
    if missing or not len(rows):
        found = f"the rows lack the columns {missing}" if missing else "there are no rows"
        return [*obstacles, f"{found}; read the data with a reader of this package"]
    return obstacles + _obstacles_of_rows(rows)


def _local_paths(where: str, texts: Iterable[str]) -> list[str]:
    local = [text for text in texts if _LOCAL_PATH_IN_TEXT.search(text)]
    return [f"the {where} names a local path ({text!r}); remove it" for text in local]


def without_folders(texts: Iterable[str], rows: datasets.Dataset) -> list[str]:
    """Texts in which the files of the rows go by their bare names."""
    folders: set[str] = set()
    for column in ("image", "label"):
        if hasattr(rows.features[column], "embed_storage"):
            files = column_view(rows, column, decode=False).with_format("arrow")
            for batch in files.iter(1000):
                paths = batch.column(column).combine_chunks().field("path")
                folders |= {os.path.dirname(path) for path in paths.drop_null().unique().to_pylist()}
    # The innermost first: it begins with the others.
    ordered = sorted((folder.rstrip("/\\") for folder in folders), key=len, reverse=True)
    known = re.compile("|".join(f"{re.escape(folder)}[\\\\/]" for folder in ordered if folder) or "(?!)")
    return [known.sub("", text) for text in texts]


def _texts(value: object) -> Iterator[str]:
    """All strings in nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from _texts([*value, *value.values()])
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)


def _obstacles_of_rows(rows: datasets.Dataset) -> list[str]:
    obstacles = []
    texts = [c for c, f in rows.features.items() if getattr(f, "dtype", None) in ("string", "large_string")]
    untyped = [column for column in COLUMNS[2:] if column not in texts]
    if untyped:
        return [f"the columns {untyped} are no text; cast them to strings"]
    table = rows.select_columns(texts).with_format("arrow")[:]
    for column in texts:
        values = table.column(column)
        if column in COLUMNS and values.null_count:
            obstacles.append(f"column {column!r} is null in {values.null_count} rows; fill them in")
        local = values.filter(pc.match_substring_regex(values, _LOCAL_PATH))
        if len(local):
            obstacles.append(
                f"column {column!r} holds local paths such as {local[0].as_py()!r} ({len(local)} rows); "
                "keep the file's name or drop the column"
            )
    cases = Counter(zip(table["domain"].to_pylist(), table["name"].to_pylist(), strict=True))
    twice = sorted(f"{domain}/{name}" for (domain, name), count in cases.items() if count > 1)
    if twice:
        obstacles.append(f"{len(twice)} names occur twice in their domain, such as {twice[0]}; make them unique")
    unknown = sorted({str(split) for split in table["split"].to_pylist()} - {"", "None", *SPLITS})
    if unknown:
        obstacles.append(f"the splits {unknown} are unknown; use {', '.join(SPLITS)} or an empty text")
    without = int((~is_present(rows, "image")).sum())
    if without:
        obstacles.append(f"{without} rows have no image; remove them")
    nested = [c for c, f in rows.features.items() if require_storage_embed(f) and not hasattr(f, "embed_storage")]
    if nested:
        obstacles.append(f"the columns {nested} hold files within lists; give each file a column of its own")
    try:
        config_names(domain for domain in table["domain"].to_pylist() if domain is not None)
    except ValueError as error:
        obstacles.append(str(error))
    return obstacles


def write_parts(
    rows: datasets.Dataset,
    folder: Path,
    *,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = True,
) -> list[Part]:
    """Write `data/<configuration>/<split>-<number>-of-<count>.parquet` below `folder`, images inside.

    Equal rows give equal files. A file of an image keeps its content byte for byte, and of its path the bare name.

    Args:
        rows: Rows without obstacles.
        folder: Folder that becomes the repository.
        max_shard_bytes: A further file is begun when one holds as much.
        progress: Show a progress bar.

    Returns:
        The parts, by configuration and split in the order of `rows.SPLITS`; a part without rows is left out.

    Raises:
        ValueError: If the file of an image is missing, remote or larger than 2 GB; it is named.
    """
    members: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, (domain, split) in enumerate(zip(rows["domain"], rows["split"], strict=True)):
        members[domain, split or UNDECIDED].append(index)
    parts = []
    with tqdm(total=len(rows), desc="writing parquet", unit="row", disable=not progress) as bar:
        for domain, config in config_names(domain for domain, _ in members).items():
            for split in SPLITS:
                indices = members.get((domain, split), [])
                if indices:
                    path = folder / DATA_FOLDER / config
                    written = _write_shards(rows.select(indices), path, split, max_shard_bytes, bar)
                    files = tuple(file.relative_to(folder).as_posix() for file in written[0])
                    parts.append(Part(config, split, len(indices), written[1], files))
    return parts


def _write_shards(
    rows: datasets.Dataset, folder: Path, split: str, max_shard_bytes: int, bar: tqdm
) -> tuple[list[Path], int]:
    """Files of one part, and their size in memory."""
    folder.mkdir(parents=True, exist_ok=True)
    partial: list[Path] = []
    total = held = 0
    writer: pq.ParquetWriter | None = None
    try:
        for table in _row_groups(rows, min(_ROW_GROUP_BYTES, max_shard_bytes), bar):
            if writer is None or held >= max_shard_bytes:
                if writer is not None:
                    writer.close()
                partial.append(folder / f"{split}-{len(partial):05d}.partial")
                # Chunks by content: a later push sends only what has changed.
                writer = pq.ParquetWriter(
                    partial[-1], table.schema, use_content_defined_chunking=True, write_page_index=True
                )
                held = 0
            writer.write_table(table)
            held += table.nbytes
            total += table.nbytes
    finally:
        if writer is not None:
            writer.close()
    files = [folder / f"{split}-{i:05d}-of-{len(partial):05d}.parquet" for i in range(len(partial))]
    for old, new in zip(partial, files, strict=True):
        old.replace(new)
    return files, total


def _row_groups(rows: datasets.Dataset, max_bytes: int, bar: tqdm) -> Iterator[pa.Table]:
    """Tables of a few rows with their files inside, so that no more than one group is in memory."""
    schema = rows.features.arrow_schema
    files = {column: feature for column, feature in rows.features.items() if hasattr(feature, "embed_storage")}
    held: list[pa.Table] = []
    for row in rows.with_format("arrow").iter(1):
        arrays = [_with_content(row[c], files[c]) if c in files else row[c] for c in schema.names]
        held.append(pa.Table.from_arrays(arrays, schema=schema))
        bar.update()
        if len(held) == _ROW_GROUP_ROWS or sum(table.nbytes for table in held) >= max_bytes:
            yield pa.concat_tables(held).combine_chunks()
            held = []
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _with_content(values: pa.ChunkedArray, feature: object) -> pa.Array:
    """A file's column with content and bare names; a file without path and content is null."""
    files = [_content(value) for value in values.to_pylist()]
    return pa.array(files, type=feature.pa_type)


def _content(value: dict | None) -> dict | None:
    if value is None or (value["bytes"] is None and value["path"] is None):
        return None
    path, content = value["path"], value["bytes"]
    if content is None:
        if "://" in path:
            raise ValueError(f"{path} is not on this machine; download it before pushing")
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise ValueError(
                f"{path} cannot be read ({error.strerror}); restore the file or remove the row"
            ) from error
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"{path} has {len(content)} bytes, more than parquet can hold (2 GB); split or compress it")
    return {"bytes": content, "path": re.split(r"[\\/]|::", path)[-1] if path else None}
