"""Scores of cases as means with intervals, for each domain and structure.

Means are those of `report.site_table`: over the cases of a domain for each structure, over the structures of the
domain, then over domains with equal weight for each. Intervals resample patients within their domain, with all their
cases and structures together (`resampling`); domains are not resampled, so that no interval is one for a new domain.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.paired_cases import Key, by_domain
from dim_hf.metrics.report import ALL_STRUCTURES, MEAN_OF_SITES, MEANS, SiteRow, SiteTable, mean_of_defined, site_table
from dim_hf.metrics.resampling import (
    LEVEL,
    Interval,
    ResampledMeans,
    count_clusters,
    mean_of_resampled,
    resample_means,
)


@dataclass(frozen=True)
class SummaryRow(SiteRow):
    """Means with intervals over the cases of one domain, or over domains.

    Attributes:
        patients: number of the cases' patients; a case without a patient counts as a patient.
        intervals: by name in `report.MEANS`; `sd` is over cases, and over domains in rows of the mean of sites.
    """

    patients: int
    intervals: dict[str, Interval]


@dataclass(frozen=True)
class Summary(SiteTable[SummaryRow]):
    """A table by site with intervals; it may stand wherever a `SiteTable` does.

    Attributes:
        protocol: name of the way to score, for captions.
        labeled_domain: domain whose labels were trained on; None where unknown.
        worst_domain: domain with the lowest mean Dice (mean of structures), whether labeled or not; "" without cases.
        gap: Dice of the labeled domain minus that of the worst other domain; None where one of them was not scored.
        cases_without_patient: how many cases have no patient and are resampled alone.
    """

    protocol: str
    labeled_domain: str | None
    worst_domain: str
    gap: float | None
    cases_without_patient: int = 0


def _patients(cases: Mapping[str, Mapping[str, CaseResult]]) -> list[str]:
    """The patient of each case."""
    patients = []
    for name, rows in cases.items():
        found = sorted({row.patient for row in rows.values()})
        if len(found) > 1:
            raise ValueError(f"case {name!r} has the patients {', '.join(map(repr, found))}; name one a case")
        patients.append(found[0])
    return patients


def _resample_domain(cases: Mapping[str, Mapping[str, CaseResult]], seed: Sequence[int]) -> dict[str, ResampledMeans]:
    """Resampled means by structure and of all structures, all from the same resamples of patients."""
    structures = sorted({structure for rows in cases.values() for structure in rows})
    values = np.full((len(cases), len(structures) + 1, len(MEANS)), math.nan)
    for at, rows in enumerate(cases.values()):
        scores = {name: [getattr(row, metric) for metric in MEANS] for name, row in rows.items()}
        for place, structure in enumerate(structures):
            values[at, place] = scores.get(structure, math.nan)
        # The mean of a case's structures, for the spread over cases.
        values[at, -1] = [mean_of_defined(column) for column in zip(*scores.values(), strict=True)]
    whole = resample_means(values.reshape(len(cases), -1), _patients(cases), seed=seed)
    *parts, by_case = [
        ResampledMeans(*(array[..., first : first + len(MEANS)] for array in vars(whole).values()))
        for first in range(0, len(whole.means), len(MEANS))
    ]
    together = mean_of_resampled(parts)
    together = replace(together, sds=by_case.sds, cases=by_case.cases, clusters=by_case.clusters)
    return dict(zip(structures, parts, strict=True)) | {ALL_STRUCTURES: together}


def _summary_row(row: SiteRow, patients: int, resampled: ResampledMeans) -> SummaryRow:
    intervals = dict(zip(MEANS, resampled.intervals(LEVEL), strict=True))
    return SummaryRow(**vars(row), patients=patients, intervals=intervals)


def _worst_and_gap(dice: Mapping[str, float], labeled_domain: str | None) -> tuple[str, float | None]:
    known = sorted((value, domain) for domain, value in dice.items() if not math.isnan(value))
    others = [value for value, domain in known if domain != labeled_domain]
    labeled = [value for value, domain in known if domain == labeled_domain]
    return known[0][1] if known else "", labeled[0] - others[0] if labeled and others else None


def summarize(
    cases: Iterable[CaseResult], *, protocol: str, labeled_domain: str | None = None, seed: int = 0
) -> Summary:
    """Means, standard deviations and 95 % intervals by domain and structure, and the worst domain.

    Args:
        cases: rows of `score_case`, of any number of domains, cases and structures; may be empty.
        protocol: name of the way they were scored, for captions.
        labeled_domain: domain whose labels were trained on; it need not be among the cases.
        seed: of the resamples, an integer from 0. A domain's intervals depend on its own name and cases only.

    Returns:
        The summary, without rows for no cases. It does not depend on the order of the cases, but for the order of
        its rows.

    Raises:
        ValueError: if units, empty policies or tolerances of the NSD are mixed, a (domain, case, structure) comes
            twice, a case has several patients, or a domain or a structure has the name of a mean.
    """
    cases = list(cases)
    table, domains = site_table(cases), by_domain(cases)
    resampled: dict[Key, ResampledMeans] = {}
    patients: dict[Key, int] = {}
    for domain, own in domains.items():
        for structure, means in _resample_domain(own, (seed, *domain.encode("utf-8", "surrogatepass"))).items():
            held = {name: rows for name, rows in own.items() if structure in (*rows, ALL_STRUCTURES)}
            resampled[domain, structure] = means
            patients[domain, structure] = count_clusters(_patients(held))
    # With one structure in all, the table has no rows of the mean of structures: these entries stay unused.
    for structure in dict.fromkeys(structure for _, structure in resampled):
        having = [domain for domain in sorted(domains) if (domain, structure) in resampled]
        resampled[MEAN_OF_SITES, structure] = mean_of_resampled([resampled[name, structure] for name in having])
        patients[MEAN_OF_SITES, structure] = sum(patients[name, structure] for name in having)
    keys = [(row.domain, row.structure) for row in table.rows]
    rows = [_summary_row(row, patients[key], resampled[key]) for key, row in zip(keys, table.rows, strict=True)]
    dice = {domain: float(resampled[domain, ALL_STRUCTURES].means[MEANS.index("dice")]) for domain in domains}
    worst, gap = _worst_and_gap(dice, labeled_domain)
    unnamed = sum(not patient for own in domains.values() for patient in _patients(own))
    about = vars(table) | {"rows": tuple(rows)}
    return Summary(
        **about,
        protocol=protocol,
        labeled_domain=labeled_domain,
        worst_domain=worst,
        gap=gap,
        cases_without_patient=unnamed,
    )
