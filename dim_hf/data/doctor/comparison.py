"""Findings that need more than one row, or the row's words: copies, patients, names, flips, what domains mix."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence

from dim_hf.data.description import DatasetDescription
from dim_hf.data.doctor.findings import Finding, finding, sort_key
from dim_hf.data.doctor.flips import suspect
from dim_hf.data.doctor.inspection import RowFacts
from dim_hf.data.rows import SPLITS

MIXED_SIZES = 2.0
MIXED_SPACINGS = 1.5
_SHOWN = 5
_PLAIN_NAME = re.compile(r"[!-~]*")


def find_all(facts: Sequence[RowFacts], description: DatasetDescription, ignore_index: int | None) -> list[Finding]:
    """Every finding of a data set, worst first.

    Args:
        facts: Facts of every row.
        description: Classes of the data set.
        ignore_index: Value of mask pixels that are not scored.
    """
    found = [item for row in facts for item in _of_row(row, ignore_index)]
    for check in _OF_ALL:
        found.extend(check(facts))
    found.extend(foreground_ignored(facts, description.num_labels, ignore_index))
    for domain, rows in by_domain(facts).items():
        found.extend(_absent_classes(domain, rows, description))
        for check in _OF_DOMAIN:
            found.extend(check(domain, rows))
    return sorted(found, key=sort_key)


def by_domain(facts: Iterable[RowFacts]) -> dict[str, list[RowFacts]]:
    """Rows of each domain, domains sorted by name."""
    domains: dict[str, list[RowFacts]] = defaultdict(list)
    for row in facts:
        domains[row.domain].append(row)
    return dict(sorted(domains.items()))


def foreground_ignored(facts: Sequence[RowFacts], num_labels: int, ignore_index: int | None) -> list[Finding]:
    """Domains all of whose masks together hold nothing but 0 and `ignore_index`."""
    if num_labels < 2 or ignore_index is None:
        return []
    problem = f"they hold only 0 and {ignore_index}, and {ignore_index} means 'ignore'"
    found = []
    for domain, rows in by_domain(facts).items():
        values = {value for row in rows for value in row.counts or ()}
        if ignore_index in values and values <= {0, ignore_index}:
            found.append(finding("foreground-ignored", f"all masks of domain {domain}", problem, domain))
    return found


def _of_row(row: RowFacts, ignore_index: int | None) -> Iterator[Finding]:
    for problem in row.problems:
        yield finding(problem.code, row.files[problem.column], problem.problem, row.domain, row.index)
    if row.image is not None and row.image.low == row.image.high:
        problem = f"every pixel is {row.image.low:g}"
        yield finding("constant-image", row.files["image"], problem, row.domain, row.index)
    values = set(row.counts or ())
    if values and values <= {0, ignore_index}:
        only_ignored = ignore_index in values
        problem = f"besides 0 it holds only {ignore_index}, which means 'ignore'"
        problem = problem if only_ignored else "no pixel belongs to a class other than the background"
        code = "ignored-mask" if only_ignored else "empty-mask"
        yield finding(code, row.files["label"], problem, row.domain, row.index)


def _unknown_splits(facts: Sequence[RowFacts]) -> Iterator[Finding]:
    for row in facts:
        if row.split not in ("", *SPLITS):
            problem = f"the split is {row.split!r}"
            yield finding("unknown-split", _name(row), problem, row.domain, row.index)


def _repeated_names(facts: Sequence[RowFacts]) -> Iterator[Finding]:
    for rows in _groups(facts, lambda row: (row.domain, row.name) if row.name else None):
        problem = f"the name {rows[0].name!r} stands in the rows {_listed(str(row.index) for row in rows)}"
        yield finding("duplicate-name", _name(rows[0]), problem, rows[0].domain, rows[0].index)


def _divided_patients(facts: Sequence[RowFacts]) -> Iterator[Finding]:
    for rows in _groups(facts, lambda row: (row.domain, row.patient or row.name) if row.patient or row.name else None):
        first = {}
        for row in rows:
            first.setdefault(row.split or "train", row)
        if len(first) > 1:
            where = ", ".join(f"{split} ({row.name})" for split, row in sorted(first.items()))
            problem = f"patient {rows[0].patient or rows[0].name!r} is in {where}"
            yield finding("patient-across-splits", _name(rows[0]), problem, rows[0].domain, rows[0].index)


def _copies(facts: Sequence[RowFacts]) -> Iterator[Finding]:
    """Images with equal pixels, of which one row speaks for all; those of one value are no copies."""

    def key(row: RowFacts) -> object:
        return row.image.digest if row.image is not None and row.image.low < row.image.high else None

    for rows in _groups(facts, key):
        splits = {row.split or "train" for row in rows}
        domains = {row.domain for row in rows}
        code = "duplicate-across-domains" if len(domains) > 1 else "duplicate-image"
        code = "duplicate-across-splits" if len(splits) > 1 else code
        others = _listed(f"{row.files['image']} {_place(row)}" for row in rows[1:])
        problem = f"this image {_place(rows[0])} has the same pixels as {others}"
        yield finding(code, rows[0].files["image"], problem, rows[0].domain, rows[0].index)


def _odd_names(facts: Sequence[RowFacts]) -> Iterator[Finding]:
    """Names of rows, patients and files; a domain's own name is reported once."""
    for domain in sorted({row.domain for row in facts}):
        if not _PLAIN_NAME.fullmatch(domain):
            yield finding("odd-name", domain, f"the domain's name {domain!r} holds {_odd_part(domain)}", domain)
    for row in facts:
        files = (os.path.basename(file) for file in row.files.values() if os.path.isabs(file))
        words = {"name": row.name, "patient": row.patient}
        named = [*words.items(), *(("file name", name) for name in files)]
        odd = {value: what for what, value in reversed(named) if not _PLAIN_NAME.fullmatch(value)}
        for value, what in sorted(odd.items())[:1]:
            problem = f"the {what} {value!r} holds {_odd_part(value)}"
            yield finding("odd-name", row.files.get("image", _name(row)), problem, row.domain, row.index)


def _odd_part(name: str) -> str:
    found = sorted({character for character in name if not _PLAIN_NAME.fullmatch(character)})
    return "a blank" if found == [" "] else f"the characters {', '.join(map(repr, found[:_SHOWN]))}"


def _no_masks(facts: Sequence[RowFacts]) -> Iterator[Finding]:
    if facts and not any(row.has_label for row in facts):
        yield finding("no-masks", "all rows", "none of the rows has a mask")


def _unlabeled_domain(domain: str, rows: Sequence[RowFacts]) -> Iterator[Finding]:
    if not any(row.has_label for row in rows):
        yield finding("no-domain-masks", domain, f"none of its {len(rows)} images has a mask", domain)


def _absent_classes(domain: str, rows: Sequence[RowFacts], description: DatasetDescription) -> Iterator[Finding]:
    found = [row.counts for row in rows if row.counts is not None]
    values = {value for counts in found for value in counts}
    for value, name in sorted(description.id2label.items()):
        if found and value not in values:
            problem = f"class {value} ({name}) is in none of its {len(found)} masks"
            yield finding("absent-class", domain, problem, domain)


def _flips(domain: str, rows: Sequence[RowFacts]) -> Iterator[Finding]:
    rows = [row for row in rows if row.fit is not None]
    result = suspect([row.mask_size for row in rows], [row.fit for row in rows])
    if result.most is not None:
        problem = f"most of its {len(rows)} masks fit their images better when {result.most.words}"
        yield finding("flipped-domain", domain, problem, domain)
    for index, variant in sorted(result.images.items()):
        row = rows[index]
        problem = (
            f"the mask fits the image better when {variant.words} "
            f"(evidence {max(row.fit):.2f} instead of {row.fit[0]:.2f})"
        )
        yield finding("flip-suspected", row.files["label"], problem, domain, row.index)


def _mixed_channels(domain: str, rows: Sequence[RowFacts]) -> Iterator[Finding]:
    found = Counter(row.image.channels for row in rows if row.image is not None)
    if len(found) > 1:
        counts = ", ".join(f"{count} with {channels}" for channels, count in sorted(found.items()))
        yield finding("mixed-channels", domain, f"numbers of channels differ: {counts}", domain)


def _mixed_types(domain: str, rows: Sequence[RowFacts]) -> Iterator[Finding]:
    found = Counter(row.image.dtype for row in rows if row.image is not None)
    if len(found) > 1:
        counts = ", ".join(f"{count} {dtype}" for dtype, count in sorted(found.items()))
        yield finding("mixed-types", domain, f"types of the stored numbers differ: {counts}", domain)


def _mixed_sizes(domain: str, rows: Sequence[RowFacts]) -> Iterator[Finding]:
    sizes = [row.image.size for row in rows if row.image is not None]
    yield from _mixed(domain, sizes, MIXED_SIZES, "mixed-sizes", "{} pixels")


def _mixed_spacings(domain: str, rows: Sequence[RowFacts]) -> Iterator[Finding]:
    spacings = [row.image.spacing_mm for row in rows if row.image is not None and row.image.spacing_mm is not None]
    yield from _mixed(domain, spacings, MIXED_SPACINGS, "mixed-spacings", "{} mm")


def _mixed(domain: str, values: list[tuple], factor: float, code: str, unit: str) -> Iterator[Finding]:
    """The axis along which the largest is more than `factor` times the smallest, by the most."""
    axes = list(zip(*values, strict=False))
    ratios = [max(axis) / min(axis) for axis in axes]
    if ratios and max(ratios) > factor:
        axis = ratios.index(max(ratios))
        span = unit.format(f"{min(axes[axis]):g} to {max(axes[axis]):g}")
        yield finding(code, domain, f"axis {axis} has {span}, more than a factor of {factor:g}", domain)


def _mixed_orientations(domain: str, rows: Sequence[RowFacts]) -> Iterator[Finding]:
    found = Counter(row.image.orientation for row in rows if row.image is not None and row.image.orientation)
    if len(found) > 1:
        counts = ", ".join(f"{count} {name}" for name, count in found.most_common())
        yield finding("mixed-orientations", domain, f"orientations differ: {counts}", domain)


_OF_ALL: tuple[Callable[[Sequence[RowFacts]], Iterator[Finding]], ...] = (
    _unknown_splits,
    _repeated_names,
    _divided_patients,
    _copies,
    _odd_names,
    _no_masks,
)
_OF_DOMAIN: tuple[Callable[[str, Sequence[RowFacts]], Iterator[Finding]], ...] = (
    _unlabeled_domain,
    _flips,
    _mixed_channels,
    _mixed_types,
    _mixed_sizes,
    _mixed_spacings,
    _mixed_orientations,
)


def _groups(facts: Iterable[RowFacts], key: Callable[[RowFacts], object]) -> Iterator[list[RowFacts]]:
    """Rows with equal keys, in the order of the rows, where there are several; None is no key."""
    groups: dict[object, list[RowFacts]] = defaultdict(list)
    for row in facts:
        value = key(row)
        if value is not None:
            groups[value].append(row)
    return (rows for rows in groups.values() if len(rows) > 1)


def _place(row: RowFacts) -> str:
    return f"({', '.join(filter(None, [row.domain, row.split or 'no split']))})"


def _name(row: RowFacts) -> str:
    return f"{row.domain}/{row.name}" if row.domain or row.name else f"row {row.index}"


def _listed(words: Iterable[str]) -> str:
    shown = list(words)
    more = [f"{len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return ", ".join(shown[:_SHOWN] + more)
