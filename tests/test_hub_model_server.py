"""Publishing a run and loading it, through the real client of the Hub, against a server on this machine."""

import json
import re
import socket
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.hub_runs import make_run
from tests.hub_server import TOKEN, HubServer, Repo, client_environment

pytestmark = pytest.mark.slow  # a minute in all: each process imports torch
WITHOUT = Path(__file__).with_name("run_without_dim_hf.py")
FILES = {
    ".eval_results/dim-hf.yaml", ".gitattributes", "README.md", "cases.csv", "config.json",
    "configuration_dim_unet.py", "figures/curves.png", "figures/sites.png", "image_processing_dim_unet.py",
    "intensity_dim_unet.py", "job.json", "loss_dim_unet.py", "model.safetensors", "modeling_dim_unet.py",
    "preprocessor_config.json", "results.json", "site_statistics.json", "summary.csv",
}  # fmt: skip


def run_process(command, folder, url, cwd=None, **options):
    environment = client_environment(url, folder / "home", **options) | {"TMPDIR": str(folder), "MPLBACKEND": "Agg"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, cwd=cwd)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


def own(names, folder, url, **options):
    """Facts of `hub_model_client` by name."""
    return run_process([sys.executable, "-m", "tests.hub_model_client", str(folder), *names], folder, url, **options)


def others(request, folder, url, **options):
    """Facts of a process that cannot import this package."""
    packages = sysconfig.get_paths()["purelib"]
    command = [sys.executable, "-I", "-S", str(WITHOUT), packages, json.dumps(request)]
    facts = run_process(command, folder, url, cwd=folder, **options)
    assert not facts["found"]
    assert not facts["imported"]
    return facts


class Faults:
    """What goes wrong, by repository: a refused commit, spoiled or cut uploads, a cut and a spoiled download."""

    def __init__(self, hub):
        self.hub, self.uploading, self.cut = hub, "", []

    def __call__(self, method, path):
        if path.endswith("/info/lfs/objects/batch"):
            self.uploading = path.split(".git/")[0].strip("/")
            if self.uploading in ("org/cut", "org/spoiled"):
                self.hub.uploads.clear()  # else the server has these weights already
        if "org/broken/commit" in path:
            return 400
        if method == "PUT":
            return {"org/spoiled": "corrupt", "org/cut": self.once("upload")}.get(self.uploading)
        if method == "GET" and path.endswith("model.safetensors"):
            return self.once("download") if "org/seg" in path else "corrupt"
        return None

    def once(self, what):
        if what in self.cut or (what == "upload" and self.uploading != "org/cut"):
            return None
        return self.cut.append(what) or "cut"


STALE = ("training_args.bin", "optimizer.pt", "model-00001-of-00002.safetensors", "modeling_old_dim_unet.py")


@pytest.fixture(scope="module")
def hub():
    with HubServer() as server:
        for name, files in {
            "org/foreign": {"pytorch_model.bin": b"x"},
            "org/old": {"results.json": b"{}", "notes.txt": b"mine", **dict.fromkeys(STALE, b"x")},
        }.items():
            server.repos["model", name] = Repo(private=False)
            server.repos["model", name].commit(files)
        server.fault = Faults(server)
        yield server


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    make_run(folder / "run")
    return folder


@pytest.fixture(scope="module")
def all_facts(hub, folder):
    return own(["publish", "with_dim_hf", "refused", "repeated"], folder, hub.url)


@pytest.fixture(scope="module")
def facts(all_facts):
    return all_facts["publish"]


@pytest.fixture(scope="module")
def repo(hub, facts):
    return hub.repos["model", "org/seg"]


@pytest.fixture(scope="module")
def with_package(all_facts):
    return all_facts["with_dim_hf"]


@pytest.fixture(scope="module")
def loaded(hub, repo, tmp_path_factory):
    """What somebody else sees: the card's own code, the main branch; and `org/open`, whose weights arrive spoiled."""
    folder = tmp_path_factory.mktemp("others")
    hub.fault.cut, hub.ranges = [], []
    Image.new("RGB", (50, 40), (200, 90, 30)).save(folder / "scan.png")
    card = repo.commits[-1][1]["README.md"].decode()
    request = {
        "chunk": 4096,
        "run": {"card": re.search(r"```python\n(.*?)```", card, re.DOTALL)[1]},
        "load": {"main": ["org/seg", {}], "open": ["org/open", {}]},
        "verify": {"verified": "org/seg", "spoiled": "org/open"},
    }
    return others(request, folder, hub.url) | {"folder": folder}


def closed_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_one_commit_and_none_for_an_equal_run(hub, repo, facts):
    assert facts["first"][0] == facts["again"][0] == facts["public"][0] == 0, facts
    assert len(repo.commits) == 2  # the Hub's own, and the push
    assert repo.private
    address = f"{hub.url}/org/seg/tree/{repo.commits[1][0]}"
    assert facts["first"][1].strip().endswith(address)
    assert facts["again"][1].strip().endswith(address)


def test_what_is_published(repo, folder):
    files = repo.commits[-1][1]
    assert files.keys() == FILES
    assert files["model.safetensors"] == (folder / "run" / "model.safetensors").read_bytes()
    for path, content in files.items():
        assert str(folder).encode() not in content, path
        assert b"hf_token_of_the_tests" not in content, path
        assert not content.startswith((b"\x80", b"PK")), path  # pickles, and torch's archives of them
    assert yaml.safe_load(files["README.md"].decode().split("---\n")[1])["datasets"] == ["org/fundus"]


def test_loads_without_the_package_by_the_code_of_the_card(loaded):
    assert loaded["card"] == ["model", "part", "processor", "segment"]
    assert len(list(loaded["folder"].glob("*.png"))) > 1  # the scan and a mask
    found = loaded["main"]
    assert all(module.startswith("transformers_modules.") for module in found["classes"]), found
    assert all(size == [50, 40, "L"] for size in found["parts"].values())
    assert set(found["parts"]) <= {"background", "rim", "cup"}
    assert loaded["verified"] == []


def test_with_the_package_no_remote_code_runs(with_package):
    for found in (with_package["plain"], with_package["trusting"]):
        assert all(module.startswith("dim_hf.models.") for module in found["classes"]), found
    assert with_package["remote"] == []


def test_statistics_of_the_sites_come_along_where_there_are_some(with_package):
    assert with_package["statistics"] == [True, False, False]


def test_remote_and_own_code_agree(with_package, loaded):
    assert with_package["plain"]["logits"] == pytest.approx(loaded["main"]["logits"], abs=1e-6)
    assert with_package["plain"]["parts"] == loaded["main"]["parts"]


def test_loaded_once_loads_at_a_pinned_revision_without_sockets(repo, loaded):
    pin = {"revision": repo.commits[-1][0]}
    request = {"blocked": True, "load": {"main": ["org/seg", {}], "pinned": ["org/seg", pin]}}
    found = others(request, loaded["folder"], closed_address(), offline=True)
    assert found["main"]["logits"] == found["pinned"]["logits"] == loaded["main"]["logits"], found


def test_who_may_not_see_it_is_told(hub, repo, tmp_path):
    token = {"token": TOKEN}
    cases = {
        "private": ["org/seg", {}],
        "wrong": ["org/seg", {"token": "hf_wrong"}],
        "missing": ["org/nothing", token],
        "revision": ["org/seg", token | {"revision": "0" * 40}],
    }
    found = others({"load": cases}, tmp_path, hub.url, token=None)
    assert {found[name]["error"] for name in cases} == {"OSError"}
    for name, part in {"private": "org/seg", "wrong": "org/seg", "missing": "org/nothing", "revision": "0000"}.items():
        assert part in found[name]["message"]


def test_a_download_that_is_cut_goes_on_where_it_was(hub, loaded, with_package):
    assert hub.fault.cut == ["download"]
    asked = [part for path, part in hub.ranges if path.endswith("model.safetensors")]
    assert asked == ["bytes=12288-"]  # three chunks of the first half
    assert loaded["main"]["logits"] == pytest.approx(with_package["plain"]["logits"], abs=1e-6)


def test_a_spoiled_download_is_found(loaded):
    assert loaded["spoiled"] == ["model.safetensors"]


def test_refusals_name_repository_and_fix(hub, all_facts):
    found = all_facts["refused"]
    expected = {
        "other/seg": ("could not be pushed", "right to write"),
        "org/foreign": ("holds other files (pytorch_model.bin)", "choose another name"),
        "org/broken": ("could not be pushed", "refused"),
        "org/spoiled": ("could not be pushed", "refused"),
        "private": ("exists and is public", "make it private"),
    }
    for name, parts in expected.items():
        assert found[name][0] == 1
        assert all(part in found[name][1] for part in parts), found[name]
    for name in ("org/broken", "org/spoiled"):  # nothing but the commit that the Hub makes itself
        assert len(hub.repos["model", name].commits) == 1


def test_an_upload_that_is_cut_is_repeated(hub, all_facts, folder):
    assert all_facts["repeated"]["org/cut"][0] == 0, all_facts["repeated"]
    weights = (folder / "run" / "model.safetensors").read_bytes()
    assert hub.files("model", "org/cut")["model.safetensors"] == weights


def test_pickles_and_other_weights_go_in_the_same_commit(hub, all_facts):
    assert all_facts["repeated"]["org/old"][0] == 0, all_facts["repeated"]
    files = hub.files("model", "org/old")
    assert not set(STALE) & files.keys()
    assert files["notes.txt"] == b"mine"
    assert len(hub.repos["model", "org/old"].commits) == 2
