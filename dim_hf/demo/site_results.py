"""What a model reached at each site, from the table that its training left beside the weights."""

import csv
import math
from dataclasses import dataclass
from pathlib import Path

from dim_hf.data.texts import printable
from dim_hf.demo.models import DemoModel
from dim_hf.demo.tables import table
from dim_hf.evaluation.result import SELECTED_ON_TEST
from dim_hf.metrics.case_files import cell_value
from dim_hf.metrics.empty_masks import EMPTY_POLICIES
from dim_hf.metrics.report import ALL_STRUCTURES

FILE_NAME = "summary.csv"
_MOST_BYTES = 2**22
_SHOWN = ("dice", "hd95")
_ABSENT = (
    "No results by site lie beside this model, so nothing can be said here of how well it works, at any hospital. "
    "`dim-hf train` leaves them in the folder of a run."
)


@dataclass(frozen=True)
class SiteResult:
    """Means of one structure at one site.

    Attributes:
        domain: The site, or "mean of sites".
        structure: What was outlined.
        cases: Number of test cases.
        patients: Number of their patients.
        missed: Cases where the model overlooked it.
        spurious: Cases where it drew what is not there.
        means: By metric the mean and its interval as text, "–" where there is none.
    """

    domain: str
    structure: str
    cases: str
    patients: str
    missed: str
    spurious: str
    means: dict[str, str]


@dataclass(frozen=True)
class SiteResults:
    """The table of a model.

    Attributes:
        rows: In the order of the file.
        unit: "mm" or "px".
        empty_policy: What a distance is worth where a structure was overlooked; a key of `EMPTY_POLICIES`.
        labeled_domain: Where the labels were from; "" where that is not known.
        worst_domain: The site with the lowest Dice.
        selected: How the step was chosen; "" where that is not known.
    """

    rows: tuple[SiteResult, ...]
    unit: str
    empty_policy: str
    labeled_domain: str
    worst_domain: str
    selected: str


def find_results(model: DemoModel) -> Path | None:
    """The file of results beside a model, in its folder or its Hub repository; None where there is none."""
    if model.folder is not None:
        path = model.folder / FILE_NAME
        return path if path.is_file() else None
    if model.origin != "hub":
        return None
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model.title, FILE_NAME))
    except (OSError, ValueError):  # not there, or no network
        return None


def read_results(path: Path) -> SiteResults:
    """Read `summary.csv` of a run (see `summary_text.write_summary_csv`).

    Raises:
        ValueError: If the file is no such table.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise ValueError(f"{path} is too large for a table of results; give the summary.csv of a run")
    found: dict[tuple[str, str], SiteResult] = {}
    first: dict[str, str] = {}
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                if line["metric"] not in _SHOWN:
                    continue
                first = first or line
                key = _text(line["domain"]), _text(line["structure"])
                counts = (_text(line[name]) for name in ("cases", "patients", "missed", "spurious"))
                row = found.setdefault(key, SiteResult(*key, *counts, means={}))
                row.means[line["metric"]] = _mean(line)
        about = [_text(first[name]) for name in ("unit", "empty_policy", "labeled_domain", "worst_domain")]
    except (KeyError, AttributeError, TypeError, ValueError, csv.Error) as error:
        raise ValueError(f"{path} is no table of results ({error}); give the summary.csv of a run") from error
    return SiteResults(tuple(found.values()), *about, selected=_text(first.get("selected") or ""))


def _text(value: str) -> str:
    return printable(cell_value(value))


def _mean(line: dict[str, str]) -> str:
    """The mean with its 95 % interval.

    >>> _mean({"metric": "dice", "mean": "0.9", "low": "0.85", "high": "0.94"}), _mean({"metric": "hd95", "mean": ""})
    ('0.900 [0.850, 0.940]', '–')
    """
    digits = 3 if line["metric"] == "dice" else 1
    if not line["mean"] or math.isnan(float(line["mean"])):
        return "–"
    mean = f"{float(line['mean']):.{digits}f}"
    if not line["low"] or not line["high"]:
        return mean
    return f"{mean} [{float(line['low']):.{digits}f}, {float(line['high']):.{digits}f}]"


def results_section(model: DemoModel) -> str:
    """The table as HTML, or an honest sentence where there is none.

    Args:
        model: One of the demo's.
    """
    path = find_results(model)
    if path is None:
        return f"<p>{_ABSENT.replace('`', '')}</p>"
    try:
        found = read_results(path)
    except (OSError, ValueError):
        return "<p>The results beside this model cannot be read, so none are shown.</p>"
    several = len({row.structure for row in found.rows} - {ALL_STRUCTURES}) > 1
    rows = [
        [_site(row.domain, found), row.structure, row.cases, row.patients]
        + [row.means.get(name, "–") for name in _SHOWN]
        + [row.missed, row.spurious]
        for row in found.rows
        if several or row.structure != ALL_STRUCTURES
    ]
    head = ["Site", "Structure", "Cases", "Patients", "Dice", f"HD95, {found.unit}", "Missed", "Spurious"]
    return table(head, rows, _caption(found))


def _site(domain: str, found: SiteResults) -> str:
    return f"{domain} (labeled)" if domain == found.labeled_domain else domain


def _caption(found: SiteResults) -> str:
    policy = EMPTY_POLICIES.get(found.empty_policy)
    sentences = [
        "Test cases that the model did not learn from: mean [95 % interval].",
        f"HD95 is in {'mm' if found.unit == 'mm' else 'pixels at the size of the network, not in mm'}"
        + (f"; {policy.description}." if policy else "."),
        "Missed and spurious: cases where a structure was overlooked, or drawn where there is none.",
        f"Worst site by Dice: {found.worst_domain}." if found.worst_domain else "",
        SELECTED_ON_TEST if "test-legacy" in found.selected else "",
    ]
    return " ".join(filter(None, sentences))
