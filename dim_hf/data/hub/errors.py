"""What the Hub refuses, in one sentence for the user."""

import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from dim_hf.data.texts import first_line

DATA_SET, MODEL = "data set", "model"
_EXAMPLES = {DATA_SET: "my-lab/fundus-sites", MODEL: "my-lab/dim-prostate"}
_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*", re.ASCII)
# What the Hub answers, the first that fits: kind of error, its status, what is raised, and what the user reads.
_REASONS: tuple[tuple[type[Exception], range, type[Exception], str], ...] = (
    (RevisionNotFoundError, range(1000), ValueError,
     "there is no such revision; name a commit, branch or tag of the repository"),
    (GatedRepoError, range(1000), ValueError,
     "access is granted by its owner only; ask for it on the page of the repository, then run `hf auth login`"),
    (RepositoryNotFoundError, range(1000), ValueError,
     "there is no such {kind} on the Hub, or it is private and the token may not see it; correct the name, or run "
     "`hf auth login`"),
    (HfHubHTTPError, range(401, 402), ValueError, "the token is not valid; run `hf auth login`, or correct HF_TOKEN"),
    (HfHubHTTPError, range(403, 404), ValueError,
     "the token may not do that; use one with the right to write there, or another name"),
    (HfHubHTTPError, range(412, 413), ValueError, "the repository has changed meanwhile; look at it and push again"),
    (HfHubHTTPError, range(400, 429), ValueError, "the Hub refused the request"),
    (HfHubHTTPError, range(429, 1000), ConnectionError, "the Hub fails or is too busy; try again later"),
    (Exception, range(1000), ConnectionError,
     "the Hub cannot be reached, or the connection broke; check the network, HF_ENDPOINT and HF_HUB_OFFLINE and try "
     "again (what was loaded once is read from the cache)"),
)  # fmt: skip


def check_repo_id(repo_id: str, kind: str = DATA_SET) -> None:
    """Refuse what can be no name of a repository on the Hub.

    Args:
        repo_id: The name.
        kind: Of the repository: a key of `_EXAMPLES`.

    Raises:
        ValueError: With the form of a name.
    """
    if not _REPO_ID.fullmatch(repo_id) or len(repo_id) > 96 or ".." in repo_id or "--" in repo_id:
        raise ValueError(
            f"{repo_id!r} is no name of a {kind} on the Hub; write <user or organisation>/<name> with letters, "
            f"digits, '-', '_' and '.', e.g. {_EXAMPLES[kind]}"
        )


@contextmanager
def hub_errors(where: str, verb: str, kind: str = DATA_SET) -> Iterator[None]:
    """Say in one sentence what the Hub refused, and what to do about it.

    Args:
        where: The repository, perhaps with a revision.
        verb: What was done to it: "pushed" or "loaded".
        kind: What it is: "data set" or "model".

    Raises:
        ValueError: If the user can mend it.
        ConnectionError: If the Hub cannot be reached or fails.
    """
    try:
        yield
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError) as error:
        raise _translated(error, where, verb, kind) from error
    except (RuntimeError, ConnectionError) as error:
        if isinstance(error.__cause__, HTTPError):  # wraps what befell the upload of a file
            raise _translated(error.__cause__, where, verb, kind) from error
        if not _is_of_xet(error):
            raise
        raise ConnectionError(
            f"{where} could not be {verb}: the transfer by Xet failed; try again, or go without it by "
            f"HF_HUB_DISABLE_XET=1 [{first_line(error, '')}]"
        ) from error


def _is_of_xet(error: BaseException) -> bool:
    """Whether `hf_xet` raised it, whose errors are Python's own: the functions of the client that call it say so."""
    return any("xet" in frame.f_code.co_name for frame, _ in traceback.walk_tb(error.__traceback__))


def _translated(error: Exception, where: str, verb: str, kind: str) -> Exception:
    response = getattr(error, "response", None)
    status = response.status_code if response is not None else 0
    raised, sentence = next((r, s) for e, codes, r, s in _REASONS if isinstance(error, e) and status in codes)
    said = getattr(error, "server_message", None) or (str(status) if status else type(error).__name__)
    return raised(f"{where} could not be {verb}: {sentence.format(kind=kind)} [{first_line(said, '')}]")
