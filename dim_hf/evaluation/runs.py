"""What a run's folder says about the model in it, and which images it may be tested on."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets

from dim_hf.data.rows import is_present
from dim_hf.data.splits import mark_test_patients
from dim_hf.evaluation.result import Provenance

RESULTS_FILE = "results.json"
SPLITS = ("test", "validation", "train", "all")


@dataclass(frozen=True)
class RunFacts:
    """The parts of `results.json` that an evaluation needs; all empty for a model from elsewhere."""

    split: dict[str, Any]
    data: dict[str, Any]
    training: dict[str, Any]
    arguments: dict[str, Any]
    environment: dict[str, Any]


def read_run(model: str) -> RunFacts:
    """Read `results.json` beside a model, if there is one.

    Raises:
        ValueError: If it is no JSON object.
    """
    path = Path(model) / RESULTS_FILE
    if not path.is_file():
        return RunFacts({}, {}, {}, {}, {})
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        job = results.get("job", {})
        return RunFacts(
            results.get("split", {}),
            job.get("data", {}),
            results.get("training", {}),
            job.get("training", {}),
            results.get("environment", {}),
        )
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, AttributeError) as error:
        raise ValueError(f"{path} cannot be read ({error}); remove it, or train again") from error


def rows_to_score(rows: datasets.Dataset, split: str, run: RunFacts) -> datasets.Dataset:
    """The rows of a split; test images that no row marks are those that the run's own seed drew.

    Raises:
        ValueError: If the split is unknown or has no row, or the images differ from those of the run's split.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}; choose one of {', '.join(SPLITS)}")
    if split == "all":
        return rows
    marked = rows
    if "test" not in rows["split"] and run.data:
        marked = mark_test_patients(
            rows, seed=int(run.data.get("split_seed", 0)), test_fraction=float(run.data.get("test_fraction", 0.2))
        )
    chosen = [index for index, part in enumerate(marked["split"]) if part == split]
    if not chosen:
        raise ValueError(
            f"no image is marked {split!r}; mark some in the manifest (dim-hf import --test-fraction), or score all "
            "of them with --split all"
        )
    scored = marked.select(chosen)
    if split == "test":
        _check_hashes(scored, run)
    return scored


def _check_hashes(rows: datasets.Dataset, run: RunFacts) -> None:
    """Refuse to call images test images if the run had others: some may have been trained on."""
    expected = {domain: part.get("names_sha256") for domain, part in run.split.get("test", {}).items()}
    rows = rows.select(is_present(rows, "label").nonzero()[0])
    domains, names = rows["domain"], rows["name"]
    for domain in dict.fromkeys(domains):
        own = sorted(f"{domain}/{name}" for d, name in zip(domains, names, strict=True) if d == domain)
        found = hashlib.sha256("\n".join(own).encode()).hexdigest()
        if domain in expected and expected[domain] != found:
            raise ValueError(
                f"the test images of domain {domain!r} are not those that the run held out, so the model may have "
                "seen some; evaluate on the data set that it was trained on, or score everything with --split all"
            )


def provenance_of(model: str, dataset: str, protocol: str, split: str, run: RunFacts) -> Provenance:
    """Say where numbers come from."""
    if not run.split:
        return Provenance(model, dataset, protocol)
    labeled = run.split.get("labeled", {})
    hashes = {
        name: run.split[name]["names_sha256"] for name in ("labeled", "unlabeled", "validation") if run.split.get(name)
    }
    hashes |= {f"test of {domain}": part["names_sha256"] for domain, part in run.split.get("test", {}).items()}
    selection = run.training.get("selected", "unknown")
    return Provenance(
        model,
        dataset,
        protocol,
        labeled_domain=run.split.get("labeled_domain"),
        labeled_images=labeled.get("images"),
        labeled_patients=labeled.get("patients"),
        seeds=[int(run.arguments["seed"])] if "seed" in run.arguments else [],
        selection=selection,
        selected_on_test="test-legacy" in selection,
        # A run's own split keeps test images out of the unlabeled ones; all images include those trained on.
        transductive=split in ("all", "train"),
        scored_model=run.training.get("scored_model"),
        split_hashes=hashes,
        environment=run.environment,
    )
