"""What a run left in its folder, and whether its files belong together."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dim_hf.data.description import FILE_NAME, DatasetDescription, read_description
from dim_hf.data.sources import PHANTOM_PREFIX
from dim_hf.inference.drift_file import STATISTICS_FILE
from dim_hf.metrics.case_files import read_cases_csv
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.summary import Summary, summarize

RESULTS_FILE = "results.json"
CASES_FILE = "cases.csv"
CONFIG_FILE = "config.json"
PROCESSOR_FILE = "preprocessor_config.json"
HASHES = "sha256"
"""Key of `results.json`: hash of each file that the scores depend on."""
IN_MM = "evaluation-volume-mm"
"""Folder of a run in which `dim-hf evaluate --protocol volume-mm` leaves its results."""
STARTED = ", started from "
"""Parts how a run chose its step from what is said of the model that it started from."""
_WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json")


@dataclass(frozen=True)
class FinishedRun:
    """A run as its folder describes it; what is missing is empty.

    Attributes:
        folder: Of the run.
        results: `results.json`.
        config: `config.json` of the scored model.
        cases: Test scores by case and structure, with the names that the data set gives them.
    """

    folder: Path
    results: dict[str, Any]
    config: dict[str, Any]
    cases: list[CaseResult]

    @property
    def data(self) -> dict[str, Any]:
        """Fields of the job about its data."""
        return self.results.get("job", {}).get("data", {})

    @property
    def split(self) -> dict[str, Any]:
        """Counts and hashes of the parts of the data."""
        return self.results.get("split", {})

    @property
    def training(self) -> dict[str, Any]:
        """Which model was scored, at which step, and how that was chosen."""
        return self.results.get("training", {})

    @property
    def selected(self) -> str:
        """How this run itself chose its step, whatever the model that it started from did."""
        return str(self.training.get("selected", "")).partition(STARTED)[0]

    @property
    def started_from(self) -> dict[str, Any]:
        """What is known of the run whose model this one started from; empty where there was none."""
        return self.training.get("started_from") or {}

    @property
    def selected_on_test(self) -> bool:
        """Whether test images had a part in choosing the step, or the weights that the run started from."""
        return "test-legacy" in f"{self.training.get('selected', '')} {self.started_from.get('selected', '')}"

    @property
    def is_phantom(self) -> bool:
        """Whether the images were drawn by a program."""
        return str(self.data.get("dataset", "")).startswith(PHANTOM_PREFIX)

    @property
    def learned_unlabeled(self) -> bool:
        """Whether anything was learned from the images without outlines."""
        return self.weight_of("consistency_weight") > 0 or self.weight_of("divergence_weight") > 0

    def weight_of(self, argument: str) -> float:
        """A weight among the training arguments; 0 where it is not stated."""
        return float(self.results.get("job", {}).get("training", {}).get(argument) or 0)

    @property
    def weights(self) -> list[Path]:
        """Files of the weights, with their index if there are several; safetensors only."""
        return weight_files(self.folder)

    @property
    def labeled_domain(self) -> str | None:
        """The site where the labels are from; None where there are several."""
        labeled = list(self.split.get("labeled", {}).get("domains", {}))
        return labeled[0] if len(labeled) == 1 else None

    def summary(self) -> Summary:
        """Means with intervals, as the run's own `summary.csv` holds them; no gap where several sites have labels.

        Raises:
            ValueError: As `summarize`.
        """
        return summarize(self.cases, protocol="network", labeled_domain=self.labeled_domain)

    def cases_in_mm(self) -> list[CaseResult]:
        """Test scores of whole volumes in mm that `dim-hf evaluate --protocol volume-mm` left of this very model.

        Empty where there are none, they are of other weights or images, or spacings are unknown.

        Raises:
            ValueError: If they cannot be read.
        """
        folder, own = self.folder / IN_MM, self.results.get(HASHES)
        said = _read_json(folder / "evaluation.json")
        stated = said.get("run_hashes")
        if said.get("split") != "test" or not isinstance(own, dict) or not isinstance(stated, dict):
            return []
        network = {name: digest for name, digest in own.items() if name not in (CASES_FILE, STATISTICS_FILE)}
        if not network or any(stated.get(name) != digest for name, digest in network.items()):
            return []
        cases = read_cases_csv(folder / CASES_FILE) if (folder / CASES_FILE).is_file() else []
        return cases if {case.unit for case in cases} == {"mm"} else []

    def summary_in_mm(self) -> Summary | None:
        """Means of `cases_in_mm` with intervals; None where there are none.

        Raises:
            ValueError: As `cases_in_mm` and `summarize`.
        """
        cases = self.cases_in_mm()
        return summarize(cases, protocol="volume-mm", labeled_domain=self.labeled_domain) if cases else None

    def description(self) -> DatasetDescription | None:
        """What a data set on this machine says about itself, if it is where it was.

        Raises:
            ValueError: If the description cannot be read.
        """
        name = str(self.data.get("dataset") or "")
        if not name or self.is_phantom:
            return None
        path = Path(name)
        found = [folder / FILE_NAME for folder in (path, path.parent) if (folder / FILE_NAME).is_file()]
        return read_description(found[0]) if found else None


def weight_files(folder: Path) -> list[Path]:
    """Safetensors at the root of a folder, and their index, sorted by name."""
    return sorted({path for pattern in _WEIGHTS for path in folder.glob(pattern)})


def run_hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that belong together: weights, configuration, processor, scores, statistics of the sites.

    A run writes them into its `results.json`, so that a push can tell that all of them are still those of one run.
    """
    others = [folder / name for name in (CONFIG_FILE, PROCESSOR_FILE, CASES_FILE, STATISTICS_FILE)]
    files = [*weight_files(folder), *(path for path in others if path.is_file())]
    return {path.name: file_sha256(path) for path in files}


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_finished_run(folder: str | Path) -> FinishedRun:
    """Read a run's folder; files that are not there are empty, since a push lists all that is missing.

    Raises:
        ValueError: If there is no such folder, or a file cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; name the folder of a run (dim-hf train --output_dir)")
    cases = folder / CASES_FILE
    return FinishedRun(
        folder,
        _read_json(folder / RESULTS_FILE),
        _read_json(folder / CONFIG_FILE),
        read_cases_csv(cases) if cases.is_file() else [],
    )


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}); train again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} holds no JSON object; train again")
    return values
