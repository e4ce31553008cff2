"""The guard alone, before an app that does what it is told: limits of uploads, lines, and what stays behind."""

import asyncio
import json
import os
import time

import pytest
from starlette.requests import ClientDisconnect

from dim_hf.demo import guard
from dim_hf.demo.app import check_port, remove_left_folders
from dim_hf.demo.guard import Guard, used_below
from dim_hf.demo.refusals import BUSY
from dim_hf.demo.settings import DemoSettings
from tests.browser import free_port


@pytest.fixture(autouse=True)
def _short_silence(monkeypatch):
    monkeypatch.setattr(guard, "_SILENT_SECONDS", 1)


KIND = (b"content-type", b'multipart/form-data; boundary="mark"')


def ask(guarded, chunks=(b"",), path="/gradio_api/upload", headers=(KIND,), announced=None):
    """Send a POST; gives the status and text of the answer, None and "" where there was none."""
    sizes = () if announced is None else ((b"content-length", str(announced).encode()),)
    scope = {"type": "http", "method": "POST", "path": path, "headers": [*headers, *sizes]}
    answer = {"status": None, "body": b""}
    waiting = list(chunks)

    async def receive():
        if not waiting:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": waiting.pop(0), "more_body": bool(waiting)}

    async def send(message):
        answer["status"] = message.get("status", answer["status"])
        answer["body"] += message.get("body", b"")

    async def go():
        await guarded(scope, receive, send)
        return answer["status"], answer["body"].decode()

    return go()


def app_that(folder, ends=None, status=200, body=b"answer of the server"):
    """An app that writes each upload to a file of its own, as Gradio does, and leaves it there."""

    async def app(scope, receive, send):
        with (folder / f"tmp{time.monotonic_ns()}").open("wb") as file:
            more = True
            while more:
                message = await receive()
                file.write(message.get("body", b""))
                more = message.get("more_body")
        if ends:
            raise ends
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return app


def left(folder):
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    ("ends", "chunks", "status"),
    [(None, [b"x" * 60, b"x" * 60], 413), (ClientDisconnect(), [b"x"], None), (None, [b"x"], 200)],
)
def test_an_upload_that_ends_early_leaves_nothing(tmp_path, ends, chunks, status):
    guarded = Guard(app_that(tmp_path, ends), DemoSettings(max_upload_bytes=100), tmp_path)
    assert asyncio.run(ask(guarded, chunks))[0] == status
    assert left(tmp_path) == []


def test_the_files_of_uploads_under_way_stay(tmp_path):
    guarded = Guard(app_that(tmp_path), DemoSettings(), tmp_path)
    guarded._uploads["another"] = (time.time() - 5, 10)
    growing = tmp_path / "tmpgrowing"
    growing.write_text("x")
    asyncio.run(ask(guarded, [b"x"]))
    assert growing.exists()


def test_a_silent_upload_is_cut_off(tmp_path, monkeypatch):
    monkeypatch.setattr(guard, "_SILENT_SECONDS", 0.05)
    guarded = Guard(app_that(tmp_path), DemoSettings(), tmp_path)

    async def silent():
        await asyncio.sleep(3600)

    async def go():
        answers = []

        async def send(message):
            answers.append(message)

        scope = {"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": [KIND]}
        await guarded(scope, silent, send)
        return answers[0]["status"]

    assert asyncio.run(go()) == 408
    assert left(tmp_path) == []


@pytest.mark.parametrize(("files", "status"), [(3, 200), (4, 413)])
@pytest.mark.parametrize("step", [3, 1000])
def test_the_files_of_a_request_are_counted_across_its_chunks(tmp_path, files, status, step):
    body = b"".join(b"--mark\r\n\r\nfile\r\n" for _ in range(files)) + b"--mark--\r\n"
    chunks = [body[start : start + step] for start in range(0, len(body), step)]
    guarded = Guard(app_that(tmp_path), DemoSettings(max_batch_files=2), tmp_path)
    found, said = asyncio.run(ask(guarded, chunks))
    assert found == status
    assert ("2 at most" in said) == (status == 413)


@pytest.mark.parametrize(("announced", "status"), [(40, 200), (60, 503), (None, 503)])
def test_what_is_under_way_counts_against_the_disk(tmp_path, announced, status):
    guarded = Guard(app_that(tmp_path), DemoSettings(disk_bytes=100, max_upload_bytes=90), tmp_path)
    guarded._uploads["another"] = (time.time(), 50)
    assert asyncio.run(ask(guarded, [b"x"], announced=announced))[0] == status
    assert list(guarded._uploads) == ["another"]


def test_uploads_at_a_time_reserve_what_they_announce(tmp_path):
    guarded = Guard(app_that(tmp_path), DemoSettings(disk_bytes=100), tmp_path)

    async def together():
        return await asyncio.gather(*(ask(guarded, [b"x"], announced=40) for _ in range(3)))

    assert sorted(status for status, _ in asyncio.run(together())) == [200, 200, 503]


def test_the_number_of_files_is_limited(tmp_path):
    for number in range(8):
        (tmp_path / str(number)).write_text("x")
    allowed, refused = (
        Guard(app_that(tmp_path), DemoSettings(max_files=most, max_batch_files=1), tmp_path) for most in (10, 9)
    )
    assert asyncio.run(ask(allowed, [b"x"]))[0] == 200
    assert asyncio.run(ask(refused, [b"x"]))[0] == 503


def test_folders_that_vanish_count_nothing(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(bytes(10))
    (tmp_path / "y").write_bytes(bytes(5))
    assert used_below(tmp_path) == (15, 2)
    scanned = os.scandir

    def gone(folder):
        if os.fspath(folder).endswith("a"):
            raise FileNotFoundError(folder)
        return scanned(folder)

    monkeypatch.setattr(os, "scandir", gone)
    assert used_below(tmp_path) == (5, 1)
    assert used_below(tmp_path / "nowhere") == (0, 0)


@pytest.mark.parametrize("path", ["/gradio_api/queue/join", "/gradio_api/call/segment_fundus"])
def test_a_full_line_is_told_in_the_words_of_the_demo(tmp_path, path):
    app = app_that(tmp_path, status=503, body=b'{"detail": "Queue is full. Max size is 64 and size is 64."}')
    status, said = asyncio.run(ask(Guard(app, DemoSettings(), tmp_path), [b"{}"], path))
    assert (status, json.loads(said)["detail"]) == (503, BUSY)


def test_who_may_not_join_the_line_is_told_so(tmp_path):
    guarded = Guard(app_that(tmp_path), DemoSettings(), tmp_path, may_join=lambda event: event.get("fn_index") != 3)
    assert asyncio.run(ask(guarded, [b'{"fn_index": 3}'], "/gradio_api/queue/join"))[0] == 429
    assert asyncio.run(ask(guarded, [b'{"fn_index": 4}'], "/gradio_api/queue/join"))[0] == 200
    assert asyncio.run(ask(guarded, [b"[3]"], "/gradio_api/queue/join"))[0] == 200


def test_a_page_may_have_two_predictions_under_way():
    from types import SimpleNamespace

    from dim_hf.demo.app import _line_of

    def event(session, line="prediction"):
        return SimpleNamespace(session_hash=session, concurrency_id=line)

    lines = {"prediction": SimpleNamespace(queue=[event("a"), event("b")])}
    queue = SimpleNamespace(event_queue_per_concurrency_id=lines, active_jobs=[None, [event("a")], [event("b", "x")]])
    functions = {1: SimpleNamespace(concurrency_id="prediction"), 2: SimpleNamespace(concurrency_id="other")}
    may_join = _line_of(SimpleNamespace(_queue=queue, fns=functions), 2)
    asked = [(1, "a"), (2, "a"), (1, "b"), (1, None), ("x", "a"), ([], "c")]
    answers = [may_join({"fn_index": number, "session_hash": session}) for number, session in asked]
    assert answers == [False, True, True, True, False, True]


# -- start and end


def test_folders_of_demos_that_were_killed_are_removed_and_held_ones_stay(tmp_path):
    fcntl = pytest.importorskip("fcntl")
    killed, living, fresh, other = (tmp_path / name for name in ("dim-demo-a", "dim-demo-b", "dim-demo-c", "else"))
    for folder in (killed, living, fresh, other):
        folder.mkdir()
        (folder / "held").write_text("")
        if folder != fresh:
            os.utime(folder / "held", (1, 1))
    with (living / "held").open("w") as file:
        os.utime(living / "held", (1, 1))
        fcntl.flock(file, fcntl.LOCK_EX)
        remove_left_folders(tmp_path)
    assert [folder.exists() for folder in (killed, living, fresh, other)] == [False, True, True, True]


def test_a_taken_port_is_told_before_anything_is_loaded():
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match="--port"):
            check_port("127.0.0.1", taken.getsockname()[1])
    check_port("127.0.0.1", free_port())
    check_port("127.0.0.1", None)
    with pytest.raises(ValueError, match="GRADIO_SERVER_PORT"):
        check_port("127.0.0.1", "http")
