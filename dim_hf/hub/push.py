"""Pushes a finished run to the Hub as a model that loads without this package, in one commit."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from huggingface_hub import HfApi, get_token

from dim_hf.data.hub.commit import Target, commit_folder, progress_bars, remote_state, require_token
from dim_hf.data.hub.errors import MODEL, check_repo_id, hub_errors
from dim_hf.data.texts import numbered
from dim_hf.hub.run_folder import RESULTS_FILE, read_finished_run
from dim_hf.hub.staging import CARD_FILE, stage
from dim_hf.hub.statements import Statements, completed, find_obstacles
from dim_hf.inference.drift_file import STATISTICS_FILE

# Files of an earlier push, or of a Trainer's own, that must not stay beside other weights: pickles above all.
_STALE = (
    "*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.pkl", "*_dim_unet.py", "figures/*",
    ".eval_results/dim-hf.yaml", "*-volume-mm.csv", STATISTICS_FILE,
)  # fmt: skip


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
    check_repo_id(repo_id, MODEL)
    with _staged(folder, repo_id, statements, keep_names, token) as staged:
        require_token(repo_id, token)
        api, target = HfApi(token=token), Target(repo_id, "model", RESULTS_FILE, _STALE, private)
        with progress_bars(progress), hub_errors(repo_id, "pushed", MODEL):
            return commit_folder(api, target, staged, remote_state(api, target), "Push model with dim-hf")


def preview_push(
    folder: str | Path, repo_id: str, statements: Statements, *, token: str | None = None, keep_names: bool = False
) -> Preview:
    """Make everything that `push_run` would publish, and send nothing.

    Args and errors: see `push_run`; the Hub is not asked.
    """
    check_repo_id(repo_id, MODEL)
    with _staged(folder, repo_id, statements, keep_names, token) as staged:
        paths = sorted(path for path in staged.rglob("*") if path.is_file())
        sizes = {path.relative_to(staged).as_posix(): path.stat().st_size for path in paths}
        return Preview(sizes, (staged / CARD_FILE).read_text(encoding="utf-8"))


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
