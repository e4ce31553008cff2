"""What a finished run is worth: scores of its test and validation images, and what its training cost."""

import numpy as np
import torch

from dim_hf.data.datasets import SegmentationDataset
from dim_hf.metrics.cases import CaseResult, score_case
from dim_hf.metrics.report import MEAN_OF_SITES, site_table
from dim_hf.trainer.dim_trainer import DimTrainer


def score_test_sets(
    trainer: DimTrainer, test: dict[str, SegmentationDataset]
) -> tuple[dict[str, np.ndarray], list[CaseResult]]:
    """Predict and score every test image with the scored model, at the network's resolution, in pixels."""
    predictions: dict[str, np.ndarray] = {}
    cases: list[CaseResult] = []
    for domain, dataset in test.items():
        output = trainer.predict(dataset, metric_key_prefix=f"test_{domain}")
        predictions[domain] = output.predictions.astype(np.uint8)
        names, patients = dataset.rows["name"], dataset.rows["patient"]
        for index, (predicted, reference) in enumerate(zip(output.predictions, output.label_ids, strict=True)):
            cases += score_case(
                predicted, reference, trainer.structures, domain=domain, patient=patients[index], name=names[index]
            )
    return predictions, cases


def validation_scores(trainer: DimTrainer) -> dict[str, float] | None:
    """Dice of the saved model on the validation images, by structure and their mean; None where there are none."""
    if not trainer.eval_dataset or trainer.args.select == "test-legacy":
        return None
    rows = site_table(score_test_sets(trainer, trainer.eval_dataset)[1]).rows
    return {row.structure: row.means["dice"] for row in rows if row.domain != MEAN_OF_SITES}


def training_cost(metrics: dict[str, float], trainer: DimTrainer) -> dict[str, float | None]:
    """Seconds a step and images a second over the whole training (validation included), peak memory in GiB.

    The memory is the GPU's; None on a CPU, where a process knows no more than its maximum since it started, whatever
    else ran in it before.
    """
    images = trainer.args.per_device_train_batch_size * trainer.args.gradient_accumulation_steps
    rate = metrics["train_steps_per_second"]
    on_gpu = trainer.args.device.type == "cuda"
    return {
        "seconds_per_step": 1 / rate if rate else None,  # a finished run that was resumed takes no step
        "images_per_second": rate * images * trainer.args.world_size if rate else None,
        "peak_memory_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
    }
