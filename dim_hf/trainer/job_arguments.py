"""What a training job is made of, and how a YAML file and command-line fields become one."""

import json
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import HfArgumentParser

from dim_hf.trainer.dim_training_args import DimTrainingArguments

ALL_LABELED = -1
_EPOCHS = DimTrainingArguments.num_train_epochs  # what transformers has where nothing is said


@dataclass
class DataArguments:
    """Which images a job sees, and how they are brought to the network."""

    dataset: str = field(
        default="phantom:fundus",
        metadata={"help": "`phantom:fundus`, `phantom:prostate`, `phantom:prostate_3d`; a manifest or a folder that "
                  "holds one (`dim-hf import`); a folder with one folder a domain: `<domain>/{images,masks}/` or "
                  "`<domain>/{train,test}/{image,mask}/`; or a data set of the Hub, `org/name[@revision]`."},
    )  # fmt: skip
    labeled_domain: str | None = field(
        default=None, metadata={"help": "Domain whose images are labeled; the first one when not given."}
    )
    num_labeled: int = field(
        default=20, metadata={"help": "Labeled images; -1 labels all training images of all domains (upper bound)."}
    )
    num_validation: int = field(
        default=8, metadata={"help": "Images of the labeled domain's training part on which the checkpoint is chosen."}
    )
    test_fraction: float = field(
        default=0.2, metadata={"help": "Share of each domain's patients held out for test, where no split is given."}
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the split; the run's own seed leaves it alone."})
    allow_shared_patients: bool = field(
        default=False,
        metadata={"help": "Accept a given split in which a patient is in two parts; each image then counts as one."},
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={"help": "Names of the classes 0..K-1; the data set's own, or background and foreground for a plain "
                  "folder."},
    )  # fmt: skip
    structures: str | None = field(
        default=None, metadata={"help": 'Nested structures as JSON, e.g. {"disc": [1, 2], "cup": [2]}.'}
    )
    patient_pattern: str | None = field(
        default=None, metadata={"help": r"Regular expression with one group that finds the patient in a file's stem."}
    )
    image_size: int = field(default=128, metadata={"help": "Pixels of each side that images are resized to."})
    volume_size: list[int] | None = field(
        default=None,
        metadata={"help": "Depth, height and width that volumes are resized to; their own by default."},
    )
    num_channels: int | None = field(
        default=None, metadata={"help": "Channels of the input: 1 (grey) or 3 (color); the data set's own."}
    )
    intensity: str | None = field(
        default=None,
        metadata={"help": "How intensities are normalised: range, zscore, percentile or local (against a window about "
                  "each pixel: for cameras that differ in light and color); the data set's own."},
    )  # fmt: skip
    phantom_images_per_domain: int = field(default=60, metadata={"help": "Images of each phantom domain."})
    phantom_seed: int = field(default=0, metadata={"help": "Seed of the phantoms."})
    cache_gigabytes: float = field(
        default=2.0, metadata={"help": "Memory of each process for decoded images, beyond which they go to disk."}
    )
    cache_dir: str | None = field(
        default=None,
        metadata={"help": "Folder for decoded images beyond memory, kept for later runs; by default one in the folder "
                  "for temporary files, removed at the end."},
    )  # fmt: skip
    cache_disk_gigabytes: float = field(
        default=64.0, metadata={"help": "Limit of decoded images on disk; 4 GiB of the disk always stay free."}
    )


@dataclass
class ModelArguments:
    """Which network a job trains."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "A semantic-segmentation model of the Hub or a folder; a new U-Net when not given."},
    )
    hidden_sizes: list[int] = field(
        default_factory=lambda: [64, 128, 256, 512, 1024],
        metadata={"help": "Channels of the levels of a new U-Net, finest first."},
    )
    norm: str = field(default="batch", metadata={"help": "Normalisation: batch, instance or group."})
    upsample: str = field(default="transpose", metadata={"help": "transpose or interpolate."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout at the end of the contracting path, in [0, 1)."})


@dataclass
class JobTrainingArguments(DimTrainingArguments):
    """`DimTrainingArguments` with the defaults of a job: validate, keep the best, use the processor's own bf16."""

    output_dir: str | None = field(default="runs/dim", metadata={"help": "Folder of the run."})
    max_steps: int = field(default=1500, metadata={"help": "Optimizer steps."})
    eval_strategy: str = field(default="steps", metadata={"help": "When validation is scored: no, steps or epoch."})
    eval_steps: float | None = field(default=250, metadata={"help": "Optimizer steps between validations."})
    save_steps: float = field(default=250, metadata={"help": "Optimizer steps between checkpoints."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints kept: the newest and the best."})
    load_best_model_at_end: bool = field(
        default=True, metadata={"help": "Keep the step that is best on validation; False keeps the last step."}
    )
    metric_for_best_model: str | None = field(default="mean_dice", metadata={"help": "Score of the selection."})
    disable_tqdm: bool | None = field(
        default=False, metadata={"help": "Print lines instead of progress bars, for log files."}
    )
    auto_bf16: bool = field(
        default=True, metadata={"help": "Compute in bf16 where the processor or GPU has it, unless fp16 is asked for."}
    )

    def __post_init__(self) -> None:
        """Choose the precision, then check as `DimTrainingArguments` does."""
        if self.auto_bf16 and not (self.fp16 or self.bf16) and _has_native_bf16(self.use_cpu):
            self.bf16 = True
            # Without a GPU, transformers takes bf16 for a mistake unless the CPU is asked for by name.
            self.use_cpu = self.use_cpu or not torch.cuda.is_available()
        if self.num_train_epochs != _EPOCHS and self.max_steps == type(self).max_steps:
            raise ValueError(
                f"num_train_epochs is {self.num_train_epochs:g}, but max_steps={self.max_steps} counts instead: add "
                "--max_steps -1, or give max_steps alone"
            )
        if self.select == "last":
            self.load_best_model_at_end = False
        super().__post_init__()


@dataclass(frozen=True)
class Job:
    """One training run: its data, its network, its method."""

    data: DataArguments
    model: ModelArguments
    training: JobTrainingArguments


def _has_native_bf16(use_cpu: bool) -> bool:
    """Whether bf16 is computed in hardware; where it is emulated it is many times slower than float32."""
    if torch.cuda.is_available() and not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


_PARTS = (DataArguments, ModelArguments, JobTrainingArguments)


def parse_job(config: str | Path | None = None, overrides: Sequence[str] = ()) -> Job:
    """Make a job from a YAML file and command-line fields; a field given twice counts as given last.

    Args:
        config: YAML file with field names and values at its top level; None for the defaults.
        overrides: words such as `["--max_steps", "200", "--hidden_sizes", "16", "32"]`.

    Returns:
        The job, its fields checked.

    Raises:
        ValueError: for an unreadable file, an unknown field or a value out of its range.
    """
    words = [] if config is None else config_words(config)
    return _parse([*words, *overrides], origin=config)


def job_with(job_words: Sequence[str], **changes: Any) -> Job:
    """Make a job from words, with some fields changed; fields hold what a YAML file would hold."""
    return _parse([*job_words, *field_words(changes)])


def config_words(config: str | Path) -> list[str]:
    """Command-line words that say what a YAML file says; null is what a field is that has no value by default.

    Raises:
        ValueError: for a file that cannot be read, or null where the default is a value.
    """
    values = _read_config(Path(config))
    defaults = {item.name: _default_of(item) for part in _PARTS for item in fields(part)}
    for name in (name for name, value in values.items() if value is None):
        if defaults.get(name) is not None:
            raise ValueError(
                f"{name} is null in {config}, and would stay {defaults[name]!r}, its default: give a value, or leave "
                "the line out"
            )
    return field_words(values)


def field_words(values: Mapping[str, Any]) -> list[str]:
    """Command-line words that say what fields and values, as of a YAML file, say."""
    return [word for name, value in values.items() for word in _as_words(name, value)]


def describe_fields() -> str:
    """One line for each field of a job: name, default, legal values where it is one of a few, meaning."""
    lines = []
    for part in _PARTS:
        lines.append(f"{part.__name__}:")
        own = [f for f in fields(part) if part is not JobTrainingArguments or f.name in _documented_training_fields()]
        lines += [
            f"  --{f.name} (default {_default_of(f)}{_choices_of(f)}): {f.metadata.get('help', '')}" for f in own
        ]
    lines.append("and every argument of transformers.TrainingArguments.")
    return "\n".join(lines)


def _documented_training_fields() -> set[str]:
    return {name for part in (DimTrainingArguments, JobTrainingArguments) for name in part.__annotations__}


def _default_of(item: Any) -> Any:
    return item.default_factory() if item.default is MISSING else item.default


def _choices_of(item: Any) -> str:
    choices = item.metadata.get("choices")
    return f"; one of {', '.join(choices)}" if choices else ""


def _parse(words: Sequence[str], origin: str | Path | None = None) -> Job:
    parser = HfArgumentParser(_PARTS, exit_on_error=False)
    known = {f.name for part in _PARTS for f in fields(part)}
    for word in words:
        if word.startswith("--") and word[2:].split("=")[0].removeprefix("no_") not in known:
            raise ValueError(f"unknown field {word!r}: `dim-hf train --fields` lists the fields")
    where = f" ({origin})" if origin else ""
    try:
        *parts, remaining = parser.parse_args_into_dataclasses(list(words), return_remaining_strings=True)
    except ArgumentError as error:
        raise ValueError(f"{error}{where}") from error
    if remaining:
        raise ValueError(f"cannot read {' '.join(remaining)!r}{where}: fields are written `--field value`")
    return Job(*parts)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ValueError(f"cannot read the configuration {path}: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(name, str) for name in values):
        raise ValueError(f"{path} must hold `field: value` lines at its top level")
    return values


def _as_words(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{name}", *map(str, value)]
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    return [f"--{name}", str(value)]
