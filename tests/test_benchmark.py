"""`examples/benchmark.py`: each setting is one that the arguments take, and the table says what was found."""

import json
import runpy
from pathlib import Path

import pytest
from click.testing import CliRunner

SCRIPT = Path(__file__).parents[1] / "examples" / "benchmark.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(
    "name", ["transformers.Trainer", "plain", "DiM, sam_every=2", "DiM, ascent_fraction=0.5", "DiM, bf16=true"]
)
def test_a_setting_is_measured(script, name):
    settings = script["all_settings"]({"bf16": False, "channels_last": True, "torch_compile": False})
    task = {"image_size": 16, "hidden_sizes": [4, 8], "device": "cpu", "repeats": 3, "arguments": settings[name]}
    found = script["run_apart"](task)  # what a process grew by is its own only where nothing ran before
    assert len(found["seconds"]) == 3  # without the warm-up
    assert all(value > 0 for value in found["seconds"])
    assert found["peak_memory"] > 0
    assert found["weights"] > 4 * 1000


def test_each_switch_is_tried_the_other_way(script):
    settings = script["all_settings"]({"bf16": True, "channels_last": True, "torch_compile": False})
    assert settings["DiM, bf16=false"] == settings["DiM"] | {"bf16": False}
    assert settings["DiM, torch_compile=true"] == settings["DiM"] | {"torch_compile": True}
    assert all(arguments["bf16"] for name, arguments in settings.items() if name != "DiM, bf16=false")


def test_table_and_file(script, tmp_path, monkeypatch):
    """Steps of 100, 200 and 300 ms; 400 MiB each, and 100 more for DiM."""

    def found(task):
        arguments = task["arguments"]
        slow = (arguments.get("consistency_weight", 1) > 0) + (arguments.get("rho", 0.05) > 0)
        memory = (500 if slow == 2 else 400) * 2**20
        return {"seconds": [0.1 * (1 + slow)], "peak_memory": memory, "weights": 50 * 2**20, "device": "abacus"}

    monkeypatch.setitem(script["main"].callback.__globals__, "run_apart", found)
    output = tmp_path / "costs.json"
    words = ["--settings", "plain; teacher-student; DiM", "--rounds", "2", "--output", str(output)]
    said = CliRunner().invoke(script["main"], words, catch_exceptions=False).output
    assert "| plain | 100 | 1.00 | 0.50 | 400 | 1.00 |" in said
    assert "| DiM | 300 | 3.00 | 1.50 | 500 | 1.25 |" in said
    assert "1.50 times" in said
    assert "510 MiB" in said  # 1.15 x 400 + 50
    results = json.loads(output.read_text())["results"]
    assert [row["setting"] for row in results] == ["plain", "teacher-student", "DiM"]
    assert len(results[0]["seconds"]) == 2
    assert "no such setting: DaM" in CliRunner().invoke(script["main"], ["--settings", "DaM"]).output
