"""What stands before Gradio: limits of requests, no needless routes, headers that keep the page to itself."""

import asyncio
import json
import math
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from python_multipart.multipart import parse_options_header
from starlette.requests import ClientDisconnect

from dim_hf.demo.refusals import BUSY
from dim_hf.demo.sessions import remove_unfinished
from dim_hf.demo.settings import DemoSettings

MAX_MESSAGE_BYTES = 2**20
"""Of a request that is no upload: events carry numbers, names and paths."""

# \Z and not $, which also matches before a newline, as the server's own routes do: a path may not pass for another.
_ALLOWED = re.compile(
    r"/(?:\Z|config/?\Z|assets/|static/|svelte/|favicon\.ico\Z|theme\.css\Z|robots\.txt\Z|manifest\.json\Z"
    r"|gradio_api/(?:info/?\Z|openapi\.json\Z|config/?\Z|startup-events\Z|theme\.css\Z|app_id/?\Z|token/?\Z|user/?\Z"
    r"|login_check/?\Z|heartbeat/|queue/|call/|run/|api/|cancel\Z|reset/?\Z|upload\Z|upload_progress\Z|file=/))"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
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
_JOINS = re.compile(r"/gradio_api/(?:queue/join|call/)")
_COUNT_SECONDS = 1
_SILENT_SECONDS = 30  # of an upload that is not complete
_TOO_LARGE = "This upload is too large ({limit} MiB at most, over all files); choose smaller or fewer files."
_TOO_MANY = "These are too many files for one upload ({most} at most); choose fewer."
_TOO_SLOW = "The upload took too long; choose smaller or fewer files, or try again over a faster connection."
_UNDER_WAY = "This page has as many predictions under way as it may; wait until one has ended."
_DISK_FULL = "The demo holds too many files right now. Wait a few minutes, then upload again."
_NOT_HERE = "There is no such page here."
_ADDRESS = "Only files can be given, not addresses; download the file and upload it."


class _CutOffError(Exception):
    """More came than may, or it came too slowly."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


def _is_allowed(path: str) -> bool:
    """Whether a path is one that the page needs; a file's name may have two dots within, a folder may not be them."""
    return bool(_ALLOWED.match(path)) and not _CONTROL.search(path) and ".." not in re.split(r"[/\\=]", path)


class Guard:
    """ASGI middleware.

    Args:
        app: What answers the requests that pass.
        settings: Limits of uploads and files count.
        files: Folder of everything that visitors upload.
        may_join: Whether an event may join the line, by its message; all may when None.
    """

    def __init__(
        self,
        app: Callable[..., Any],
        settings: DemoSettings,
        files: Path,
        may_join: Callable[[dict[str, Any]], bool] | None = None,
    ) -> None:
        self.app = app
        self.settings = settings
        self.files = files
        self.may_join = may_join
        self._uploads: dict[object, tuple[float, int]] = {}  # under way: Unix time of the start, bytes reserved
        self._used = (-math.inf, 0, 0)  # when it was counted, bytes, files
        self._counting = asyncio.Lock()

    async def __call__(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        """Pass a request on, or answer it with a sentence."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
        elif not _is_allowed(scope["path"]):
            await _answer(send, 404, _NOT_HERE)
        elif scope["path"] == _UPLOAD:
            await self._take_upload(scope, receive, send)
        elif _announced(scope) > MAX_MESSAGE_BYTES:
            await _answer_heard(receive, send, 413, _too_large(MAX_MESSAGE_BYTES), MAX_MESSAGE_BYTES)
        elif scope["method"] == "POST":
            await self._take_message(scope, receive, send)
        else:
            with suppress(_CutOffError):  # a body where none belongs
                await self._pass_on(scope, _counted(receive, MAX_MESSAGE_BYTES), send)

    async def _take_upload(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        limit, files = self.settings.max_upload_bytes, self.settings.max_batch_files + 1
        if _announced(scope) > limit:
            await _answer_heard(receive, send, 413, _too_large(limit), limit, plain=True)
            return
        used_bytes, used_files = await self._count()
        coming = _announced(scope) or limit  # the length need not be announced
        coming_bytes = coming + sum(size for _, size in self._uploads.values())
        coming_files = files * (len(self._uploads) + 1)
        if used_bytes + coming_bytes > self.settings.disk_bytes or used_files + coming_files > self.settings.max_files:
            await _answer_heard(receive, send, 503, _DISK_FULL, limit, plain=True)
            return
        key = object()
        self._uploads[key] = (time.time(), coming)
        checked = _in_time(_few_files(_counted(receive, limit), scope, files), self.settings.upload_seconds)
        try:
            await self._pass_on(scope, checked, send)
        except _CutOffError as error:
            await _answer_heard(receive, send, error.status, error.sentence, limit, plain=True)
        finally:
            del self._uploads[key]
            self._used = (-math.inf, 0, 0)
            # The clock of files may lie a little behind.
            remove_unfinished(self.files, min((began for began, _ in self._uploads.values()), default=math.inf) - 1)

    async def _count(self) -> tuple[int, int]:
        """Bytes and files of all visitors, counted beside the event loop and at most once a second."""
        async with self._counting:
            if time.monotonic() - self._used[0] > _COUNT_SECONDS:
                began = time.monotonic()
                self._used = (began, *await asyncio.to_thread(used_below, self.files))
            return self._used[1:]

    async def _take_message(
        self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]
    ) -> None:
        body = await _whole_body(receive, MAX_MESSAGE_BYTES)
        if body is None:
            await _answer(send, 413, _too_large(MAX_MESSAGE_BYTES))
        elif _names_address(body):
            await _answer(send, 400, _ADDRESS)
        elif _JOINS.match(scope["path"]) and self.may_join and not self.may_join(_event(body)):
            await _answer(send, 429, _UNDER_WAY)
        else:
            await self._pass_on(scope, _replay(body, receive), send)

    async def _pass_on(self, scope: dict[str, Any], receive: Callable[..., Any], send: Callable[..., Any]) -> None:
        busy = False

        async def with_headers(message: dict[str, Any]) -> None:
            nonlocal busy
            if message["type"] == "http.response.start":
                if message["status"] == 503 and _JOINS.match(scope["path"]):
                    busy = True
                    await _answer(send, 503, BUSY)
                known = {name.lower() for name, _ in message.get("headers", [])}
                own = [pair for pair in _HEADERS if pair[0] not in known]
                message = {**message, "headers": [*message.get("headers", []), *own]}
            if not busy:
                await send(message)

        with suppress(ClientDisconnect):  # nobody is there to be answered
            await self.app(scope, receive, with_headers)


def used_below(folder: Path) -> tuple[int, int]:
    """Bytes and number of all files below a folder; what vanishes meanwhile counts nothing."""
    size = number = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                size += os.lstat(os.path.join(place, name)).st_size
            except OSError:
                continue
            number += 1
    return size, number


def _too_large(limit: int) -> str:
    return _TOO_LARGE.format(limit=limit // 2**20)


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
            raise _CutOffError(413, _too_large(limit))
        return message

    return counting


def _few_files(receive: Callable[..., Any], scope: dict[str, Any], most: int) -> Callable[..., Any]:
    """The same messages, until they hold more files than the limit: each stands behind a mark of its own."""
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    mark = b"--" + parse_options_header(kinds[0] if kinds else b"")[1].get(b"boundary", b"")
    seen, tail = 0, b""

    async def counting() -> dict[str, Any]:
        nonlocal seen, tail
        message = await receive()
        content = tail + message.get("body", b"")
        seen += content.count(mark)
        tail = content[max(0, len(content) - len(mark) + 1) :]
        if seen > most + 1:  # one mark ends the last file
            raise _CutOffError(413, _TOO_MANY.format(most=most - 1))
        return message

    return counting


def _in_time(receive: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """The same messages, unless they come too slowly: what is reserved for them is kept from others."""
    ends = time.monotonic() + seconds
    complete = False

    async def hurried() -> dict[str, Any]:
        nonlocal complete
        if complete:
            return await receive()
        try:
            message = await asyncio.wait_for(receive(), max(0.0, min(_SILENT_SECONDS, ends - time.monotonic())))
        except TimeoutError:
            raise _CutOffError(408, _TOO_SLOW) from None
        complete = not message.get("more_body")
        return message

    return hurried


def _event(body: bytes) -> dict[str, Any]:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}


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


async def _answer_heard(
    receive: Callable[..., Any], send: Callable[..., Any], status: int, sentence: str, most: int, plain: bool = False
) -> None:
    """Answer after what the client still sends: it hears nothing while it does. Beyond so many bytes it is cut off."""
    size, is_sending = 0, True
    with suppress(TimeoutError):
        async with asyncio.timeout(_SILENT_SECONDS):
            while is_sending and size <= most:
                message = await receive()
                size += len(message.get("body", b""))
                is_sending = bool(message.get("more_body"))
    await _answer(send, status, sentence, plain)


async def _answer(send: Callable[..., Any], status: int, sentence: str, plain: bool = False) -> None:
    """Send a sentence: as JSON, which the page unpacks, or as it is, which the page shows after a failed upload."""
    body = (sentence if plain else json.dumps({"detail": sentence, "error": sentence})).encode()
    kind = b"text/plain; charset=utf-8" if plain else b"application/json"
    headers = [(b"content-type", kind), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
