"""The two endless streams of images that training draws its batches from."""

import math
from collections.abc import Iterator

from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

from dim_hf.data.collator import collate
from dim_hf.data.sampler import SampleStream, TwoStreamBatchSampler
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
    return TwoStreamBatchSampler(
        len(labeled),
        num_unlabeled,
        *batch_sizes,
        batches_per_epoch=math.ceil(max(passes) / window) * window,
        seed=_stream_seed(args),
        labeled_domains=_domains(labeled, "labeled_dataset") if args.balance_domains else None,
        unlabeled_domains=_domains(unlabeled, "unlabeled_dataset") if args.balance_domains and num_unlabeled else None,
    )


def clean_batches(
    args: DimTrainingArguments, labeled: Dataset, unlabeled: Dataset | None, limit: int = 512
) -> Iterator[Tensor]:
    """Training images as they are, without views: this process's shares of batches, as large as its micro-batches.

    In an order of the run's seed, each site as often as the others where `balance_domains` asks for it. An incomplete
    batch is left out, unless it is the only one: that goes to every process whole.

    Args:
        args: the training arguments.
        labeled: labeled images.
        unlabeled: unlabeled images, or None.
        limit: at most so many images.

    Yields:
        (N, C, *S), on the CPU.

    Raises:
        ValueError: as `check_clean_pool`, or for images of different sizes.
    """
    parts = _clean_pool(labeled, unlabeled)
    images = ConcatDataset(parts.values())
    stream = SampleStream("clean", len(images), _stream_seed(args), _clean_domains(args, parts))
    count, share = min(limit, len(images)), args.per_device_train_batch_size
    size = share * args.world_size
    for start in range(0, max(count - size, 0) + 1, size):
        places = range(start, min(start + size, count))
        if len(places) == size:
            places = places[share * args.process_index :][:share]
        samples = [{"pixel_values": images[stream.index_at(place)]["pixel_values"]} for place in places]
        yield collate(samples)["pixel_values"]


def check_clean_pool(args: DimTrainingArguments, labeled: Dataset, unlabeled: Dataset | None) -> None:
    """Find out before the training what `clean_batches` would stumble over after it.

    Raises:
        ValueError: if the first images of the two pools differ in shape, or domains are to be balanced and not known.
    """
    parts = _clean_pool(labeled, unlabeled)
    collate([{"pixel_values": part[0]["pixel_values"]} for part in parts.values()])
    _clean_domains(args, parts)


def _clean_pool(labeled: Dataset, unlabeled: Dataset | None) -> dict[str, Dataset]:
    parts = {"labeled_dataset": labeled}
    return parts | ({"unlabeled_dataset": unlabeled} if unlabeled is not None and len(unlabeled) else {})


def _clean_domains(args: DimTrainingArguments, parts: dict[str, Dataset]) -> list[str] | None:
    if not args.balance_domains:
        return None
    return [domain for name, part in parts.items() for domain in _domains(part, name)]


def _stream_seed(args: DimTrainingArguments) -> int:
    return args.data_seed if args.data_seed is not None else args.seed


def _domains(dataset: Dataset, name: str) -> list[str]:
    domains = getattr(dataset, "domains", None)
    if domains is None:
        raise ValueError(
            f"balance_domains needs the domain of each image: give {name} an attribute `domains`, or set it to False"
        )
    return domains
