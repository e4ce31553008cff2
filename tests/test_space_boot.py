"""The Space boots as Spaces would boot it: a clean environment with its requirements alone, the folder copied away."""

import json
import os
import re
import shutil
import subprocess
import sys
import urllib.request
import venv
from pathlib import Path

import pytest

from tests.browser import start_server, stop_server

ROOT = Path(__file__).resolve().parents[1]
SPACE = ROOT / "space"
INSTALL_SECONDS = 900
CLEAN = os.environ.get("SPACE_BOOT") == "clean"
"""Install everything anew; else the packages of this environment stand in for those of the registry."""


def front_matter():
    text = (SPACE / "README.md").read_text(encoding="utf-8")
    block = re.match(r"---\n(.*?)\n---\n", text, re.DOTALL).group(1)
    return dict(line.split(": ", 1) for line in block.splitlines())


def test_the_front_matter_names_what_is_there():
    import gradio

    stated = front_matter()
    assert stated["sdk"] == "gradio"
    assert (SPACE / stated["app_file"]).is_file()
    assert stated["sdk_version"].split(".")[0] == gradio.__version__.split(".")[0]
    assert len(stated["short_description"]) <= 60
    wanted = {"title", "emoji", "colorFrom", "colorTo", "python_version", "license", "suggested_hardware"}
    assert wanted <= set(stated)


def test_the_space_holds_three_files_and_no_code_of_its_own():
    files = sorted(path.name for path in SPACE.iterdir() if path.name != "__pycache__")
    assert files == ["README.md", "app.py", "requirements.txt"]
    assert len((SPACE / "app.py").read_text(encoding="utf-8").splitlines()) < 15


def run(*command, **options):
    found = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_SECONDS, **options)
    assert found.returncode == 0, (found.stdout + found.stderr)[-3000:]
    return found.stdout


@pytest.fixture(scope="module")
def booted(tmp_path_factory):
    """Python of an environment with the Space's requirements, and a copy of the folder outside of the repository."""
    folder = tmp_path_factory.mktemp("elsewhere")
    source = folder / "source"  # a build leaves files beside its source
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".git", ".venv", "runs", "build", "*.egg-info", "__pycache__", ".*"),
    )
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--quiet",
        "--wheel-dir",
        str(folder / "wheels"),
        str(source),
    )
    shutil.rmtree(source)
    venv.create(folder / "env", with_pip=CLEAN)
    python = folder / "env" / "bin" / "python"
    if CLEAN:
        install = (str(python), "-m", "pip", "install", "--quiet", "--find-links", str(folder / "wheels"))
        run(*install, "--requirement", str(SPACE / "requirements.txt"))
    else:
        _borrow_packages(python)
        wheel = next((folder / "wheels").glob("*.whl"))
        run(sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps", str(wheel))
    shutil.copytree(SPACE, folder / "space", ignore=shutil.ignore_patterns("__pycache__"))
    return python, folder / "space"


def _borrow_packages(python):
    """Let an environment see this one's packages, but not this repository, which is installed in place."""
    theirs = Path(run(str(python), "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    ours = Path(run(sys.executable, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])").strip())
    for package in ours.iterdir():
        if not package.name.startswith(("__editable__", "dim_hf", "_dim_hf")) and package.suffix != ".pth":
            (theirs / package.name).symlink_to(package)


@pytest.mark.slow
def test_the_package_brings_models_and_style(booted):
    python, folder = booted
    found = run(
        *(str(python), "-c"),
        "import dim_hf, pathlib; root = pathlib.Path(dim_hf.__file__).parent; print(root);"
        "print(sorted(path.parent.name for path in root.glob('demo/models/*/model.safetensors')));"
        "print(sum(path.stat().st_size for path in root.glob('demo/models/*/*')));"
        "print((root / 'demo/assets/style.css').is_file())",
        cwd=folder,
    ).splitlines()
    assert not Path(found[0]).is_relative_to(ROOT)
    assert found[1] == "['fundus', 'fundus-baseline', 'volume']"
    assert int(found[2]) <= 4_000_000
    assert found[3] == "True"


@pytest.mark.slow
def test_the_space_answers_offline(booted):
    python, folder = booted
    environment = {"HF_HUB_OFFLINE": "1", "PYTHONPATH": "", "DIM_MODEL": ""}
    process, address, log = start_server([str(python), "app.py"], cwd=folder, environment=environment)
    try:
        with urllib.request.urlopen(address, timeout=30) as response:
            assert response.status == 200
        with urllib.request.urlopen(f"{address}/gradio_api/info", timeout=30) as response:
            documented = re.findall(r'api_name="(/\w+)"', (SPACE / "README.md").read_text(encoding="utf-8"))
            assert sorted(json.load(response)["named_endpoints"]) == sorted(documented)
    finally:
        stop_server(process)
    assert "Traceback" not in log.read_text()
