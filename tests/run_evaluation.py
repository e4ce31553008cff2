"""Evaluates by all ways there are, for `test_evaluation_processes.py`; called, or started by `accelerate launch`."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from dim_hf.data.sources import load_source
from dim_hf.evaluation.evaluate import EvaluationOptions, evaluate_model
from dim_hf.evaluation.prediction import process_state
from dim_hf.models import DimImageProcessor
from dim_hf.trainer.launch import leave_processes
from tests.test_evaluation import DESCRIPTION, PROVENANCE, Threshold
from tests.tiny import TinyImages, tiny_model, tiny_trainer

SIZES = (7, 2, 1)  # odd, even, fewer than two processes


def evaluated(rows, protocol="image"):
    """What `evaluate_model` finds, as JSON holds it."""
    options = EvaluationOptions(protocol, tolerance_mm=1.0, batch_size=2, progress=False)
    # A threshold that the squares straddle, so that scores differ among the cases.
    found = evaluate_model(Threshold(0.58), DimImageProcessor(num_channels=1), rows, DESCRIPTION, PROVENANCE, options)
    pictures = {
        f"{kind} of {domain}": [(item.name, item.dice, int(item.image.sum())) for item in items]
        for kind in ("worst", "best")
        for domain, items in getattr(found, kind).items()
    }
    return {
        "cases": [asdict(case) for case in found.cases],
        "summary": asdict(found.summary),
        "pixels": {domain: bins.counts.tolist() for domain, bins in found.reliability.items()},
        "pictures": pictures,
    }


def trained(folder):
    """What `Trainer.evaluate` and `Trainer.predict` give for data sets of sizes that no batch divides."""
    datasets = {str(size): TinyImages(size, seed=size) for size in SIZES}
    trainer = tiny_trainer(folder, tiny_model().double(), eval_dataset=datasets, per_device_eval_batch_size=2)
    scores = {key: value for key, value in trainer.evaluate().items() if key.endswith(("dice", "hd95", "asd"))}
    labels = {size: trainer.predict(dataset).label_ids for size, dataset in datasets.items()}
    return {"scores": scores, "labels": {size: np.asarray(found).tolist() for size, found in labels.items()}}


def evaluate_everything(pictures, slices, folder):
    """Evaluations of pictures of two domains, of slices put together to volumes, and by the Trainer."""
    rows = load_source(str(pictures)).rows
    found = {f"{size} pictures": evaluated(rows.select(range(len(rows) - size, len(rows)))) for size in SIZES}
    found["volumes"] = evaluated(load_source(str(slices)).rows, "volume-mm")
    found["processes"] = [process_state().num_processes]  # before the Trainer sets its own state
    found["trainer"] = trained(folder)
    found["processes"].append(process_state().num_processes)
    return found


if __name__ == "__main__":
    pictures, slices, folder = map(Path, sys.argv[1:])
    found = evaluate_everything(pictures, slices, folder / "run")
    (folder / f"rank{process_state().process_index}.json").write_text(json.dumps(found), encoding="utf-8")
    leave_processes()
