"""The network of a job."""

from dataclasses import fields

import torch
from transformers import AutoConfig, AutoModelForSemanticSegmentation, PretrainedConfig, PreTrainedModel

from dim_hf.data.sources import Source
from dim_hf.data.volumes.resampling import spacing_in
from dim_hf.data.volumes.slices import plane_in
from dim_hf.models import DimUNetConfig, DimUNetForSemanticSegmentation
from dim_hf.trainer.job_arguments import ModelArguments


def make_model(source: Source, model: ModelArguments) -> PreTrainedModel:
    """A new U-Net, or the named model with as many classes as the data has.

    Its configuration says how the data were made: their plane, and the spacing that they were resampled to.

    Raises:
        ValueError: for fields of a new U-Net that the named model contradicts.
    """
    about = source.description
    spacing_mm = spacing_in(about.notes)
    made = {
        "structures": about.structures,
        "plane": plane_in(about.notes) if about.spatial_dims == 2 else None,
        "spacing_mm": list(spacing_mm) if spacing_mm else None,
    }
    names = {"id2label": about.id2label, "label2id": {name: index for index, name in about.id2label.items()}}
    if model.model_name_or_path:
        config = AutoConfig.from_pretrained(model.model_name_or_path)
        _refuse_contradicted(model, config)
        # Together: what is checked of one is checked against the others.
        for name, value in (names | made).items():
            setattr(config, name, value)
        return AutoModelForSemanticSegmentation.from_pretrained(
            # In the checkpoint's own type, bf16 perhaps, small changes of weights and of the teacher would be lost.
            model.model_name_or_path,
            config=config,
            ignore_mismatched_sizes=True,
            dtype=torch.float32,
        )
    config = DimUNetConfig(
        num_channels=about.num_channels,
        spatial_dims=about.spatial_dims,
        hidden_sizes=model.hidden_sizes,
        norm=model.norm,
        upsample=model.upsample,
        dropout=model.dropout,
        **made,
        **names,
    )
    return DimUNetForSemanticSegmentation(config)


def _refuse_contradicted(model: ModelArguments, config: PretrainedConfig) -> None:
    """A U-Net that is there has its own shape; the defaults of a new one ask for nothing."""
    usual = ModelArguments()
    for item in fields(model) if isinstance(config, DimUNetConfig) else ():
        asked = getattr(model, item.name)
        if hasattr(config, item.name) and asked not in (getattr(usual, item.name), getattr(config, item.name)):
            raise ValueError(
                f"{item.name} is {asked}, but {model.model_name_or_path} has {getattr(config, item.name)}: "
                "leave it out, or train a new network"
            )
