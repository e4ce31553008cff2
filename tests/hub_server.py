"""A Hub on this machine: the part of its HTTP interface that `huggingface_hub` and `datasets` use, in memory.

    with HubServer() as hub:
        subprocess.run(command, env=client_environment(hub, folder))

Clients read the address from the environment when they are imported, so they run in processes of their own.
"""

import base64
import hashlib
import json
import os
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_token_of_the_tests"
LARGE = (".parquet", ".safetensors", ".bin", ".arrow", ".pt", ".nii.gz", ".zip")
DATE = "2024-01-01T00:00:00.000Z"


@dataclass
class Repo:
    """Files of every commit, oldest first; a commit is never changed."""

    private: bool
    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)

    def commit(self, files):
        parent = self.commits[-1][0] if self.commits else ""
        listing = sorted((path, hashlib.sha256(content).hexdigest()) for path, content in files.items())
        self.commits.append((hashlib.sha1(repr((parent, listing)).encode()).hexdigest(), dict(files)))
        return self.commits[-1][0]

    def at(self, revision):
        """Sha and files of a revision, or None."""
        return self.commits[-1] if revision == "main" else next((c for c in self.commits if c[0] == revision), None)


class HubServer(ThreadingHTTPServer):
    """Serves `repos` (`{("dataset", "org/name"): Repo}`) until the `with` block ends.

    `requests` lists what was asked for, `ranges` the parts of files, (path, "bytes=..."). `fault(method, path)` may
    return a status to answer with, "cut" to close the connection in the middle of a file (of an upload: without an
    answer), or "corrupt" to change a byte of it; None leaves a request alone.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos, self.uploads, self.requests, self.ranges, self.lock = {}, {}, [], [], threading.RLock()
        self.fault = lambda method, path: None

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()

    def handle_error(self, request, client_address):
        """Clients that hang up are no news."""

    def files(self, repo_type, name, revision="main"):
        return self.repos[repo_type, name].at(revision)[1]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    API = re.compile(
        r"/api/(model|dataset|space)s/([^/]+/[^/]+?)(?:/(preupload|commit|revision|tree|paths-info|refs)(?:/(.*))?)?"
    )
    RESOLVE = re.compile(r"/(?:(dataset|space)s/)?([^/]+/[^/]+)/resolve/([^/]+)/(.*)")
    BATCH = re.compile(r"/(?:(?:dataset|space)s/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch")

    def log_message(self, *message):
        """Be quiet."""

    def handle_any(self):
        path = urlsplit(self.path).path
        self.server.requests.append((self.command, path))
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = self.read_chunks()
        fault = self.server.fault(self.command, path)
        if isinstance(fault, int):
            return self.fail(fault, "Fault", "fault of the test")
        self.damage = fault
        if self.command == "PUT" and fault == "cut":
            self.close_connection = True
            return None
        if self.command == "PUT" and fault == "corrupt":
            self.body = self.body[:-1] + bytes([self.body[-1] ^ 1])
            self.damage = None
        if "Range" in self.headers:
            self.server.ranges.append((path, self.headers["Range"]))
        with self.server.lock:
            for pattern, answer in self.ROUTES:
                match = re.fullmatch(pattern, path)
                if match:
                    return answer(self, *(unquote(part or "") for part in match.groups()))
        return self.fail(404, "NotFound", f"no route {path}")

    def read_chunks(self):
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    @property
    def known(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def send(self, content=b"", status=200, **headers):
        if not isinstance(content, bytes):
            content = json.dumps(content).encode()
            headers["Content-Type"] = "application/json"
        self.send_response(status)
        for name, value in {"Content-Length": len(content), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.damage == "corrupt" and content:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if self.damage == "cut":
            content, self.close_connection = content[: len(content) // 2], True
        self.wfile.write(content)

    def fail(self, status, code, message):
        self.damage = None
        self.send({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def find(self, repo_type, name, revision=None):
        """Repo, and sha and files of its revision; None after an error was sent."""
        if self.headers.get("Authorization") and not self.known:
            self.fail(401, "Unauthorized", "Invalid credentials in Authorization header")
            return None
        repo = self.server.repos.get((repo_type, name))
        if repo is None or (repo.private and not self.known):
            self.fail(404 if self.known else 401, "RepoNotFound", "Repository not found")
            return None
        commit = repo.at(revision or "main")
        if commit is None:
            self.fail(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return repo, *commit

    def create(self):
        wanted = json.loads(self.body)
        if not self.known:
            return self.fail(401, "Unauthorized", "Invalid credentials in Authorization header")
        name = f"{wanted.get('organization') or 'org'}/{wanted['name']}"
        if not name.startswith("org/"):
            return self.fail(403, "Forbidden", "You don't have the rights to create a repository in this namespace")
        key = (wanted.get("type") or "model", name)
        url = f"{self.server.url}/{'' if key[0] == 'model' else key[0] + 's/'}{name}"
        if key in self.server.repos:
            return self.send({"url": url, "error": "You already created this repo"}, 409)
        repo = Repo(private=bool(wanted.get("private")) or wanted.get("visibility") == "private")
        repo.commit({".gitattributes": b"*.parquet filter=lfs\n"})
        self.server.repos[key] = repo
        return self.send({"url": url, "id": name, "name": name})

    def validate(self):
        content = json.loads(self.body)["content"]
        bad = content.startswith("---\n") and "\n---" not in content[4:]
        errors = [{"message": "no end of the front matter"}] if bad else []
        return self.send({"errors": errors, "warnings": []}, 400 if errors else 200)

    def lfs_batch(self, name):
        actions = []
        for wanted in json.loads(self.body)["objects"]:
            href = f"{self.server.url}/lfs/{wanted['oid']}"
            new = {"actions": {"upload": {"href": href}, "verify": {"href": f"{href}/verify"}}}
            actions.append({**wanted, **({} if wanted["oid"] in self.server.uploads else new)})
        return self.send({"transfer": "basic", "objects": actions})

    def lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self.fail(400, "BadContent", "content does not match its hash")
        self.server.uploads[oid] = self.body
        return self.send()

    def lfs_verify(self, oid):
        return self.send({}) if oid in self.server.uploads else self.fail(404, "NotFound", "not uploaded")

    def api(self, repo_type, name, action, tail):
        if action in ("preupload", "commit") and not self.known:
            return self.fail(401, "Unauthorized", "Invalid credentials in Authorization header")
        revision, _, path = (tail or "main").partition("/")
        found = self.find(repo_type, name, unquote(revision))
        if found is None:
            return None
        repo, sha, files = found
        if action == "preupload":
            paths = [file["path"] for file in json.loads(self.body)["files"]]
            modes = {True: "lfs", False: "regular"}
            oids = {p: entry_of(p, files[p])["oid"] if not p.endswith(LARGE) else digest(files[p])
                    for p in paths if p in files}  # fmt: skip
            answer = [{"path": p, "uploadMode": modes[p.endswith(LARGE)], "shouldIgnore": False, "oid": oids.get(p)}
                      for p in paths]  # fmt: skip
            return self.send({"files": answer})
        if action == "commit":
            return self.commit(repo, sha, files, f"{'' if repo_type == 'model' else repo_type + 's/'}{name}")
        if action == "refs":
            return self.send({"branches": [{"name": "main", "ref": "refs/heads/main", "targetCommit": sha}],
                              "converts": [], "tags": []})  # fmt: skip
        if action in ("tree", "paths-info"):
            wanted = self.form()["paths"] if action == "paths-info" else None
            return self.send(entries(files, path, wanted))
        return self.send({"id": name, "_id": name, "sha": sha, "private": repo.private, "gated": False, "tags": [],
                          "disabled": False, "downloads": 0, "likes": 0, "lastModified": DATE, "createdAt": DATE,
                          "siblings": [{"rfilename": p} for p in sorted(files)]})  # fmt: skip

    def form(self):
        if "json" in self.headers.get("Content-Type", ""):
            return json.loads(self.body)
        return parse_qs(self.body.decode())

    def commit(self, repo, sha, files, place):
        files = dict(files)
        for line in map(json.loads, self.body.splitlines()):
            key, value = line["key"], line["value"]
            if key == "header" and value.get("parentCommit") not in (None, sha):
                return self.fail(412, "PreconditionFailed", "the repository has changed")
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.server.uploads[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
            elif key == "deletedFolder":
                files = {p: c for p, c in files.items() if not p.startswith(value["path"].rstrip("/") + "/")}
        oid = repo.commit(files)
        url = f"{self.server.url}/{place}/commit/{oid}"
        return self.send({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def resolve(self, repo_type, name, revision, path):
        found = self.find(repo_type or "model", name, revision)
        if found is None:
            return None
        _, sha, files = found
        if path not in files:
            return self.fail(404, "EntryNotFound", f"{path} does not exist on {revision}")
        content, entry = files[path], entry_of(path, files[path])
        etag = entry["lfs"]["oid"] if "lfs" in entry else entry["oid"]
        headers = {"ETag": f'"{etag}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        if path.endswith(LARGE):
            headers |= {"X_Linked_Size": len(content), "X_Linked_Etag": f'"{etag}"'}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            return self.send(content, **headers)
        first, last = int(asked[1]), min(int(asked[2] or len(content) - 1), len(content) - 1)
        if first >= len(content):
            return self.send(b"", 416, Content_Range=f"bytes */{len(content)}")
        headers["Content_Range"] = f"bytes {first}-{last}/{len(content)}"
        return self.send(content[first : last + 1], 206, **headers)

    ROUTES = (
        (r"/api/repos/create", create),
        (r"/api/validate-yaml", validate),
        (r"/lfs/(\w+)", lfs_put),
        (r"/lfs/(\w+)/verify", lfs_verify),
        (BATCH, lfs_batch),
        (API, api),
        (RESOLVE, resolve),
    )


for _method in ("GET", "HEAD", "POST", "PUT", "DELETE"):
    setattr(Handler, f"do_{_method}", Handler.handle_any)


def digest(content):
    return hashlib.sha256(content).hexdigest()


def entry_of(path, content):
    """A file as the tree lists it: its oid is git's, of the pointer for a large file."""
    entry = {"type": "file", "path": path, "size": len(content)}
    if path.endswith(LARGE):
        entry["lfs"] = {"oid": digest(content), "size": len(content), "pointerSize": 134}
        content = f"oid sha256:{digest(content)}\nsize {len(content)}\n".encode()
    return {**entry, "oid": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()}


def entries(files, folder, wanted=None):
    """Everything below `folder`, or the `wanted` files and folders."""
    folders = {"/".join(p.split("/")[:n]) for p in files for n in range(1, p.count("/") + 1)}
    tree = [entry_of(path, content) for path, content in files.items()]
    tree += [{"type": "directory", "path": p, "size": 0, "oid": hashlib.sha1(p.encode()).hexdigest()} for p in folders]
    keep = (lambda p: p in wanted) if wanted is not None else (lambda p: not folder or p.startswith(folder + "/"))
    return sorted((entry for entry in tree if keep(entry["path"])), key=lambda entry: entry["path"])


def client_environment(hub_url, folder, *, token=TOKEN, offline=False):
    """Environment of a process that knows no Hub but this one and keeps its caches below `folder`."""
    names = ("HF_", "HUGGING", "TRANSFORMERS_", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(names)}
    mine = {"HF_ENDPOINT": hub_url, "HF_HOME": str(folder), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*",
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}  # fmt: skip
    extra = {"HF_TOKEN": token} if token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    return kept | mine | extra | ({"HF_HUB_OFFLINE": "1"} if offline else {})
