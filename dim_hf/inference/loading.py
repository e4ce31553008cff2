"""Loads what predicts: the network, its processor, the other network of its run, plane and spacing of its training."""

import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import nn

from dim_hf.data.description import FILE_NAME, read_description
from dim_hf.data.texts import first_line, printable
from dim_hf.data.volumes.resampling import as_spacing, spacing_in
from dim_hf.data.volumes.slices import PLANES, plane_in

_TEACHER_FOLDER = "teacher"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def load_network(name: str, revision: str | None = None, trust_remote_code: bool = False) -> tuple[nn.Module, Any]:
    """A segmentation network in evaluation mode and its image processor, from a folder or the Hub.

    Weights are read from safetensors only; nothing is unpickled.

    Args:
        name: Folder, or name on the Hub.
        revision: Commit, branch or tag on the Hub.
        trust_remote_code: Run the code that lies beside the weights.

    Raises:
        ValueError: If there is none of that name, it cannot be read, or weights are missing or of another shape.
    """
    from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

    import dim_hf  # noqa: F401  makes the Auto classes know DimUNet

    refuse_missing_folder(name)
    from_where = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        network, found = AutoModelForSemanticSegmentation.from_pretrained(
            name, **from_where, use_safetensors=True, output_loading_info=True
        )
        processor = AutoImageProcessor.from_pretrained(name, **from_where)
    except (OSError, ValueError, KeyError, RuntimeError, ImportError, SafetensorError) as error:
        said = first_line(error)
        raise ValueError(
            f"{printable(name)} cannot be loaded as a segmentation model ({printable(said)}); correct the name, or "
            "copy the model again"
        ) from error
    faults = sorted(map(str, (*found["missing_keys"], *found["mismatched_keys"])))
    if faults:  # transformers would fill them with random numbers
        raise ValueError(
            f"{printable(name)} lacks weights of its network, such as {printable(faults[0])} ({len(faults)} in all); "
            "copy the model again"
        )
    return network.eval(), processor


def is_local(name: str) -> bool:
    """Whether a name means a place on this machine, not a model of the Hub, whose names have one slash at most."""
    path = Path(name)
    return path.is_absolute() or path.exists() or name.startswith((".", "~")) or len(path.parts) > 2


def refuse_missing_folder(name: str) -> None:
    """Refuse a place on this machine where there is no model; the Hub's names pass.

    Raises:
        ValueError: Naming it.
    """
    if is_local(name) and not (Path(name) / "config.json").is_file():
        raise ValueError(
            f"{printable(name)} is no folder that holds a model (config.json); correct the name, or train first"
        )


def find_other_network(model: str) -> Path | None:
    """Folder of the network that stands beside a run's model: the student of a teacher, or the teacher of a student.

    Args:
        model: Folder of a run or a checkpoint.

    Returns:
        `teacher/` of a checkpoint; of a run the other one of its last checkpoint (`dim_training.json` says which was
        saved); None where there is no pair.
    """
    root = Path(model)
    if _is_pair(root):
        return root / _TEACHER_FOLDER
    found = [(_CHECKPOINT.fullmatch(path.name), path) for path in root.glob("checkpoint-*")]
    pairs = [(int(match.group(1)), path) for match, path in found if match and _is_pair(path)]
    if not pairs:
        return None
    last = max(pairs)[1]
    saved = _read_json(root / "dim_training.json").get("scored_model", "teacher")
    return last if saved == "teacher" else last / _TEACHER_FOLDER


def find_plane(model: str, config: Any) -> str | None:
    """Plane of the slices that a 2D network was trained on; None where it is not known.

    The configuration's `plane` is asked first; of a run of an earlier version, the notes of the data set that its
    `results.json` names.

    Args:
        model: Folder or name of the model.
        config: Its configuration.
    """
    stated = getattr(config, "plane", None)
    return stated if stated in PLANES else plane_in(_notes_of_training(model))


def find_spacing(model: str, config: Any) -> tuple[float, float, float] | None:
    """Spacing in mm (left-right, back-front, foot-head) to which volumes were resampled for the training.

    Looked for as `find_plane` does; None where they were not, or it is not known.

    Args:
        model: Folder or name of the model.
        config: Its configuration.
    """
    return as_spacing(getattr(config, "spacing_mm", None)) or spacing_in(_notes_of_training(model))


def _notes_of_training(model: str) -> list[str]:
    """Notes of the data set that a run's `results.json` names; none where they are not found."""
    job = _read_json(Path(model) / "results.json").get("job")
    data = job.get("data") if isinstance(job, dict) else None
    dataset = data.get("dataset") if isinstance(data, dict) else None
    if not isinstance(dataset, str):
        return []
    place = Path(dataset)
    description = (place if place.is_dir() else place.parent) / FILE_NAME
    if not description.is_file():
        return []
    try:
        return read_description(description).notes
    except ValueError:
        return []


def content_hash(networks: Iterable[nn.Module], processor: Any) -> str:
    """Names networks and processor by their weights and settings: 32 hexadecimal digits."""
    digest = hashlib.blake2b(digest_size=16)
    for network in networks:
        for name, tensor in sorted(network.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
            digest.update(_bytes(tensor))
        digest.update(_settings(getattr(network, "config", None)))
    digest.update(_settings(processor))
    return digest.hexdigest()


def _bytes(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def _settings(owner: Any) -> bytes:
    """Settings that matter for a prediction: not where they were read, nor the version that wrote them."""
    settings = owner.to_dict() if hasattr(owner, "to_dict") else {}
    kept = {key: value for key, value in settings.items() if key not in ("_name_or_path", "transformers_version")}
    return json.dumps(kept, sort_keys=True, default=str).encode()


def _is_pair(folder: Path) -> bool:
    return (folder / "config.json").is_file() and (folder / _TEACHER_FOLDER / "config.json").is_file()


def _read_json(path: Path) -> dict[str, Any]:
    """A file of a run; empty where there is none or it is no object."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}
