"""Loads a model and the data that fit it."""

from pathlib import Path

from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.image_processing_utils import BaseImageProcessor

from dim_hf.data.sources import Source, load_source
from dim_hf.evaluation.runs import RunFacts, reading_of
from dim_hf.metrics.trainer_metrics import class_structures


def load_model(name: str, revision: str | None = None) -> tuple[PreTrainedModel, BaseImageProcessor]:
    """A semantic-segmentation model and its image processor, from a folder or the Hub; no code of theirs is run.

    Raises:
        ValueError: If there is none of that name, or it cannot be read.
    """
    import dim_hf  # noqa: F401  makes the Auto classes know DimUNet

    path = Path(name)
    if (path.is_absolute() or path.exists() or name.startswith(".")) and not (path / "config.json").is_file():
        raise ValueError(f"{name} is no folder that holds a model (config.json); correct the name, or train first")
    try:
        model = AutoModelForSemanticSegmentation.from_pretrained(name, revision=revision, use_safetensors=True)
        return model.eval(), AutoImageProcessor.from_pretrained(name, revision=revision)
    except (OSError, ValueError, KeyError) as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(f"{name} cannot be loaded as a segmentation model ({first}); correct the name") from error


def load_source_for(model: PreTrainedModel, dataset: str, run: RunFacts) -> Source:
    """The data, whose classes are those of the model; a plain folder takes the model's names and structures.

    Args:
        model: The model.
        dataset: As `load_source` takes it.
        run: Of the model; its own data set is read as the run read it.

    Raises:
        ValueError: If the data set's own classes are others.
    """
    names = [model.config.id2label[index] for index in sorted(model.config.id2label)]
    options = reading_of(dataset, run)
    source = load_source(dataset, **options)
    if not source.is_described:
        options |= {"class_names": names, "structures": class_structures(model.config)}
        return load_source(dataset, **options)
    found = list(source.description.id2label.values())
    if found != names:
        raise ValueError(f"the model has the classes {names}, {dataset} has {found}; evaluate on data of its classes")
    return source
