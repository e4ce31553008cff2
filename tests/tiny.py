"""Tiny data, models and trainers for tests: 8 channels, 32 pixels, drawn in memory."""

import torch
from torch.utils.data import Dataset

from dim_hf.models import DimUNetConfig, DimUNetForSemanticSegmentation
from dim_hf.trainer.dim_trainer import DimTrainer
from dim_hf.trainer.dim_training_args import DimTrainingArguments


class TinyImages(Dataset):
    """Bright squares on a dark ground, with their masks."""

    def __init__(self, count, size=32, channels=1, seed=0, shift=0.0, labels=True, value=1):
        generator = torch.Generator().manual_seed(seed)
        self.samples = []
        for _ in range(count):
            mask = torch.zeros(size, size, dtype=torch.uint8)
            top, left = (int(torch.randint(2, size // 2, (), generator=generator)) for _ in range(2))
            mask[top : top + size // 3, left : left + size // 3] = value
            image = (
                0.2 + 0.6 * (mask > 0).float() + 0.1 * torch.rand(channels, size, size, generator=generator) + shift
            )
            self.samples.append({"pixel_values": image, **({"labels": mask} if labels else {})})

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return dict(self.samples[index])


def tiny_model(seed=0, **config):
    torch.manual_seed(seed)
    settings = {"num_channels": 1, "num_labels": 2, "hidden_sizes": [8, 16], "norm": "instance"} | config
    return DimUNetForSemanticSegmentation(DimUNetConfig(**settings))


def tiny_arguments(folder, **arguments):
    settings = {
        "max_steps": 3,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "logging_steps": 1,
        "labeled_batch_size": 2,
        "unlabeled_batch_size": 2,
        "rampup_ratio": 0.0,
        "confidence_threshold": 0.5,
        "optim": "sgd",
        "optim_args": "momentum=0.9",
        "learning_rate": 0.1,
        "divergence_weight": 0.5,
        "cutmix_probability": 0.5,
    }
    return DimTrainingArguments(output_dir=str(folder), **settings | arguments)


def tiny_trainer(
    folder, model=None, labeled=None, unlabeled=None, eval_dataset=None, trainer_class=DimTrainer, **arguments
):
    return trainer_class(
        tiny_model() if model is None else model,
        tiny_arguments(folder, **arguments),
        labeled_dataset=TinyImages(8) if labeled is None else labeled,
        unlabeled_dataset=TinyImages(8, seed=1, shift=0.3, labels=False) if unlabeled is None else unlabeled,
        eval_dataset=eval_dataset,
    )
