"""Pushes a finished run to the Hub as a model that loads without this package, in one commit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, get_token
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

from dim_hf.data.hub.errors import check_repo_id, hub_errors
from dim_hf.data.texts import numbered
from dim_hf.hub.run_folder import RESULTS_FILE, read_finished_run
from dim_hf.hub.staging import CARD_FILE, stage
from dim_hf.hub.statements import Statements, completed, find_obstacles

# Files of an earlier push, or of a Trainer's own, that must not stay beside other weights: pickles above all.
_STALE = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.pkl", "*_dim_unet.py", "figures/*",
    ".eval_results/dim-hf.yaml",
)  # fmt: skip
_OF_ANYBODY = {".gitattributes", "README.md", "LICENSE", "LICENSE.md", "LICENSE.txt"}


@dataclass(frozen=True)
class Preview:
    """What a push would publish.

    Attributes:
        sizes: Bytes by path in the repository.
        card: The model card.
    """

    sizes: dict[str, int]
    card: str


def push_run(
    folder: str | Path,
    repo_id: str,
    statements: Statements,
    *,
    private: bool = False,
    token: str | None = None,
    keep_names: bool = False,
    progress: bool = True,
) -> str:
    """Publish a finished run: weights, configuration, processor, code, results and card, in a single commit.

    Until that commit nothing of the repository changes, and pushing an equal run again makes none. No pickle, no place
    on this machine and no token is published; names of cases and patients are replaced by codes unless asked for.

    Args:
        folder: Of the run.
        repo_id: `org/name`; created if need be.
        statements: What only people can say.
        private: Create a private repository. A public one is then refused; an existing private one stays private.
        token: Token with the right to write; the one of `hf auth login` or `HF_TOKEN` when None.
        keep_names: Publish names of cases and patients as the data set gives them, as for public data.
        progress: Show progress bars.

    Returns:
        Address of the pushed commit, `<endpoint>/<repo_id>/tree/<sha>`.

    Raises:
        ValueError: With the list of everything missing; or if the repository belongs to something else, or the token
            does not suffice.
        ConnectionError: If the Hub cannot be reached or fails.
    """
    check_model_name(repo_id)
    with _staged(folder, repo_id, statements, keep_names, token) as staged:
        if (token or get_token()) is None:
            raise ValueError(f"{repo_id} cannot be pushed without a token: run `hf auth login`, or set HF_TOKEN")
        with _progress_bars(progress), hub_errors(repo_id, "pushed"):
            return _commit(HfApi(token=token), repo_id, staged, private)


def preview_push(
    folder: str | Path, repo_id: str, statements: Statements, *, token: str | None = None, keep_names: bool = False
) -> Preview:
    """Make everything that `push_run` would publish, and send nothing.

    Args and errors: see `push_run`; the Hub is not asked.
    """
    check_model_name(repo_id)
    with _staged(folder, repo_id, statements, keep_names, token) as staged:
        paths = sorted(path for path in staged.rglob("*") if path.is_file())
        sizes = {path.relative_to(staged).as_posix(): path.stat().st_size for path in paths}
        return Preview(sizes, (staged / CARD_FILE).read_text(encoding="utf-8"))


def check_model_name(repo_id: str) -> None:
    """Refuse what can be no name of a model on the Hub.

    Raises:
        ValueError: With the form of a name.
    """
    try:
        check_repo_id(repo_id)
    except ValueError as error:
        raise ValueError(
            f"{repo_id!r} is no name of a model on the Hub; write <user or organisation>/<name> with letters, digits, "
            "'-', '_' and '.', e.g. my-lab/dim-prostate"
        ) from error


@contextmanager
def _staged(
    folder: str | Path, repo_id: str, statements: Statements, keep_names: bool, token: str | None
) -> Iterator[Path]:
    """A temporary folder with all files of the repository, after every check that needs no Hub."""
    run = read_finished_run(folder)
    statements = completed(statements, run)
    obstacles = find_obstacles(run, statements)
    if obstacles:
        raise ValueError(f"{repo_id} was not pushed; correct this first:\n{numbered(obstacles, shown=len(obstacles))}")
    with TemporaryDirectory(prefix="dim_hf_push_") as name:
        stage(run, statements, repo_id, Path(name), keep_names=keep_names, token=token or get_token())
        yield Path(name)


def _remote_state(api: HfApi, repo_id: str, private: bool) -> tuple[str, list[str]] | None:
    """Last commit and files of the repository, or None where there is none yet."""
    try:
        info = api.model_info(repo_id)
    except GatedRepoError:
        raise
    except RepositoryNotFoundError:
        return None
    files = sorted(sibling.rfilename for sibling in info.siblings or [])
    if RESULTS_FILE not in files and set(files) - _OF_ANYBODY:
        raise ValueError(
            f"{repo_id} holds other files ({', '.join(sorted(set(files) - _OF_ANYBODY)[:5])}) and no {RESULTS_FILE}, "
            "so it was not pushed by this package; choose another name, or empty the repository"
        )
    if private and not info.private:
        raise ValueError(
            f"{repo_id} exists and is public, but the push is to be private; make it private in its settings, or "
            "choose another name"
        )
    return info.sha, files


def _commit(api: HfApi, repo_id: str, folder: Path, private: bool) -> str:
    """One commit with everything below `folder`, that also removes what an earlier push must not leave behind."""
    remote = _remote_state(api, repo_id, private)
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    operations = [CommitOperationAdd(path, folder / path) for path in paths]
    if remote is None:
        api.create_repo(repo_id, repo_type="model", private=private, exist_ok=True)
    else:
        stale = [p for p in remote[1] if p not in paths and any(fnmatch(p, pattern) for pattern in _STALE)]
        operations += [CommitOperationDelete(path, is_folder=False) for path in stale]
    commit = api.create_commit(
        repo_id,
        operations,
        repo_type="model",
        commit_message="Push model with dim-hf",
        parent_commit=remote[0] if remote else None,
    )
    return f"{api.endpoint}/{repo_id}/tree/{commit.oid}"


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Hide the bars of uploads for a while."""
    if shown or are_progress_bars_disabled():
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()
