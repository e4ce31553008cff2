"""What stands before the demo: limits, routes, headers; and that nothing is left of a visitor who has gone."""

import asyncio
import json
import socket
import struct
import time
import urllib.error
import urllib.request
import uuid
import zlib

import pytest

from dim_hf.data.phantoms import render_phantom
from dim_hf.demo.guard import MAX_MESSAGE_BYTES, Guard, _is_allowed, _names_address
from dim_hf.demo.settings import DemoSettings
from tests.browser import chromium, start_server, stop_server, visit  # noqa: F401

LIMIT = 300_000


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a demo with small limits, and the folder of all its temporary files."""
    folder = tmp_path_factory.mktemp("server")
    limits = {"MAX_FILE_BYTES": LIMIT, "MAX_UPLOAD_BYTES": 2 * LIMIT, "DISK_BYTES": 8 * 10**6}
    environment = {"TMPDIR": str(folder), **{f"DIM_DEMO_{name}": str(value) for name, value in limits.items()}}
    process, address, log = start_server(environment=environment)
    yield address, folder
    stop_server(process)
    assert "Traceback" not in log.read_text()
    assert list(folder.glob("dim-demo-*")) == [], "files are left after the server ended"


@pytest.fixture
def address(server):
    return server[0]


def answer(url, data=None, headers=None):
    request = urllib.request.Request(url, data=data, headers=headers or {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, response.read().decode(errors="replace"), response.headers
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace"), error.headers


def upload(address, content, name="eye.png"):
    mark = "boundary42"
    head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{mark}--\r\n".encode()
    return answer(f"{address}/gradio_api/upload", body, {"Content-Type": f"multipart/form-data; boundary={mark}"})


def segment(address, path, session=None, spacing=None):
    """Ask `/segment_fundus` for a path as a hostile client would; gives the last message of the stream."""
    body = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, spacing], "session_hash": session}
    status, text, _ = answer(
        f"{address}/gradio_api/call/segment_fundus", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    if status != 200:
        return status, text
    event = json.loads(text)["event_id"]
    return answer(f"{address}/gradio_api/call/segment_fundus/{event}")[:2]


def png_that_claims(width, height):
    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    "route",
    [
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/gradio_api/file=https://example.com/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/queue/../../etc/passwd",
        "/gradio_api/vibe-code/",
        "/gradio_api/upload%0A",
        "/config%0A",
        "/docs",
        "/runs",
    ],
)
def test_routes_that_nobody_needs_are_closed(address, route):
    assert answer(address + route)[0] in (400, 403, 404)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        ("/gradio_api/upload", True),
        ("/gradio_api/upload\n", False),  # the server takes it for an upload, and no limit would be looked at
        ("/gradio_api/file=/tmp/a/scan..final.png", True),
        ("/gradio_api/file=/tmp/a/../b.png", False),
        ("/gradio_api/file=../b.png", False),
        ("/gradio_api/file=/tmp/a\\..\\b.png", False),
        ("/assets/a.js\r", False),
        ("/\n", False),
    ],
)
def test_a_path_is_what_it_looks_like(path, allowed):
    assert _is_allowed(path) == allowed


@pytest.mark.slow
@pytest.mark.parametrize("path", ["/etc/passwd", "/proc/self/environ"])
def test_files_of_the_machine_are_not_given(address, path):
    assert answer(f"{address}/gradio_api/file={path}")[0] in (403, 404)


@pytest.mark.slow
def test_the_page_may_ask_this_server_only(address):
    _, body, headers = answer(address)
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "http" not in policy
    assert headers["referrer-policy"] == "no-referrer"
    assert "fonts.googleapis" not in body


@pytest.mark.slow
@pytest.mark.parametrize("path", ["http://127.0.0.1:1/x.png", "https://example.com/x.png", "file:///etc/passwd"])
def test_addresses_in_place_of_files_are_refused(address, path):
    status, said = segment(address, path)
    assert status == 400
    assert "address" in said


@pytest.mark.slow
@pytest.mark.parametrize("spacing", ["wide", "0.5", True, 10**400, [1], {"a": 1}])
def test_numbers_of_wrong_types_are_refused_with_a_sentence(address, spacing):
    _, text, _ = upload(address, png_that_claims(64, 64))
    _, said = segment(address, json.loads(text)[0], spacing=spacing)
    assert "event: error" in said
    assert "wrong type" in said


@pytest.mark.slow
@pytest.mark.parametrize("path", [7, None, {"a": 1}, ["x"]])
def test_files_of_wrong_types_are_refused_with_a_sentence(address, path):
    status, said = segment(address, path)
    assert "event: error" in said or status in (400, 422)
    assert "pydantic" not in said


@pytest.mark.slow
def test_paths_outside_the_uploads_and_folders_of_all_uploads_are_refused(server):
    address, folder = server
    (root,) = folder.glob("dim-demo-*")
    for path in ("/etc/passwd", str(folder), str(root), str(root / "sessions")):
        status, said = segment(address, path)
        assert "event: error" in said or status >= 400, said
        assert "Traceback" not in said


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join"])
@pytest.mark.parametrize("parts", [3, 1000])
def test_who_sends_too_much_hears_the_refusal_unless_it_never_ends(tmp_path, path, parts):
    part = bytes(MAX_MESSAGE_BYTES // 2)
    rest = [{"type": "http.request", "body": part, "more_body": number > 0} for number in range(parts)][::-1]
    given, answered = [], []

    async def receive():
        assert not answered
        given.append(rest.pop(0))
        return given[-1]

    async def send(message):
        answered.append(message)

    guard = Guard(None, DemoSettings(max_upload_bytes=MAX_MESSAGE_BYTES), tmp_path)
    length = str(parts * len(part)).encode()
    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"content-length", length)]}
    asyncio.run(guard(scope, receive, send))
    assert answered[0]["status"] == 413
    assert len(given) == 3, "all of a little too much, and no more of what has no end"


@pytest.mark.slow
def test_large_uploads_and_messages_are_refused(address):
    assert upload(address, bytes(LIMIT + 1))[0] == 413
    assert upload(address, bytes(2 * LIMIT + 1))[0] == 413
    status, said, _ = answer(f"{address}/gradio_api/queue/join", bytes(MAX_MESSAGE_BYTES + 1))
    assert (status, "too large" in said) == (413, True)


@pytest.mark.slow
def test_an_upload_that_breaks_off_leaves_nothing(server):
    address, folder = server
    (root,) = folder.glob("dim-demo-*")
    place = address.removeprefix("http://")
    head = b'--m\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    with socket.create_connection(place.split(":")) as client:
        client.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: %b\r\nContent-Length: 200000\r\n"
            b"Content-Type: multipart/form-data; boundary=m\r\n\r\n%b" % (place.encode(), head + bytes(100_000))
        )
        wait_until(lambda: list(root.glob("tmp*")))
    wait_until(lambda: not list(root.glob("tmp*")))


def wait_until(found):
    deadline = time.monotonic() + 60
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_full_disk_is_told_politely(server):
    address, folder = server
    (root,) = folder.glob("dim-demo-*")
    filler = root / "sessions" / "filler"
    filler.write_bytes(bytes(8 * 10**6))
    try:
        status, said, _ = upload(address, b"x" * 100)
    finally:
        filler.unlink()
    assert (status, "Wait" in said) == (503, True)
    wait_until(lambda: upload(address, b"x" * 100)[0] == 200)  # what lies there is counted once a second


@pytest.mark.slow
def test_a_decompression_bomb_is_refused_by_its_header(address):
    status, text, _ = upload(address, png_that_claims(60_000, 60_000))
    assert status == 200
    began = time.monotonic()
    _, said = segment(address, json.loads(text)[0])
    assert "event: error" in said
    assert "too large" in said
    assert time.monotonic() - began < 30  # decoding takes minutes


@pytest.mark.slow
def test_nothing_is_left_of_a_visitor_who_has_gone(visit, server, tmp_path):  # noqa: F811
    import PIL.Image

    address, folder = server
    (root,) = folder.glob("dim-demo-*")
    eye = tmp_path / f"{uuid.uuid4()}.png"
    PIL.Image.fromarray(render_phantom("fundus", domain="camera_a", index=970, size=96, seed=3)[0]).save(eye)

    def files():
        return sorted(path for path in root.rglob("*") if path.is_file() and "samples" not in path.parts)

    before = files()
    with visit(at=address) as page:
        page.set_input_files("#fundus-upload input[type=file]", str(eye))
        page.wait_for_selector("#fundus-upload img")
        page.click("#fundus-run")
        page.wait_for_selector("#fundus-mask:not([disabled])")
        kept = {path.name for path in files()} - {path.name for path in before}
        assert {eye.name, f"{eye.stem}_mask.png", f"{eye.stem}_measurements.csv"} <= kept
    deadline = time.monotonic() + 90
    while files() != before and time.monotonic() < deadline:
        time.sleep(0.2)
    assert files() == before
    assert [path for path in (root / "sessions").iterdir() if (path / eye.name).exists()] == []


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"data": [{"path": "http://x/y"}]}, True),
        ({"data": [{"path": "/tmp/x", "url": "http://own/file=/tmp/x"}]}, False),
        ({"data": [{"path": "/tmp/x", "url": " DATA:image/png;base64,xx"}]}, True),
        ({"data": [[{"nested": {"path": "ftp://x"}}]]}, True),
        ({"data": ["http://a text of a visitor"]}, False),
        ([], False),
    ],
)
def test_addresses_are_found_wherever_they_stand(message, found):
    assert _names_address(json.dumps(message).encode()) is found
    assert _names_address(json.dumps(message).replace("h", "\\u0068").encode()) is found


def test_a_body_that_is_no_json_is_left_to_the_server():
    assert _names_address(b"{") is False
    assert _names_address(b"") is False
