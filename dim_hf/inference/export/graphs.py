"""Graphs of networks: any number of images of any size goes in, logits come out."""

import copy
import logging
import math
import types
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dim_hf.data.texts import first_line

INPUT, OUTPUT = "pixel_values", "logits"
AXES = {2: ("height", "width"), 3: ("depth", "height", "width")}
_EXAMPLES = {1: (67, 101, 93), 32: (96, 160, 64)}
Run = Callable[[np.ndarray], np.ndarray]
"""pixel_values (N, C, *S) float32 → logits (N, K, *S')."""


@dataclass(frozen=True)
class GraphFormat:
    """A format that graphs are written in.

    Attributes:
        file: Name of the graph's file.
        write: Writes a graph with texts by name.
        load: Loads the file with the program that will run it.
    """

    file: str
    write: Callable[[torch.export.ExportedProgram, Path, Mapping[str, str]], None]
    load: Callable[[Path], Run]


def spatial_dims_of(network: nn.Module) -> int:
    """2 for a network of images, 3 for one of volumes."""
    return int(getattr(network.config, "spatial_dims", 2))


def channels_of(network: nn.Module) -> int:
    """Channels of the input; 3 where the configuration does not say it."""
    return int(getattr(network.config, "num_channels", 3))


def trace(network: nn.Module, step: int = 1) -> torch.export.ExportedProgram:
    """The graph from `pixel_values` to `logits`, with free batch and size.

    Args:
        network: In evaluation mode, on the CPU, in float32; not changed.
        step: Sizes of the example are multiples of it, 1 or 32.

    Raises:
        ValueError: If the network's code cannot be followed for all sizes.
    """
    dims = spatial_dims_of(network)
    # No two sizes of the example are alike, so that nothing is taken for equal by chance.
    example = torch.zeros(2, channels_of(network), *_EXAMPLES[step][-dims:])
    free = {INPUT: dict.fromkeys((0, *range(2, dims + 2)), torch.export.Dim.DYNAMIC)}
    try:
        with quiet(), torch.no_grad():
            return torch.export.export(_Logits(network), (example,), dynamic_shapes=free, strict=False)
    except Exception as error:  # torch.export fails in as many ways as there is code
        raise ValueError(f"the network cannot be traced for images of any size ({first_line(error)})") from error


class _Logits(nn.Module):
    """A copy of the network that returns logits alone, and whose padding asks no question about the size."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network)
        if hasattr(self.network, "encoder") and hasattr(self.network, "_pad"):
            self.network._pad = types.MethodType(_pad_by_index, self.network)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.network(pixel_values=pixel_values).logits


def _pad_by_index(network: Any, pixel_values: Tensor) -> Tensor:
    """`DimUNetForSemanticSegmentation._pad` in integer arithmetic alone, so that one graph holds for all sizes."""
    factor = 2 ** (len(network.encoder) - 1)
    cells = [(length + factor - 1) // factor for length in pixel_values.shape[2:]]
    cells[-1] = cells[-1] + 1 // math.prod(cells)  # a single element at the deepest level becomes two
    for axis, count in enumerate(cells, start=2):
        last = pixel_values.shape[axis] - 1
        index = torch.arange(count * factor, device=pixel_values.device).clamp(max=last)
        pixel_values = pixel_values.index_select(axis, index)
    return pixel_values


def _write_onnx(program: torch.export.ExportedProgram, path: Path, texts: Mapping[str, str]) -> None:
    names = {0: "batch", **dict(enumerate(AXES[_dims(program)], start=2))}
    try:
        with quiet():
            graph = torch.onnx.export(
                program,
                dynamo=True,
                verbose=False,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes={INPUT: names},
            )
            graph.model.metadata_props.update(texts)
            graph.save(path)
    except ImportError as error:
        raise ImportError(f"ONNX needs {error.name}; install it with: pip install dim-hf[export]") from error
    except Exception as error:  # an operation without a translation, above all
        raise ValueError(f"the graph cannot be written as ONNX ({first_line(error)})") from error


def _dims(program: torch.export.ExportedProgram) -> int:
    """Spatial axes of a graph's input."""
    (name,) = program.graph_signature.user_inputs
    node = next(node for node in program.graph.nodes if node.name == name)
    return node.meta["val"].ndim - 2


def _load_onnx(path: Path) -> Run:
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("ONNX needs onnxruntime; install it with: pip install dim-hf[export]") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda pixels: session.run([OUTPUT], {INPUT: pixels})[0]


def _write_torch_export(program: torch.export.ExportedProgram, path: Path, texts: Mapping[str, str]) -> None:
    with quiet():
        torch.export.save(program, path, extra_files=dict(texts))


def _load_torch_export(path: Path) -> Run:
    with quiet():
        program = torch.export.load(path)
        try:  # the guards that tracing finds are stricter than the graph, which holds for small images, too
            module = program.module(check_guards=False)
        except TypeError:  # earlier versions of torch check none
            module = program.module()

    def run(pixels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return module(torch.from_numpy(pixels)).numpy()

    return run


FORMATS = {
    "onnx": GraphFormat("model.onnx", _write_onnx, _load_onnx),
    "torch_export": GraphFormat("model.pt2", _write_torch_export, _load_torch_export),
}


@contextmanager
def quiet() -> Iterator[None]:
    """Without the log lines and warnings of libraries, which say nothing that a user could act on."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
