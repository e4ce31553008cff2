"""The two endless streams of images that training draws its batches from."""

import math

from torch.utils.data import Dataset

from dim_hf.data.sampler import TwoStreamBatchSampler
from dim_hf.trainer.dim_training_args import DimTrainingArguments


def make_batch_sampler(
    args: DimTrainingArguments, labeled: Dataset | None, unlabeled: Dataset | None
) -> TwoStreamBatchSampler:
    """Batches of both streams, in epochs of whole optimizer steps.

    Args:
        args: the training arguments; batch sizes are those of one process.
        labeled: labeled images.
        unlabeled: unlabeled images; may be None where no term uses them.

    Raises:
        ValueError: for a missing or too small data set, or one without domains where they are to be balanced.
    """
    if labeled is None or len(labeled) == 0:
        raise ValueError("no labeled images: labeled_dataset is empty")
    if args.uses_unlabeled_images and (unlabeled is None or len(unlabeled) == 0):
        raise ValueError(
            "no unlabeled images, but the objective uses them: give unlabeled_dataset, "
            "or set consistency_weight and divergence_weight to 0"
        )
    num_unlabeled = len(unlabeled) if args.uses_unlabeled_images else 0
    batch_sizes = (args.labeled_batch_size, args.unlabeled_images_per_step)
    passes = [math.ceil(n / b) for n, b in zip((len(labeled), num_unlabeled), batch_sizes, strict=True) if b]
    # Whole steps: no epoch ends inside an accumulation window or before every process has its batch.
    window = args.gradient_accumulation_steps * args.world_size
    seed = args.data_seed if args.data_seed is not None else args.seed
    return TwoStreamBatchSampler(
        len(labeled),
        num_unlabeled,
        *batch_sizes,
        batches_per_epoch=math.ceil(max(passes) / window) * window,
        seed=seed,
        labeled_domains=_domains(labeled, "labeled_dataset") if args.balance_domains else None,
        unlabeled_domains=_domains(unlabeled, "unlabeled_dataset") if args.balance_domains and num_unlabeled else None,
    )


def _domains(dataset: Dataset, name: str) -> list[str]:
    domains = getattr(dataset, "domains", None)
    if domains is None:
        raise ValueError(
            f"balance_domains needs the domain of each image: give {name} an attribute `domains`, or set it to False"
        )
    return domains
