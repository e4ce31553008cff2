"""Loads a data set of the Hub, whoever pushed it: parquet of the repository, and nothing else."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.compute as pc
import yaml
from datasets.features.features import require_storage_embed
from huggingface_hub import snapshot_download

from dim_hf.data.archives import MAX_RATIO, RATIO_FREE_BYTES
from dim_hf.data.description import FILE_NAME, DatasetDescription, read_description
from dim_hf.data.hub.errors import check_repo_id, hub_errors
from dim_hf.data.limits import MAX_FILES, MAX_UNPACKED_BYTES
from dim_hf.data.parquet import check_parquet
from dim_hf.data.rows import COLUMNS, SPLITS, require_columns
from dim_hf.data.texts import first_line

_SPLIT_NAMES = {"train": "train", "training": "train", "validation": "validation", "valid": "validation",
                "val": "validation", "dev": "validation", "test": "test", "testing": "test"}  # fmt: skip
_PIXELS = (datasets.Image, datasets.Nifti, datasets.Array2D, datasets.Array3D, datasets.Array4D)
_MAX_README = 2**20
_CONFIG_NAME = re.compile(r"[A-Za-z0-9_-][\w.-]*", re.ASCII)
_ELSEWHERE = re.compile(r"^[/~\\]|://|::|(^|[/\\])\.\.([/\\]|$)")


def load_hub_dataset(
    repo_id: str, *, revision: str | None = None, token: str | None = None, cache_dir: str | None = None
) -> tuple[datasets.Dataset, DatasetDescription | None]:
    """Load every configuration and split of a data set of the Hub, from its parquet files alone.

    The files are kept in the Hub's cache: a commit that was loaded once loads without a network. Rows are mapped from
    disk, so no image is in memory. Nothing of the repository is executed, and rows that point to files or addresses
    instead of holding their images are refused.

    Args:
        repo_id: `org/name`, or `org/name@revision`.
        revision: Commit, branch or tag; the main branch when None.
        token: Token with the right to read; the one of `hf auth login` or `HF_TOKEN` when None.
        cache_dir: Folder of the cache; the usual ones of huggingface_hub and datasets when None.

    Returns:
        Rows, by configuration and split as the repository lists them, and the description where the repository has
        one. Missing columns are filled in: `domain` by the configuration, `split` by the split (empty where the
        repository has nothing but `train`, or the name is another), `name` by configuration, split and
        number, `patient` and `label` by nothing.

    Raises:
        ValueError: If there is no such data set or revision, the token does not suffice, a file cannot be read, or
            rows lack an image.
        ConnectionError: If the Hub cannot be reached and the data set is not in the cache.
    """
    name, _, pinned = repo_id.partition("@")
    check_repo_id(name)
    if pinned and revision and pinned != revision:
        raise ValueError(f"{repo_id!r} and revision {revision!r} name two revisions; give one of them")
    revision = revision or pinned or None
    where = f"{name}@{revision}" if revision else name
    with hub_errors(where, "loaded"):
        folder = snapshot_download(
            name,
            repo_type="dataset",
            revision=revision,
            token=token,
            cache_dir=cache_dir and f"{cache_dir}/hub",
            allow_patterns=["*.parquet", "README.md", FILE_NAME],
        )
    _check_readme(Path(folder) / "README.md", where)
    loaded = _load_parquet(Path(folder), where, cache_dir and f"{cache_dir}/datasets")
    only_train = {split for _, split, _ in loaded} == {"train"}
    parts = [_completed(rows, config, "" if only_train else split, where) for config, split, rows in loaded]
    rows = _concatenated(parts, where)
    beside = Path(folder) / FILE_NAME
    return rows, read_description(beside) if beside.is_file() else None


class _PlainLoader(yaml.SafeLoader):
    """YAML without aliases, which can make a kilobyte into gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases are not read")
        return super().compose_node(parent, index)


def _check_readme(readme: Path, where: str) -> None:
    """Refuse a front matter that names data elsewhere before `datasets` follows it: addresses, other folders."""
    if not readme.is_file():
        return
    try:
        if readme.stat().st_size > _MAX_README:
            raise ValueError(f"its README has more than {_MAX_README} bytes")
        parts = readme.read_text(encoding="utf-8").split("---\n", 2)
        front = yaml.load(parts[1], Loader=_PlainLoader) if len(parts) == 3 and not parts[0].strip() else {}
        configs = front.get("configs") or [] if isinstance(front, dict) else []
        for config in configs:
            if not _CONFIG_NAME.fullmatch(str(config.get("config_name", "default"))):
                raise ValueError(f"its README has the configuration name {config['config_name']!r}")
            for pattern in _texts_in([config.get("data_files"), config.get("data_dir")]):
                if _ELSEWHERE.search(pattern):
                    raise ValueError(f"its README names {pattern!r} as data")
    except (OSError, UnicodeDecodeError, yaml.YAMLError, AttributeError, RecursionError) as error:
        problem = f"its README cannot be read ({first_line(error, '')})"
        raise ValueError(f"{where}: {problem}; only parquet files of the repository are read") from error
    except ValueError as error:
        raise ValueError(f"{where}: {error}; only parquet files of the repository are read") from error


def _texts_in(value: Any) -> Iterator[str]:
    """All texts of nested lists and mappings."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _texts_in(part)
    elif isinstance(value, list):
        for part in value:
            yield from _texts_in(part)


def _load_parquet(folder: Path, where: str, cache_dir: str | None) -> list[tuple[str, str, datasets.Dataset]]:
    """Configuration, split and rows of all parts."""
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise ValueError(f"{where} holds no parquet files; push it with examples/push_dataset.py or `push_to_hub`")
    parts = []
    _check_extent(files)
    with _read_errors(folder, where):
        builders = [
            datasets.load_dataset_builder(str(folder), config, cache_dir=cache_dir)
            for config in datasets.get_dataset_config_names(str(folder))
        ]
    for builder in builders:
        _refuse_foreign_files(builder, folder, where)
    for builder in builders:
        with _read_errors(folder, where):
            builder.download_and_prepare()
            splits = builder.as_dataset()
        parts += [(builder.config.name, str(split), rows) for split, rows in splits.items()]
    return parts


def _check_extent(files: Sequence[Path]) -> None:
    """Refuse what would unpack to more than an archive may, but for twice what was downloaded."""
    packed = sum(file.stat().st_size for file in files)
    most = max(RATIO_FREE_BYTES, 2 * packed, min(MAX_RATIO * packed, MAX_UNPACKED_BYTES))
    with suppress(OSError, pa.ArrowException):  # the reader says what is wrong
        check_parquet(files, max_rows=MAX_FILES, max_bytes=most)


@contextmanager
def _read_errors(folder: Path, where: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # what strangers write into a README or a file fails in any way
        cause = error.__cause__ or error
        raise ValueError(
            f"{where} cannot be read ({type(cause).__name__}: {first_line(cause, '')}); its files or its README are "
            f"damaged: remove {folder.parents[1]} and load again, or push the data set anew"
        ) from error


def _refuse_foreign_files(builder: datasets.DatasetBuilder, folder: Path, where: str) -> None:
    """A README may name any path or address as data: only parquet of the repository itself is read."""
    files = [str(file) for paths in (builder.config.data_files or {}).values() for file in paths]
    inside = (Path(folder).absolute(), Path(folder).resolve())
    foreign = [file for file in files if not any(Path(file).is_relative_to(root) for root in inside) or ".." in file]
    if builder.name != "parquet" or foreign:
        named = foreign[0] if foreign else f"files of the kind {builder.name!r}"
        raise ValueError(f"{where}: its README names {named} as data; only parquet files of the repository are read")


def _completed(rows: datasets.Dataset, config: str, split: str, where: str) -> datasets.Dataset:
    """Rows of one part with every column but the image, safe to decode."""
    _refuse_paths(rows, where)
    require_columns(rows, ["image"])
    numbers = [f"{config}_{split or 'row'}_{index:06d}" for index in range(len(rows))]
    fill = {
        "domain": [config] * len(rows),
        "patient": [""] * len(rows),
        "name": numbers,
        "split": [_SPLIT_NAMES.get(split, "")] * len(rows),
    }
    for column, values in fill.items():
        if column not in rows.column_names:
            rows = rows.add_column(column, values, feature=datasets.Value("string"))
        if rows.features[column] == datasets.Value("large_string"):
            rows = rows.cast_column(column, datasets.Value("string"))
        if rows.features[column] != datasets.Value("string"):
            raise ValueError(f"{where}: column {column!r} is {rows.features[column]}, no text; push it as text")
        if rows.data.column(column).null_count:
            raise ValueError(f"{where}: column {column!r} is null in some rows of {config!r}; push it filled in")
    unknown = sorted(set(rows["split"]) - {"", *SPLITS})
    if unknown:
        raise ValueError(f"{where}: the splits {unknown} are unknown; push them as {', '.join(SPLITS)} or nothing")
    if "label" not in rows.column_names:
        rows = rows.add_column("label", [None] * len(rows), feature=rows.features["image"])
    return rows


def _refuse_paths(rows: datasets.Dataset, where: str) -> None:
    """Only content that came with the repository is decoded: a path may name any file of this machine."""
    for column, feature in rows.features.items():
        if hasattr(feature, "embed_storage"):
            for chunk in rows.data.column(column).chunks:
                held = [chunk.is_valid(), chunk.field("bytes").is_null(), chunk.field("path").is_valid()]
                if pc.any(pc.and_(pc.and_(held[0], held[1]), held[2])).as_py():
                    raise ValueError(
                        f"{where}: column {column!r} holds paths or addresses instead of files, which are not "
                        "followed; push it with the files inside, e.g. by examples/push_dataset.py"
                    )
        elif require_storage_embed(feature):
            raise ValueError(f"{where}: column {column!r} holds files within lists, which are not read; push it flat")
    for column in [column for column in ("image", "label") if column in rows.column_names]:
        if not isinstance(rows.features[column], _PIXELS):
            raise ValueError(f"{where}: column {column!r} is {rows.features[column]}; push it as Image or Nifti")


def _concatenated(parts: Sequence[datasets.Dataset], where: str) -> datasets.Dataset:
    first = [*COLUMNS, *sorted({column for rows in parts for column in rows.column_names} - set(COLUMNS))]
    try:
        rows = datasets.concatenate_datasets(list(parts))
    except ValueError as error:
        raise ValueError(f"{where}: its configurations have different columns ({first_line(error, '')})") from error
    return rows.select_columns(first)
