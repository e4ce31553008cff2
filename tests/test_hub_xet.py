"""Whichever way the client of the Hub sends large files, a push succeeds or says what to do.

Xet's own storage is not served here: its client speaks binary formats (chunks, shards, upload grants) that are not
stable. What is held: without `hf_xet`, or with it switched off, files go by LFS; with it, where the Hub has no such
storage, the push ends in a sentence and changes nothing.
"""

import importlib.util
import json
import subprocess
import sys

import pytest

from tests.hub_server import HubServer, client_environment

PUSH = """
import importlib.metadata, json, os, sys
from pathlib import Path

if sys.argv[2] == "missing":
    version = importlib.metadata.version
    def without(name):
        if name.replace("-", "_") == "hf_xet":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)
    importlib.metadata.version = without
    sys.modules["hf_xet"] = None

from huggingface_hub import HfApi
from huggingface_hub.utils._runtime import is_xet_available
from dim_hf.data.hub.commit import Target, commit_folder, progress_bars, remote_state
from dim_hf.data.hub.errors import MODEL, hub_errors

api, target = HfApi(), Target("org/weights", "model", "results.json", ())
try:
    with progress_bars(False), hub_errors("org/weights", "pushed", MODEL):
        said = commit_folder(api, target, Path(sys.argv[1]), remote_state(api, target), "push")
except ConnectionError as error:
    said = str(error)
print(json.dumps([is_xet_available(), said]))
"""


@pytest.mark.parametrize("xet", ["off", "missing", "on"])
def test_large_files_go_by_lfs_or_the_push_says_why_not(tmp_path, xet):
    if xet == "on" and importlib.util.find_spec("hf_xet") is None:
        pytest.skip("hf_xet is not installed")
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(bytes(range(256)) * 500)
    (folder / "results.json").write_text("{}")
    with HubServer() as hub:
        environment = client_environment(hub.url, tmp_path / "home")
        if xet != "off":
            del environment["HF_HUB_DISABLE_XET"]
        command = [sys.executable, "-c", PUSH, str(folder), xet]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
        available, said = json.loads(done.stdout.splitlines()[-1])
        assert available == (xet == "on")
        files = hub.files("model", "org/weights")
        if xet == "on":
            assert said.startswith(
                "org/weights could not be pushed: the transfer by Xet failed; try again, or go with"
            )
            assert "HF_HUB_DISABLE_XET=1" in said
            assert "model.safetensors" not in files
        else:
            assert said.startswith(f"{hub.url}/org/weights/tree/")
            assert files["model.safetensors"] == (folder / "model.safetensors").read_bytes()
