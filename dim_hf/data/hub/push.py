"""Pushes a data set to the Hub: parquet with the images inside, a description and a card, in one commit."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import datasets
from huggingface_hub import HfApi

from dim_hf.data.checks import find_faults
from dim_hf.data.description import FILE_NAME, DatasetDescription, write_description
from dim_hf.data.doctor.findings import CODES, Finding
from dim_hf.data.hub.card import render_card
from dim_hf.data.hub.commit import Target, commit_folder, progress_bars, remote_state, require_token
from dim_hf.data.hub.errors import check_repo_id, hub_errors
from dim_hf.data.hub.files import (
    DATA_FOLDER,
    MAX_SHARD_BYTES,
    Part,
    description_obstacles,
    find_obstacles,
    without_folders,
    write_parts,
)
from dim_hf.data.texts import numbered

_SHOWN_FINDINGS = 3


def publish(
    rows: datasets.Dataset,
    description: DatasetDescription,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    licence: str | None = None,
    source: Sequence[str] = (),
) -> str:
    """Examine a data set with the doctor and push it: its errors stop the push, the rest goes into the card.

    Args and returns: see `push_dataset`; `source`, if given, replaces the description's.

    Raises:
        ValueError: With everything that is missing or wrong, before anything is sent.
        ConnectionError: If the Hub cannot be reached.
    """
    from dim_hf.data.doctor.diagnosis import examine  # not needed to load

    check_repo_id(repo_id)
    described = replace(_with_licence(description, licence), source=list(source) or description.source)
    obstacles = find_obstacles(rows, described)
    findings = examine(rows, described).findings
    errors = [f"{item.file}: {item.problem}. Fix: {item.fix}" for item in findings if item.severity == "error"]
    _refuse(repo_id, obstacles + errors)
    faults = without_folders(_summaries(item for item in findings if item.severity != "error"), rows)
    return push_dataset(rows, described, repo_id, private=private, token=token, faults=faults)


def check_description(description: DatasetDescription, repo_id: str, *, token: str | None = None) -> None:
    """Refuse what `publish` would refuse whatever the rows are, before work goes into them.

    Args:
        description: What the rows will mean.
        repo_id: `org/name`.
        token: See `push_dataset`.

    Raises:
        ValueError: With everything that is missing or wrong.
    """
    check_repo_id(repo_id)
    _refuse(repo_id, description_obstacles(description))
    require_token(repo_id, token)


def _summaries(findings: Iterable[Finding]) -> list[str]:
    """One line for each kind of finding, with the first few."""
    by_code: dict[str, list[Finding]] = defaultdict(list)
    for item in findings:
        by_code[item.code].append(item)
    lines = []
    for code, items in by_code.items():
        shown = "; ".join(f"{item.file}: {item.problem}" for item in items[:_SHOWN_FINDINGS])
        more = f"; and {len(items) - _SHOWN_FINDINGS} more" if len(items) > _SHOWN_FINDINGS else ""
        lines.append(f"{CODES[code].title} ({len(items)}): {shown}{more}")
    return lines


def push_dataset(
    rows: datasets.Dataset,
    description: DatasetDescription,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    licence: str | None = None,
    faults: Sequence[str] | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    progress: bool = True,
) -> str:
    """Push rows as parquet with their images inside, the description and a card, in a single commit.

    Each domain is a configuration, each split a split of it; rows of no split go into the files of `train` and keep
    their empty `split`. The files of an earlier push are replaced in the same commit. Until that commit, nothing of
    the repository changes, and pushing equal rows again makes none. Files are pushed byte for byte: what a picture's
    tags or a NIfTI header say about a patient goes with them.

    Args:
        rows: Rows as the readers of this package give them.
        description: What they mean; becomes `dim_dataset.json` beside them.
        repo_id: `org/name`; created if need be.
        private: Create a private repository. A public one is then refused; an existing private one stays private.
        token: Token with the right to write; the one of `hf auth login` or `HF_TOKEN` when None.
        licence: Replaces the description's.
        faults: Known faults for the card, if the rows have been examined; when None they are examined here, and the
            push is refused if a file is faulty.
        max_shard_bytes: A further parquet file is begun when one holds as much.
        progress: Show progress bars.

    Returns:
        Address of the pushed commit, `<endpoint>/datasets/<repo_id>/tree/<sha>`.

    Raises:
        ValueError: With the list of everything missing; or if the repository belongs to something else, or the token
            does not suffice.
        ConnectionError: If the Hub cannot be reached or fails.
    """
    check_repo_id(repo_id)
    description = _with_licence(description, licence)
    obstacles = find_obstacles(rows, description, faults or ())
    if faults is None and "image" in rows.column_names:
        faults = []
        obstacles += [str(fault) for fault in find_faults(rows, description.num_labels, progress=progress)]
    _refuse(repo_id, obstacles)
    require_token(repo_id, token)
    api, target = HfApi(token=token), Target(repo_id, "dataset", FILE_NAME, (f"{DATA_FOLDER}/*",), private)
    with TemporaryDirectory(prefix="dim_hf_push_") as name, progress_bars(progress), hub_errors(repo_id, "pushed"):
        remote = remote_state(api, target)
        parts = write_parts(rows, Path(name), max_shard_bytes=max_shard_bytes, progress=progress)
        _describe(rows, description, repo_id, parts, faults or (), Path(name))
        return commit_folder(api, target, Path(name), remote, "Push data set with dim-hf")


def _describe(
    rows: datasets.Dataset,
    description: DatasetDescription,
    repo_id: str,
    parts: Sequence[Part],
    faults: Sequence[str],
    folder: Path,
) -> None:
    """Write card and description beside the parts."""
    sizes: dict[str, int] = defaultdict(int)
    for part in parts:
        sizes[part.config] += sum((folder / file).stat().st_size for file in part.files)
    write_description(description, folder)
    card = render_card(rows, description, repo_id, parts, faults, download_bytes=sizes)
    (folder / "README.md").write_text(card, encoding="utf-8")


def _with_licence(description: DatasetDescription, licence: str | None) -> DatasetDescription:
    return description if licence is None else replace(description, licence=licence)


def _refuse(repo_id: str, obstacles: Sequence[str]) -> None:
    if obstacles:
        raise ValueError(f"{repo_id} was not pushed; correct this first:\n{numbered(obstacles)}")
