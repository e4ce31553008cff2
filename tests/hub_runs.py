"""A finished run for the tests of publishing: two steps on a phantom, 32 pixels."""

import json
import re

import yaml

from dim_hf.hub.run_folder import HASHES, run_hashes
from dim_hf.hub.statements import Statements
from dim_hf.trainer.job import run_job
from dim_hf.trainer.job_arguments import job_with

SETTINGS = {
    "dataset": "phantom:fundus",
    "phantom_images_per_domain": 10,
    "num_labeled": 4,
    "num_validation": 2,
    "image_size": 32,
    "hidden_sizes": [8, 16],
    "max_steps": 2,
    "eval_steps": 1,
    "save_steps": 1,
    "logging_steps": 1,
    "labeled_batch_size": 2,
    "unlabeled_batch_size": 2,
    "use_cpu": True,
    "disable_tqdm": True,
    "auto_bf16": False,
}
SAID = Statements(
    licence="cc-by-4.0",
    intended_use="Research | on <b>segmentation</b>.\n\nNothing *else*.",
    data_statement="Drawn by a program, see https://example.org/a_b; no patient.",
)


def make_run(folder, **changes):
    """Train, and state the hashes as a run does."""
    run_job(job_with([], **SETTINGS | changes, output_dir=str(folder)))
    state_hashes(folder)
    return folder


def state_hashes(folder):
    """Make results.json say that its scores are those of the files beside it."""
    change_results(folder, {HASHES: run_hashes(folder)})


def change_results(folder, changes):
    path = folder / "results.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def on_one_width(card):
    """A card whose columns and lines of YAML do not depend on how long its numbers are; other blanks stay."""
    _, front, body = card.split("---\n", 2)
    front = yaml.safe_dump(yaml.safe_load(front), sort_keys=False, width=10**6)
    rows = re.sub(r"^\|.*$", lambda row: re.sub(" +", " ", row[0]), body, flags=re.MULTILINE)
    return re.sub(r"(?<=\| )-+", "---", f"---\n{front}---\n{rows}")


def matches(text, expected):
    """Line by line; `{number}` stands for any number, `{text}` for any text."""
    known = {"{number}": r"[-+]?\d+(\.\d+)?(e-\d+)?", "{text}": ".*"}
    for line, pattern in zip(text.splitlines(), expected.splitlines(), strict=True):
        regex = "".join(known.get(part, re.escape(part)) for part in re.split(r"(\{\w+\})", pattern))
        assert re.fullmatch(regex, line), f"{line!r} is not {pattern!r}"
