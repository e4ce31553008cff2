"""Exports a model: the graph, checked against the network, and everything that a stranger needs to use it."""

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import dim_hf
from dim_hf.data.hub.card import markdown
from dim_hf.data.texts import first_line, printable
from dim_hf.inference.drift import SiteStatistics
from dim_hf.inference.drift_file import STATISTICS_FILE, find_statistics, to_json
from dim_hf.inference.export import segment
from dim_hf.inference.export.graphs import AXES, FORMATS, GraphFormat, Run, channels_of, quiet, spatial_dims_of, trace
from dim_hf.inference.loading import content_hash, find_plane, find_spacing, load_network
from dim_hf.metrics.trainer_metrics import class_structures
from dim_hf.models import intensity_dim_unet

TOLERANCE = 1e-4
REPORT_FILE, README_FILE = "export.json", "README.md"
TEMPLATE = Path(__file__).with_name("export_readme.md.jinja")
NOTICE = "Research software, not a medical device."
_BATCHES = (1, 3)
_STEPS = (1, 32)
_SIZES = {1: ((37, 53, 30), (50, 29, 43)), 32: ((32, 64, 96), (64, 32, 64))}
_SMALLEST = (1, 2, 4, 8, 16, 32, 64, 128)
_SETTINGS_FILES = ("config.json", "preprocessor_config.json")
_MODULES = tuple(Path(str(module.__file__)) for module in (segment, intensity_dim_unet))
_CACHE = "__pycache__"  # appears where somebody has run the script
_OWN_FILES = {
    *(REPORT_FILE, README_FILE, STATISTICS_FILE, *_SETTINGS_FILES),
    *(path.name for path in _MODULES),
    *(kind.file for kind in FORMATS.values()),
}
# Settings that say where a model was read, or which code reads it, and nothing about how it computes.
_OF_THE_PLACE = ("_name_or_path", "auto_map", "processor_class")


@dataclass(frozen=True)
class Check:
    """One comparison of graph and network.

    Attributes:
        shape: Of the input, (N, C, *S).
        difference: Largest absolute difference of the logits.
    """

    shape: tuple[int, ...]
    difference: float


@dataclass(frozen=True)
class ExportReport:
    """What was exported.

    Attributes:
        output: The folder.
        format: A key of `graphs.FORMATS`.
        model: Folder or name of the model.
        model_hash: Of its weights and settings, as `dim-hf predict` names it.
        step: Sizes are multiples of it along each axis.
        smallest: Least size along each axis.
        checks: Comparisons with the network.
        files: Bytes by name.
    """

    output: str
    format: str
    model: str
    model_hash: str
    step: int
    smallest: int
    checks: tuple[Check, ...]
    files: dict[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> str:
        """Which images the graph takes, in words."""
        known = "any size" if self.step == 1 else f"sizes that are multiples of {self.step}"
        least = f", at least {self.smallest} along each axis" if self.smallest > self.step else ""
        return f"any number of images of {known}{least}"

    @property
    def difference(self) -> float:
        """The largest of all checks."""
        return max(check.difference for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**asdict(self), "sizes": self.sizes, "largest_difference": self.difference, "tolerance": TOLERANCE}


def export_model(
    model: str,
    output: str | os.PathLike,
    graph_format: str = "onnx",
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    overwrite: bool = False,
) -> ExportReport:
    """Write a model as a graph into a new folder, with all that is needed to use it.

    The graph takes any number of images of any size, and is compared with the network on two sizes, two numbers of
    images and the smallest size before anything appears. The folder is complete or absent.

    Args:
        model: Folder of a run or model, or a name on the Hub.
        output: New or empty folder, or with `overwrite` one of an earlier export.
        graph_format: A key of `graphs.FORMATS`.
        revision: Commit, branch or tag on the Hub.
        trust_remote_code: Run the code that lies beside the weights.
        overwrite: Replace an earlier export; what is no part of one is never removed.

    Raises:
        ValueError: If the model cannot be loaded or followed for all sizes, the graph's outputs differ from the
            network's by more than `TOLERANCE`, or the output is in use, holds other files or cannot be written.
        ImportError: If a package of the extra `export` is not installed.
        OSError: If the output cannot be written.
    """
    if graph_format not in FORMATS:
        raise ValueError(f"format is {graph_format!r}; choose one of {', '.join(FORMATS)}")
    folder = Path(output).expanduser().resolve()  # a link to a folder stays a link
    _refuse_output(folder, overwrite)
    with quiet():
        network, processor = load_network(model, revision, trust_remote_code)
    model_hash = content_hash([network], processor)
    network = network.float()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as name:
        staged = Path(name) / "export"
        staged.mkdir()
        made = {"plane": find_plane(model, network.config), "spacing_mm": find_spacing(model, network.config)}
        about = describe(network, processor, find_statistics(model, revision), **made)
        step, smallest, checks = _write_graph(network, FORMATS[graph_format], staged, about)
        report = ExportReport(str(output), graph_format, model, model_hash, step, smallest, checks)
        _write_companions(report, network, about, staged)
        files = {path.name: path.stat().st_size for path in sorted(staged.iterdir())}
        _publish(staged, folder, Path(name) / "before")
    return ExportReport(**{**vars(report), "files": files})


def describe(
    network: nn.Module,
    processor: Any,
    statistics: SiteStatistics | None,
    *,
    plane: str | None,
    spacing_mm: Sequence[float] | None,
) -> dict[str, str]:
    """What travels within the graph, as texts by name; values that are no texts are JSON.

    Args:
        network: Has a `config`.
        processor: Its image processor.
        statistics: Of the sites that it saw; None where there are none.
        plane: Of the slices that it was trained on; None where it is not known.
        spacing_mm: To which volumes were resampled for the training; None where they were not.
    """
    config: Any = network.config
    texts = {
        "dim_hf_version": dim_hf.__version__,
        "preprocessor_config": json.dumps(_settings(processor), sort_keys=True),
        "id2label": json.dumps({str(index): name for index, name in sorted(config.id2label.items())}),
        "structures": json.dumps(class_structures(config)),
        "spatial_dims": str(spatial_dims_of(network)),
        "notice": NOTICE,
    }
    texts |= {"plane": plane} if plane else {}
    texts |= {"spacing_mm": json.dumps(list(spacing_mm))} if spacing_mm else {}
    return texts | ({"site_statistics": to_json(statistics)} if statistics else {})


def _settings(owner: Any) -> dict[str, Any]:
    return {key: value for key, value in owner.to_dict().items() if key not in _OF_THE_PLACE}


def _refuse_output(folder: Path, overwrite: bool) -> None:
    """Refuse what could not be written, and all that would be lost: the folder is replaced as a whole."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file; name a folder for the export")
    home = next(parent for parent in folder.parents if parent.exists())
    if not home.is_dir() or not os.access(home, os.W_OK | os.X_OK):
        raise ValueError(f"{home} is no folder that can be written to; give another place for the export")
    if not folder.is_dir():
        return
    paths = sorted(folder.iterdir())
    for path in paths:
        own = (path.name in _OWN_FILES and path.is_file()) or (path.name == _CACHE and path.is_dir())
        if not own or path.is_symlink():
            raise ValueError(
                f"{folder} holds {printable(path.name)}, which is no part of an export and would be lost; give a new "
                "or empty folder"
            )
    if paths and not _is_export(folder):  # a README.md or config.json may be of anything
        raise ValueError(f"{folder} is no earlier export: it has no {REPORT_FILE} of one; give a new or empty folder")
    if paths and not overwrite:
        raise ValueError(f"{folder} holds an earlier export; give another folder, or replace it with --overwrite")


def _is_export(folder: Path) -> bool:
    try:
        said = json.loads((folder / REPORT_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(said, dict) and {"format", "model_hash"} <= said.keys()


def _write_graph(
    network: nn.Module, kind: GraphFormat, folder: Path, about: Mapping[str, str]
) -> tuple[int, int, tuple[Check, ...]]:
    """Trace, write, load again and compare: for any size, else for multiples of 32."""
    fault: ValueError | None = None
    for step in _STEPS:
        try:
            program = trace(network, step)
            kind.write(program, folder / kind.file, about)
            run = kind.load(folder / kind.file)
            smallest, check = _smallest(network, run, step)
            return step, smallest, (*_checks(network, run, step, smallest), *check)
        except ValueError as error:
            fault = fault or error
            shutil.rmtree(folder)
            folder.mkdir()
    name = getattr(network.config, "model_type", type(network).__name__)
    raise ValueError(f"this model ({name}) cannot be exported as {kind.file}: {fault}") from fault


def _checks(network: nn.Module, run: Run, step: int, smallest: int) -> list[Check]:
    """Comparisons at sizes that are no squares, and none of them below the smallest."""
    dims, channels = spatial_dims_of(network), channels_of(network)
    more = max(0, smallest - min(min(size) for size in _SIZES[step]))
    sizes = [[length + more for length in size[-dims:]] for size in _SIZES[step]]
    return [compare(network, run, (count, channels, *size)) for size in sizes for count in _BATCHES]


def _smallest(network: nn.Module, run: Run, step: int) -> tuple[int, list[Check]]:
    """The least of some sizes for which network and graph agree.

    Raises:
        ValueError: If there is none, saying what is wrong at the largest of them.
    """
    fault: ValueError | None = None
    for length in _SMALLEST:
        if length % step:
            continue
        try:
            shape = (1, channels_of(network), *(length,) * spatial_dims_of(network))
            return length, [compare(network, run, shape)]
        except ValueError as error:
            fault = error
    assert fault is not None
    raise fault  # a small image may be too small for the network: the largest says what is wrong with the graph


def compare(network: nn.Module, run: Run, shape: Sequence[int]) -> Check:
    """Run network and graph on the same random input.

    Args:
        network: On the CPU.
        run: The graph.
        shape: (N, C, *S).

    Raises:
        ValueError: If one of them fails, or the logits differ: by more than `TOLERANCE`, of logits beyond 1 by more
            than that share.
    """
    pixels = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    size = " x ".join(map(str, shape))
    try:
        with torch.no_grad(), quiet():
            expected = network(pixel_values=pixels).logits.numpy()
        found = run(pixels.numpy())
    except Exception as error:  # each runtime has its own
        raise ValueError(f"an input of {size} fails ({first_line(error)})") from error
    if found.shape != expected.shape:
        raise ValueError(f"an input of {size} gives logits {found.shape}, those of the network are {expected.shape}")
    difference = np.abs(found - expected)
    if not (difference <= TOLERANCE * np.maximum(1, np.abs(expected))).all():
        raise ValueError(
            f"an input of {size} gives logits that differ from the network's by {difference.max():.2g}, more than "
            f"{TOLERANCE:g}"
        )
    return Check(tuple(shape), float(difference.max()))


def _write_companions(report: ExportReport, network: nn.Module, about: Mapping[str, str], folder: Path) -> None:
    """Configuration, processor, report, and how to use it, beside the graph."""
    import jinja2

    settings = json.loads(about["preprocessor_config"])
    for name, values in zip(_SETTINGS_FILES, (_settings(network.config), settings), strict=True):
        _write_json(values, folder / name)
    if "site_statistics" in about:
        (folder / STATISTICS_FILE).write_text(about["site_statistics"], encoding="utf-8")
    said = {key: value for key, value in report.to_dict().items() if key not in ("output", "files")}
    said["model"] = Path(report.model).name if Path(report.model).exists() else report.model  # not where it lay
    _write_json(said, folder / REPORT_FILE)
    own = settings.get("image_processor_type") == "DimImageProcessor"
    if own and report.format == "onnx":
        for path in _MODULES:
            shutil.copyfile(path, folder / path.name)
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, trim_blocks=True)
    environment.filters["md"] = markdown
    text = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        report=report,
        file=FORMATS[report.format].file,
        has_script=own and report.format == "onnx",
        is_volume=about["spatial_dims"] == "3",
        axes=", ".join(AXES[int(about["spatial_dims"])]),
        channels=channels_of(network),
        names=json.loads(about["id2label"]),
        plane=about.get("plane"),
        spacing_mm=json.loads(about.get("spacing_mm", "null")),
        notice=NOTICE,
        tolerance=f"{TOLERANCE:g}",
    )
    (folder / README_FILE).write_text(text, encoding="utf-8")


def _write_json(values: Any, path: Path) -> None:
    path.write_text(json.dumps(values, indent=2, sort_keys=True, default=str) + "\n", encoding="utf-8")


def _publish(staged: Path, folder: Path, before: Path) -> None:
    """Put the finished folder in its place; an earlier one comes back if that fails."""
    if folder.exists():
        folder.rename(before)
    try:
        staged.rename(folder)
    except OSError:
        if before.exists():
            before.rename(folder)
        raise
