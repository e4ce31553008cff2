"""Loads the data that fit a model."""

from transformers import PreTrainedModel

from dim_hf.data.sources import Source, load_source
from dim_hf.evaluation.runs import RunFacts, reading_of
from dim_hf.metrics.trainer_metrics import class_structures


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
