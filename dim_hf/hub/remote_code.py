"""The model's own code beside the weights, for those who have transformers and not this package."""

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

from dim_hf.hub.run_folder import CONFIG_FILE, PROCESSOR_FILE

# File of settings → Auto class of transformers → module in dim_hf.models, and class in it.
_AUTO_CLASSES = {
    CONFIG_FILE: {
        "AutoConfig": ("configuration_dim_unet", "DimUNetConfig"),
        "AutoModelForSemanticSegmentation": ("modeling_dim_unet", "DimUNetForSemanticSegmentation"),
    },
    PROCESSOR_FILE: {"AutoImageProcessor": ("image_processing_dim_unet", "DimImageProcessor")},
}


def add_remote_code(folder: Path) -> list[str]:
    """Copy the code of this package's classes into a model's folder and refer to it by `auto_map`.

    What `register_for_auto_class` makes `save_pretrained` do, for files that are there already; classes of the process
    stay as they are. Models and processors of transformers itself need none.

    Args:
        folder: With `config.json` and `preprocessor_config.json`.

    Returns:
        Names of the copied files, sorted; empty where no class is this package's.
    """
    from transformers.dynamic_module_utils import get_relative_import_files

    modules: set[Path] = set()
    for file, classes in _AUTO_CLASSES.items():
        settings = json.loads((folder / file).read_text(encoding="utf-8"))
        settings.pop("auto_map", None)  # of the model that this one was trained from
        if _is_ours(settings):
            settings["auto_map"] = {auto: f"{module}.{name}" for auto, (module, name) in classes.items()}
            for module, _ in classes.values():
                source = importlib.import_module(f"dim_hf.models.{module}").__file__
                modules |= {Path(source), *map(Path, get_relative_import_files(source))}
        (folder / file).write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for module in modules:
        shutil.copyfile(module, folder / module.name)
    return sorted(module.name for module in modules)


def _is_ours(settings: dict[str, Any]) -> bool:
    return settings.get("model_type") == "dim_unet" or settings.get("image_processor_type") == "DimImageProcessor"
