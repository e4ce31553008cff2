"""What an owner of a run does for `test_hub_model_server.py`, as a process that has this package.

`python -m tests.hub_model_client <folder> <names>`: each named function returns facts, all are printed as JSON.
"""

import json
import sys
from pathlib import Path

from click.testing import CliRunner

from dim_hf.cli import main
from tests.run_without_dim_hf import load, predictions

SAID = ["--licence", "cc-by-4.0", "--intended-use", "research", "--data-statement", "drawn by a program"]


def push(*words):
    result = CliRunner().invoke(main, ["push", *map(str, words), "--no-progress"])
    return [result.exit_code, result.output]


def publish(folder):
    """Push twice to a private repository, once to a public one."""
    facts = {"first": push(folder / "run", "org/seg", "--private", "--dataset-id", "org/fundus", *SAID)}
    facts["again"] = push(folder / "run", "org/seg", "--private", "--dataset-id", "org/fundus", *SAID)
    return facts | {"public": push(folder / "run", "org/open", *SAID)}


def with_dim_hf(folder):
    """Load with this package there: none of the repository's code may run."""
    import dim_hf  # noqa: F401
    from dim_hf.inference.drift_file import find_statistics

    facts = {"plain": predictions(*load("org/seg")), "trusting": predictions(*load("org/seg", trust_remote_code=True))}
    facts["statistics"] = [find_statistics(name) is not None for name in ("org/seg", "org/foreign", "org/none")]
    return facts | {"remote": sorted(name for name in sys.modules if name.startswith("transformers_modules"))}


def refused(folder):
    """What the Hub, or this package, does not do."""
    names = ("other/seg", "org/foreign", "org/broken", "org/spoiled")
    facts = {name: push(folder / "run", name, *SAID) for name in names}
    return facts | {"private": push(folder / "run", "org/open", "--private", *SAID)}


def repeated(folder):
    """An upload whose connection is cut once, and one to where a Trainer's own push left a pickle."""
    return {name: push(folder / "run", name, *SAID) for name in ("org/cut", "org/old")}


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    print(json.dumps({name: globals()[name](folder) for name in sys.argv[2:]}))
