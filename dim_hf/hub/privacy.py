"""Nothing of the machine, of its user or of a patient goes to the Hub unasked."""

import contextlib
import hmac
import os
import re
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from dim_hf.metrics.cases import CaseResult

_KEY_BYTES = 32
KEY_FILE = ".push_key"
LEFT_OUT = "(local)"
# Fields of a job that say something about the machine or the account and nothing about the result.
_OF_THE_MACHINE = (
    "output_dir", "cache_dir", "logging_dir", "resume_from_checkpoint", "run_name", "project", "report_to",
    "hub_token", "hub_model_id", "hub_private_repo", "hub_revision", "trackio_space_id", "trackio_bucket_id",
    "trackio_static_space_id",
)  # fmt: skip
_LOCAL_PATH = re.compile(
    r"""(?:^|[\s"'`(=,;:\[])(?:/(?:[\w.-]+/)+|/(?:data|home|media|mnt|private|root|scratch|srv|tmp|Users|var|work)\b"""
    r"""|[A-Za-z]:\\|\\\\\w|file://|~/)""",
    re.MULTILINE,
)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{20,}\b|\bapi_org_[A-Za-z0-9]{20,}\b")
_ESCAPE = re.compile(r"\\(?=[^\w\s]|_)")
_DIGITS = 12


def has_local_path(text: str) -> bool:
    """Whether a text names a place on a machine.

    >>> has_local_path("trained on /home/me/scans"), has_local_path("see https://example.org/home/x, and/or 3/4")
    (True, False)
    """
    return _LOCAL_PATH.search(text) is not None


def without_machine(value: Any, places: Sequence[str] = ()) -> Any:
    """Nested JSON values in which fields about the machine are None, and paths are `LEFT_OUT`.

    Args:
        value: Any of JSON.
        places: Further texts to leave out wherever they occur, such as the folder of another run.
    """
    if isinstance(value, Mapping):
        kept = {key: None if key in _OF_THE_MACHINE else item for key, item in value.items()}
        return {key: without_machine(item, places) for key, item in kept.items()}
    if isinstance(value, list | tuple):
        return [without_machine(item, places) for item in value]
    if not isinstance(value, str):
        return value
    for place in places:
        value = value.replace(place, LEFT_OUT)
    return LEFT_OUT if has_local_path(value) or ("/" in value and os.path.exists(value)) else value


def pseudonymous(cases: Iterable[CaseResult], key: bytes) -> list[CaseResult]:
    """Cases under other names, in the order of these: rows of a case or patient stay together, nobody reads who it is.

    Args:
        cases: With the names that the data set gives them.
        key: Secret; without it, a name could be found by hashing all that come into question.

    Returns:
        Rows sorted by domain and new name; an empty patient stays empty.
    """
    renamed = [
        replace(
            case,
            name=_pseudonym(key, "case", case.domain, case.name),
            patient=_pseudonym(key, "patient", case.domain, case.patient) if case.patient else "",
        )
        for case in cases
    ]
    domains = list(dict.fromkeys(case.domain for case in renamed))
    return sorted(renamed, key=lambda case: (domains.index(case.domain), case.name))


def _pseudonym(key: bytes, *parts: str) -> str:
    content = "\0".join(parts).encode("utf-8", "surrogatepass")
    return f"{parts[0]}_{hmac.new(key, content, 'sha256').hexdigest()[:_DIGITS]}"


def secret_key(folder: Path) -> bytes:
    """The run's key for pseudonyms, made at the first push and kept for the next, readable by its owner alone.

    Raises:
        ValueError: If the file is not whole: with a short key, or none, pseudonyms could be undone.
    """
    path = folder / KEY_FILE
    if not path.is_file():
        with contextlib.suppress(FileExistsError):  # another push was faster
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_bytes(_KEY_BYTES))
    key = path.read_bytes()
    if len(key) != _KEY_BYTES:
        raise ValueError(
            f"{path} holds {len(key)} bytes instead of {_KEY_BYTES}, so names could be guessed from pseudonyms: if no "
            "other push is running, remove it; cases then get new pseudonyms"
        )
    return key


def find_leaks(files: Mapping[str, str], folder: Path, token: str | None) -> list[str]:
    """Places of texts that must not be published, each as a sentence with its fix.

    Args:
        files: Content by name.
        folder: Of the run, whose place is looked for.
        token: The user's own.
    """
    # Not "/root" and the like: those two are found where an address would not hold them.
    places = [str(path) for path in (folder.resolve(), Path.home()) if len(path.parts) > 2]
    leaks = []
    for name, content in files.items():
        # As written, and as Markdown shows it: "hf\\_..." is a token, too.
        text = f"{content}\n{_ESCAPE.sub('', content)}"
        lines = [line for line in text.splitlines() if has_local_path(line) or any(place in line for place in places)]
        if lines:
            leaks.append(f"{name} names a local path ({lines[0].strip()[:100]!r}); take it out of the text it is from")
        if _TOKEN.search(text) or (token and token in text):
            leaks.append(f"{name} holds an access token; take it out of the text it is from, and revoke it")
    return leaks
