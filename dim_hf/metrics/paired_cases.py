"""Two methods compared on the same cases: their scores paired by domain, case and structure."""

import math
from collections.abc import Iterable, Mapping

from dim_hf.metrics.cases import CaseResult
from dim_hf.metrics.labels import SHARES
from dim_hf.metrics.report import ALL_STRUCTURES, MEAN_OF_SITES, MEANS, mean_of_defined, site_table
from dim_hf.metrics.statistics import PairedComparison, compare_paired, compare_paired_groups

Key = tuple[str, str]


def by_domain(cases: Iterable[CaseResult]) -> dict[str, dict[str, dict[str, CaseResult]]]:
    """Sorts rows into domains and cases.

    Args:
        cases: rows of `score_case`, without duplicates.

    Returns:
        Domain → case → structure → scores, with the cases of a domain sorted by name.
    """
    found: dict[str, dict[str, dict[str, CaseResult]]] = {}
    for case in sorted(cases, key=lambda case: case.name):
        found.setdefault(case.domain, {}).setdefault(case.name, {})[case.structure] = case
    return found


def _check_pairs(
    a: Mapping[tuple[str, str, str], CaseResult], b: Mapping[tuple[str, str, str], CaseResult], metric: str
) -> None:
    if a and b and not a.keys() & b.keys():
        raise ValueError(
            "A and B have no case in common: A has domain {!r}, case {!r}, structure {!r}, B has domain {!r}, case "
            "{!r}, structure {!r}; compare evaluations of the same images".format(*min(a), *min(b))
        )
    for names, one, other in (("A and not in B", a, b), ("B and not in A", b, a)):
        if one.keys() - other.keys():
            where = "domain {!r}, case {!r}, structure {!r}".format(*min(one.keys() - other.keys()))
            raise ValueError(f"{where} is in {names}; score both on the same cases")
    for key, first in a.items():
        second, where = b[key], "domain {!r}, case {!r}, structure {!r}".format(*key)
        for what in ("unit", "empty_policy", "patient", *["nsd_tolerance"] * (metric == "nsd")):
            values = getattr(first, what), getattr(second, what)
            if repr(values[0]) != repr(values[1]):  # NaN equals NaN
                raise ValueError(f"{where}: {what} is {values[0]!r} in A and {values[1]!r} in B; score both alike")
        volumes = first.reference_volume, second.reference_volume
        both_ignored = all(map(math.isnan, volumes))  # no pixel of the reference says anything
        if not both_ignored and not math.isclose(*volumes, rel_tol=1e-6):
            raise ValueError(
                f"{where}: the reference has the volume {volumes[0]:g} in A and {volumes[1]:g} in B; score both "
                "against the same reference on the same grid"
            )


def _score(case: CaseResult, metric: str) -> float:
    # A volume that is too large is no better than one that is too small by as much.
    return abs(case.volume_difference) if metric == "volume_difference" else getattr(case, metric)


def _paired_values(
    a: Mapping[str, Mapping[str, CaseResult]],
    b: Mapping[str, Mapping[str, CaseResult]],
    structure: str,
    metric: str,
) -> tuple[list[float], list[float], list[str]]:
    """Scores of A, of B and patients of one domain's cases that have the structure (or any), sorted by name."""
    values: tuple[list[float], list[float], list[str]] = ([], [], [])
    for name, rows in a.items():
        kept = [key for key in rows if structure in (key, ALL_STRUCTURES)]
        if not kept:
            continue
        pairs = [(_score(rows[key], metric), _score(b[name][key], metric)) for key in kept]
        # A structure without a value in A or in B counts in neither.
        known = [pair for pair in pairs if not any(map(math.isnan, pair))]
        values[0].append(mean_of_defined(first for first, _ in known))
        values[1].append(mean_of_defined(second for _, second in known))
        values[2].append(rows[kept[0]].patient)
    return values


def compare_cases(
    a: Iterable[CaseResult], b: Iterable[CaseResult], metric: str = "dice", *, seed: int = 0
) -> dict[Key, PairedComparison]:
    """Compares two methods case by case, for each domain and structure and for the mean of sites.

    Args:
        a: rows of `score_case` of method A.
        b: rows of method B for the same (domain, case, structure)s, in any order.
        metric: a name in `report.MEANS`; `volume_difference` is compared by its absolute value.
        seed: of the resamples, an integer from 0.

    Returns:
        (domain, structure) → comparison, with the keys and the order of the rows of `report.site_table` of A. For all
        structures a case has the mean over its structures that are defined in A and B.

    Raises:
        ValueError: for an unknown metric, or where the two differ in cases, units, empty policies, patients or
            reference volumes, or for the NSD in its tolerance; the message names the first difference.
    """
    if metric not in MEANS:
        raise ValueError(f"metric is {metric!r}; choose one of {', '.join(MEANS)}")
    a, b = list(a), list(b)
    table = site_table(a)
    site_table(b)  # the same checks of B
    _check_pairs(*({(case.domain, case.name, case.structure): case for case in cases} for cases in (a, b)), metric)
    first, second = by_domain(a), by_domain(b)
    options = {"higher_is_better": metric in SHARES, "seed": seed}
    comparisons = {}
    for row in table.rows:
        if row.domain != MEAN_OF_SITES:
            values = _paired_values(first[row.domain], second[row.domain], row.structure, metric)
            comparisons[row.domain, row.structure] = compare_paired(*values, **options)
            continue
        groups = [_paired_values(first[name], second[name], row.structure, metric) for name in sorted(first)]
        groups = [group for group in groups if group[0]]
        comparisons[row.domain, row.structure] = compare_paired_groups(groups, **options)
    return comparisons
