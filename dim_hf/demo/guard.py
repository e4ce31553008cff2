"""What stands before Gradio: limits of requests, no needless routes, headers that keep the page to itself."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dim_hf.demo.settings import DemoSettings

MAX_MESSAGE_BYTES = 2**20
"""Of a request that is no upload: events carry numbers, names and paths."""

_ALLOWED = re.compile(
    r"/(?:$|config/?$|assets/|static/|svelte/|favicon\.ico$|theme\.css$|robots\.txt$|manifest\.json$"
    r"|gradio_api/(?:info/?$|openapi\.json$|config/?$|startup-events$|theme\.css$|app_id/?$|token/?$|user/?$|login_check/?$"
    r"|heartbeat/|queue/|call/|run/|api/|cancel$|reset/?$|upload$|upload_progress$|file=/))"
)
# Everything comes from this server; Gradio's own scripts lie within the page and build functions from templates.
_CONTENT = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self' data: blob:; worker-src 'self' blob:; "
    "object-src 'none'; base-uri 'self'; form-action 'self'"
)
_HEADERS = (
    (b"content-security-policy", _CONTENT.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
)
_UPLOAD = "/gradio_api/upload"
_TOO_LARGE = "This upload is too large ({limit} MiB at most, over all files); choose smaller or fewer files."
_DISK_FULL = "The demo holds too many files right now. Wait a few minutes, then upload again."
_NOT_HERE = "There is no such page here."
_ADDRESS = "Only files can be given, not addresses; download the file and upload it."


class _TooLargeError(Exception):
    """More bytes came than the limit."""


class Guard:
    """ASGI middleware.

    Args:
        app: What answers the requests that pass.
        settings: `max_upload_bytes` and `disk_bytes` count.
        files: Folder of everything that visitors upload.
    """

    def __init__(self, app: Callable[..., Any], settings: DemoSettings, files: Path) -> None:
        self.app = app
        self.settings = settings
        self.files = files

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Pass a request on, or answer it with a sentence."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"]
        if not _ALLOWED.match(path) or ".." in path:
            await _answer(send, 404, _NOT_HERE)
            return
        limit = MAX_MESSAGE_BYTES
        if path == _UPLOAD:
            limit = self.settings.max_upload_bytes
            if bytes_below(self.files) + _announced(scope) > self.settings.disk_bytes:
                await _answer(send, 503, _DISK_FULL)
                return
        if _announced(scope) > limit:
            await _answer(send, 413, _TOO_LARGE.format(limit=limit // 2**20))
            return
        if scope["method"] == "POST" and path != _UPLOAD:
            body = await _whole_body(receive, limit)
            if body is None:
                await _answer(send, 413, _TOO_LARGE.format(limit=limit // 2**20))
                return
            if _names_address(body):
                await _answer(send, 400, _ADDRESS)
                return
            receive = _replay(body, receive)
        else:
            receive = _counted(receive, limit)
        started = False

        async def with_headers(message: dict[str, Any]) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                known = {name.lower() for name, _ in message.get("headers", [])}
                own = [pair for pair in _HEADERS if pair[0] not in known]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            await send(message)

        try:
            await self.app(scope, receive, with_headers)
        except _TooLargeError:
            if not started:
                await _answer(send, 413, _TOO_LARGE.format(limit=limit // 2**20))


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder; files that vanish meanwhile count nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue
    return total


def _announced(scope: dict[str, Any]) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return 0


async def _whole_body(receive: Callable[..., Any], limit: int) -> bytes | None:
    """The body of a request; None where it is longer than the limit."""
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return b"".join(parts)
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > limit:
            return None
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Callable[..., Any]) -> Callable[..., Any]:
    """The body once more, then whatever comes."""
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> dict[str, Any]:
        return waiting.pop() if waiting else await receive()

    return again


def _counted(receive: Callable[..., Any], limit: int) -> Callable[..., Any]:
    """The same messages, until they are more than the limit: a length need not be announced."""
    size = 0

    async def counting() -> dict[str, Any]:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise _TooLargeError
        return message

    return counting


def _names_address(body: bytes) -> bool:
    """Whether a message names an address, or the content itself, where a file that was uploaded should stand."""
    try:
        waiting = [json.loads(body)] if body else []
    except (ValueError, RecursionError):
        return False  # Gradio refuses it
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            path, url = value.get("path"), value.get("url")
            if isinstance(path, str) and "://" in path:
                return True
            if isinstance(url, str) and url.lstrip().lower().startswith("data:"):
                return True
            waiting.extend(value.values())
        elif isinstance(value, list):
            waiting.extend(value)
    return False


async def _answer(send: Callable[..., Any], status: int, sentence: str) -> None:
    body = json.dumps({"detail": sentence, "error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
