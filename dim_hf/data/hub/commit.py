"""A folder becomes a repository of the Hub in one commit, whatever kind of repository it is."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

_OF_ANYBODY = {".gitattributes", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"}
_SHOWN_FILES = 5
State = tuple[str, list[str]] | None
"""Last commit and sorted files of a repository; None where there is none yet."""


@dataclass(frozen=True)
class Target:
    """A repository to push to.

    Attributes:
        repo_id: `org/name`.
        repo_type: "model" or "dataset".
        marker: File by which a repository of this package is known.
        stale: Patterns of files that an earlier push left and that must not stay beside the new ones.
        private: Create a private repository, and refuse a public one.
    """

    repo_id: str
    repo_type: str
    marker: str
    stale: tuple[str, ...]
    private: bool = False


def require_token(repo_id: str, token: str | None) -> None:
    """Refuse to begin without a token.

    Args:
        repo_id: What is to be pushed.
        token: Given by the user; else the one of `hf auth login` or `HF_TOKEN` counts.

    Raises:
        ValueError: If there is none.
    """
    if (token or get_token()) is None:
        raise ValueError(f"{repo_id} cannot be pushed without a token: run `hf auth login`, or set HF_TOKEN")


def remote_state(api: HfApi, target: Target) -> State:
    """What the repository holds now.

    Raises:
        ValueError: If it holds somebody else's files, or is public where a private one is asked for.
    """
    try:
        info = api.repo_info(target.repo_id, repo_type=target.repo_type)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
    files = sorted(sibling.rfilename for sibling in info.siblings or [])
    others = [file for file in files if file not in _OF_ANYBODY]
    if target.marker not in files and others:
        raise ValueError(
            f"{target.repo_id} holds other files ({', '.join(others[:_SHOWN_FILES])}) and no {target.marker}, so it "
            "was not pushed by this package; choose another name, or empty the repository"
        )
    if target.private and not info.private:
        raise ValueError(
            f"{target.repo_id} exists and is public, but the push is to be private; make it private in its settings, "
            "or choose another name"
        )
    return info.sha, files


def commit_folder(api: HfApi, target: Target, folder: Path, remote: State, message: str) -> str:
    """Commit everything below `folder`, and remove what is stale, at once.

    Args:
        api: With the token.
        target: Where to; created if need be.
        folder: What the repository will hold.
        remote: From `remote_state`; another commit meanwhile is refused.
        message: Of the commit.

    Returns:
        Address of the commit, `<endpoint>/[datasets/]<repo_id>/tree/<sha>`.
    """
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(path, folder / path) for path in paths
    ]
    if remote is None:
        api.create_repo(target.repo_id, repo_type=target.repo_type, private=target.private, exist_ok=True)
    else:
        stale = [p for p in remote[1] if p not in paths and any(fnmatch(p, pattern) for pattern in target.stale)]
        operations += [CommitOperationDelete(path, is_folder=False) for path in stale]
    commit = api.create_commit(
        target.repo_id,
        operations,
        repo_type=target.repo_type,
        commit_message=message,
        parent_commit=remote[0] if remote else None,
    )
    kind = "datasets/" if target.repo_type == "dataset" else ""
    return f"{api.endpoint}/{kind}{target.repo_id}/tree/{commit.oid}"


@contextmanager
def progress_bars(shown: bool) -> Iterator[None]:
    """Hide the bars of uploads for a while, unless they are to be shown."""
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
