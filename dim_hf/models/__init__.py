"""The U-Net, its configuration and its image processor: flat and self-contained, so that the Hub can carry the code.

Names are imported on first use: `dim_hf.models.loss_dim_unet` needs torch alone and must not pull in transformers.
"""

import importlib

_MODULE_OF = {
    "DimUNetConfig": "configuration_dim_unet",
    "DimUNetPreTrainedModel": "modeling_dim_unet",
    "DimUNetForSemanticSegmentation": "modeling_dim_unet",
    "DimImageProcessor": "image_processing_dim_unet",
    "cross_entropy_and_dice": "loss_dim_unet",
    "pixel_cross_entropy": "loss_dim_unet",
    "soft_dice_loss": "loss_dim_unet",
}

__all__ = list(_MODULE_OF)


def __getattr__(name: str) -> object:
    """Import the module that defines `name` when it is first asked for.

    Raises:
        AttributeError: No such public name.
    """
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {', '.join(_MODULE_OF)}")
    value = getattr(importlib.import_module(f".{_MODULE_OF[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """List the public names, imported or not."""
    return sorted(set(globals()) | set(_MODULE_OF))
