"""Semi-supervised medical image segmentation from few labeled and many unlabeled scans of several hospitals.

The public names load on first use, so that `import dim_hf` and the command line's help cost
milliseconds. The Auto classes of transformers learn of this package's model when their own module
is imported, before or after this one.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "DimImageProcessor": "dim_hf.models.image_processing_dim_unet",
    "DimTrainer": "dim_hf.trainer.dim_trainer",
    "DimTrainingArguments": "dim_hf.trainer.dim_training_args",
    "DimUNetConfig": "dim_hf.models.configuration_dim_unet",
    "DimUNetForSemanticSegmentation": "dim_hf.models.modeling_dim_unet",
    "F_DIVERGENCES": "dim_hf.divergences",
    "FDivergence": "dim_hf.divergences",
    "Predictor": "dim_hf.inference.predictor",
}

__all__ = ["__version__", *_PUBLIC]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


def _register_config(auto: ModuleType) -> None:
    from dim_hf.models.configuration_dim_unet import DimUNetConfig

    auto.AutoConfig.register(DimUNetConfig.model_type, DimUNetConfig, exist_ok=True)


def _register_model(auto: ModuleType) -> None:
    from dim_hf.models.configuration_dim_unet import DimUNetConfig
    from dim_hf.models.modeling_dim_unet import DimUNetForSemanticSegmentation

    auto.AutoModelForSemanticSegmentation.register(DimUNetConfig, DimUNetForSemanticSegmentation, exist_ok=True)


def _register_image_processor(auto: ModuleType) -> None:
    from dim_hf.models.configuration_dim_unet import DimUNetConfig
    from dim_hf.models.image_processing_dim_unet import DimImageProcessor

    auto.AutoImageProcessor.register(DimUNetConfig, image_processor_classes={"pil": DimImageProcessor}, exist_ok=True)


_REGISTRATIONS: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_model,
    "transformers.models.auto.image_processing_auto": _register_image_processor,
}


class _RegisterAfterImport(importlib.abc.MetaPathFinder):
    """Runs a registration right after the Auto module it belongs to has been imported."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        register = _REGISTRATIONS.get(fullname)
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target) if register else None
        if register is None or spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register(module)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


for _name, _register in _REGISTRATIONS.items():
    if _name in sys.modules:
        _register(sys.modules[_name])
sys.meta_path.insert(0, _RegisterAfterImport())
