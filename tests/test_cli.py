"""What all subcommands have in common: completion, help with examples and exit codes, reports as JSON."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from dim_hf.cli import COMMANDS, main
from dim_hf.cli.completion import SHELLS

HEAVY = ("torch", "transformers", "datasets", "matplotlib", "huggingface_hub", "gradio")
ASK = f"""
import sys
from dim_hf.cli import main
try:
    main(prog_name="dim-hf")
finally:
    heavy = [name for name in {HEAVY!r} if name in sys.modules]
    assert not heavy, heavy
"""
PROGRAM = Path(sys.executable).with_name("dim-hf")


def completed(line, shell="bash"):
    """What the shell is told for a line, by click's protocol: answers of another process, without their kinds."""
    words = line.split(" ")
    number = words[-1] if shell == "fish" else str(len(words) - 1)
    told = {"COMP_WORDS": line, "COMP_CWORD": number, "_DIM_HF_COMPLETE": f"{shell}_complete"}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=os.environ | told, capture_output=True, text=True, check=False
    )
    assert "AssertionError" not in done.stderr, "a heavy package was imported"
    return done.stdout


@pytest.mark.parametrize("shell", SHELLS)
def test_subcommands_are_completed(shell):
    told = completed("dim-hf ev", shell)
    assert "evaluate" in told
    assert "export" not in told
    everything = completed("dim-hf ", shell)
    assert all(name in everything for name in COMMANDS)


def test_options_and_their_values_are_completed():
    assert completed("dim-hf evaluate --output").split() == ["plain,--output-dir"]
    values = completed("dim-hf predict runs/a scans masks --uncertainty ").split()
    assert values == ["plain,entropy", "plain,flips", "plain,teacher-student"]
    assert completed("dim-hf export m o --format o").split() == ["plain,onnx"]
    assert completed("dim-hf import ms").split() == ["plain,msd"]


@pytest.mark.parametrize("line", ["predict ", "predict runs/a ", "evaluate ", "doctor ", "export ", "diagnose a "])
def test_names_of_models_and_data_may_be_paths(line):
    assert completed(f"dim-hf {line}").split() == ["file,"]


@pytest.mark.skipif(not PROGRAM.is_file(), reason="dim-hf is not installed as a program")
def test_bash_completes_with_what_the_command_prints(tmp_path):
    (tmp_path / "complete.sh").write_text(CliRunner().invoke(main, ["completion", "bash"]).output)
    code = """
        source complete.sh
        COMP_WORDS=(dim-hf predict a b c --uncertainty t); COMP_CWORD=6
        _dim_hf_completion dim-hf dim-hf t
        echo "${COMPREPLY[@]}"
    """
    path = f"{PROGRAM.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", code], cwd=tmp_path, env=os.environ | {"PATH": path}, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["teacher-student"], done.stderr


@pytest.mark.parametrize("shell", SHELLS)
def test_completions_are_printed_for_each_shell(shell):
    done = CliRunner().invoke(main, ["completion", shell])
    assert done.exit_code == 0
    assert f"_DIM_HF_COMPLETE={shell}_complete" in done.output
    assert SHELLS[shell][0] in CliRunner().invoke(main, ["completion", "--help"]).output


def test_a_shell_that_nobody_knows_is_refused():
    assert CliRunner().invoke(main, ["completion", "csh"]).exit_code == 2


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_an_example_and_the_exit_codes(name):
    done = CliRunner().invoke(main, [name, "--help"])
    assert done.exit_code == 0
    text = " ".join(done.output.split())
    assert f"dim-hf {name}" in text.partition("Options")[2]
    assert "Exit codes: 0" in text, "no exit codes"


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in ("demo", "completion")])
def test_whoever_reports_does_so_for_programs_too(name):
    assert "--json" in CliRunner().invoke(main, [name, "--help"]).output


def test_the_package_runs_as_a_module():
    command = [sys.executable, "-m", "dim_hf.cli", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert done.stdout.startswith("Usage: dim-hf ")
    assert "predict" in done.stdout


def test_options_that_do_not_exist_are_named():
    for name in COMMANDS:
        if name != "train":  # takes any field of its configuration
            done = CliRunner().invoke(main, [name, "--no-such-option"])
            assert done.exit_code == 2, name
            assert "no-such-option" in done.output


def test_an_import_says_in_json_what_it_found(tmp_path):
    import numpy as np
    import PIL.Image

    for index in range(4):
        for folder, top in (("images", 255), ("masks", 2)):
            path = tmp_path / "src" / "site" / folder / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.fromarray(np.random.default_rng(index).integers(0, top, (16, 16), np.uint8)).save(path)
    words = ["import", "folders", str(tmp_path / "src"), str(tmp_path / "out"), "--json", "--no-progress"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    assert said["manifest"] == str(tmp_path / "out" / "manifest.csv")
    assert sum(count for part, count in said["domains"]["site"].items() if part != "labeled") == 4
    assert said["domains"]["site"]["labeled"] == 4
    assert said["address"] is None
