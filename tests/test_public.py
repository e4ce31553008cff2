"""What `import dim_hf` promises: lazy names, and Auto classes that know the model, in either order of imports."""

import subprocess
import sys

import pytest

import dim_hf


def run_python(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("name", [name for name in dim_hf.__all__ if name != "__version__"])
def test_public_names_exist(name):
    assert getattr(dim_hf, name).__doc__ or isinstance(getattr(dim_hf, name), dict)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'DimVNet'"):
        _ = dim_hf.DimVNet


def test_import_and_help_load_no_torch():
    code = (
        "import sys, dim_hf, dim_hf.cli; from click.testing import CliRunner;"
        "result = CliRunner().invoke(dim_hf.cli.main, ['--help']); assert 'train' in result.output, result.output;"
        "print(*[name for name in ('torch', 'transformers', 'datasets', 'numpy') if name in sys.modules])"
    )
    assert run_python(code) == []


@pytest.mark.parametrize("order", ["dim_hf, transformers", "transformers, dim_hf"])
def test_auto_classes_know_the_model(order, tmp_path):
    code = f"""
import {order}
from transformers import AutoConfig, AutoImageProcessor, AutoModelForSemanticSegmentation
config = AutoConfig.for_model("dim_unet", hidden_sizes=[8, 16])
AutoModelForSemanticSegmentation.from_config(config).save_pretrained({str(tmp_path)!r})
dim_hf.DimImageProcessor().save_pretrained({str(tmp_path)!r})
print(type(AutoModelForSemanticSegmentation.from_pretrained({str(tmp_path)!r})).__name__)
print(type(AutoImageProcessor.from_pretrained({str(tmp_path)!r})).__name__)
"""
    assert run_python(code) == ["DimUNetForSemanticSegmentation", "DimImageProcessor"]
