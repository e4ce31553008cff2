"""How well the drift score finds bad cases: by site, as a table of the page and as text."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

from dim_hf.evaluation.report_tables import Cell, Group, Table, number
from dim_hf.evaluation.result import Drift, EvaluationResult
from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.detection import detection_auc
from dim_hf.metrics.report import ALL_STRUCTURES, mean_of_defined
from dim_hf.metrics.resampling import LEVEL, RESAMPLES, Interval
from dim_hf.metrics.text_table import render

BAD_DICE = 0.7
"""Cases whose mean Dice over the structures is below are bad ones."""
ALL_CASES = "all cases"
_HEAD = ("Drift score", "To review", "Bad cases", "Of these to review", "AUC for bad cases", "Cases")


@dataclass(frozen=True)
class DriftRow:
    """Drift scores of one site, or of all cases.

    Attributes:
        domain: The site, or `ALL_CASES`.
        seen: Whether the model saw it; None of all cases.
        cases: Cases with a score and a Dice.
        mean: Of the scores; NaN for no case.
        flagged: Cases for review.
        bad: Cases with a mean Dice below `BAD_DICE`.
        found: Bad cases for review.
        auc: Of the score for bad cases; its mean is NaN where none or all of the cases are bad.
        unseen_auc: Of the score for cases of unseen sites; None but of all cases, from seen and from unseen sites.
    """

    domain: str
    seen: bool | None
    cases: int
    mean: float
    flagged: int
    bad: int
    found: int
    auc: Interval
    unseen_auc: Interval | None = None


def drift_rows(result: EvaluationResult) -> list[DriftRow]:
    """A row a site in the order of the summary, and one of all cases; none without statistics of the seen sites."""
    drift = result.drift
    if drift is None or not drift.scores:
        return []
    cases: dict[tuple[str, str], list[CaseResult]] = {}
    for row in result.cases:
        cases.setdefault((row.domain, row.name), []).append(row)
    keys = [key for key in cases if key in drift.scores]
    dices = {key: mean_of_defined(row.dice for row in cases[key]) for key in keys}
    # A patient's name says who it is within a site only.
    patients = {key: f"{key[0]}\0{cases[key][0].patient}" if cases[key][0].patient else "" for key in keys}
    keys = [key for key in keys if not math.isnan(dices[key])]
    domains = list(dict.fromkeys(key[0] for key in keys))
    parts = [(domain, [key for key in keys if key[0] == domain]) for domain in domains]
    if len(parts) > 1:
        parts.append((ALL_CASES, keys))
    rows = []
    for domain, own in parts:
        scores, bad = [drift.scores[key] for key in own], [dices[key] < BAD_DICE for key in own]
        flags = [score >= drift.threshold for score in scores]
        found = sum(flag and is_bad for flag, is_bad in zip(flags, bad, strict=True))
        names = [patients[key] for key in own]
        auc = detection_auc(scores, bad, names)
        seen = domain in drift.seen_sites
        row = DriftRow(domain, seen, len(own), mean_of_defined(scores), sum(flags), sum(bad), found, auc)
        if own is keys:
            unseen = [key[0] not in drift.seen_sites for key in own]
            row = replace(row, seen=None)
            if 0 < sum(unseen) < len(own):
                row = replace(row, unseen_auc=detection_auc(scores, unseen, names))
        rows.append(row)
    return rows


def drift_facts(result: EvaluationResult) -> list[dict[str, object]]:
    """The rows as JSON holds them: what is not defined is None."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {name: plain(item) for name, item in value.items()}
        return None if isinstance(value, float) and math.isnan(value) else value

    return [{name: plain(value) for name, value in asdict(row).items()} for row in drift_rows(result)]


def drift_table(result: EvaluationResult) -> list[Table]:
    """The rows as a table of the page; none without rows."""
    rows = drift_rows(result)
    if not rows or result.drift is None:
        return []
    groups = [Group(row.domain, _marks(row), row.seen is None, [(ALL_STRUCTURES, _cells(row))]) for row in rows]
    return [Table("Unlike the seen sites", _HEAD, groups, drift_caption(result.drift, rows))]


def format_drift(result: EvaluationResult, style: str = "markdown") -> list[str]:
    """The rows as text: the table and its caption; nothing without rows.

    Args:
        result: The evaluation.
        style: "markdown" or "text".
    """
    rows = drift_rows(result)
    if not rows or result.drift is None:
        return []
    lines = [
        [" ".join([row.domain, *(f"({mark})" for mark in _marks(row))]), *(_one_line(cell) for cell in _cells(row))]
        for row in rows
    ]
    return [render(["Site", *_HEAD], lines, style, left=1), drift_caption(result.drift, rows)]


def drift_caption(drift: Drift, rows: Sequence[DriftRow]) -> str:
    """What score, flag and AUC are, how they were calibrated, and why an AUC may be missing."""
    rate = f"{100 * drift.false_alarm_rate:.1f} % of new images of the seen sites reach"
    promise = (
        f"at most {rate} (split conformal"
        if drift.is_bound
        else (f"about {rate} on average over the sites (cross-fitted: no bound")
    )
    parts = [
        "Drift score: share of images of the sites that the model saw that are less unlike these than the case is, "
        f"from pixels, features and doubt of the network. To review: from {drift.threshold:.3f} on, which "
        f"{promise}; calibrated on {drift.calibrated_on}).",
        f"Bad: mean Dice below {BAD_DICE}. AUC: probability that a bad case has the higher score, with its "
        f"{100 * LEVEL:g} % interval (percentile bootstrap over patients, {RESAMPLES:,} resamples); 0.5 is chance.",
        *(_unseen(row.unseen_auc) for row in rows if row.unseen_auc is not None),
        "“–”: not defined, since none or all of the cases are bad."
        if any(math.isnan(r.auc.mean) for r in rows)
        else "",
        "No interval: fewer than two patients have a bad case, or a good one."
        if any(math.isnan(r.auc.low) and not math.isnan(r.auc.mean) for r in rows)
        else "",
    ]
    return " ".join(filter(None, parts))


def _unseen(auc: Interval) -> str:
    ends = "" if math.isnan(auc.low) else f" [{number(auc.low, 2)}, {number(auc.high, 2)}]"
    return f"AUC for telling unseen sites from seen ones: {number(auc.mean, 2)}{ends}."


def _marks(row: DriftRow) -> list[str]:
    return [] if row.seen is None else ["seen" if row.seen else "unseen"]


def _cells(row: DriftRow) -> list[Cell]:
    share = 100 * row.flagged / row.cases if row.cases else math.nan
    interval = "" if math.isnan(row.auc.low) else f"[{number(row.auc.low, 2)}, {number(row.auc.high, 2)}]"
    return [
        Cell(number(row.mean, 3)),
        Cell(f"{row.flagged:,} ({number(share, 0)} %)"),
        Cell(f"{row.bad:,}", kind="bad" if row.bad else "quiet"),
        Cell(f"{row.found:,}", kind="" if row.bad else "quiet"),
        Cell(number(row.auc.mean, 2), interval),
        Cell(f"{row.cases:,}"),
    ]


def _one_line(cell: Cell) -> str:
    return f"{cell.text} {cell.below}".strip()
