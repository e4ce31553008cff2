"""Which images are labeled, unlabeled, for validation and for test: one stated, sorted, seeded rule."""

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import datasets

from dim_hf.data.permutation import seeded_permutation
from dim_hf.data.rows import SPLITS, is_present, require_columns


@dataclass(frozen=True)
class SemiSupervisedSplit:
    """The four parts of a semi-supervised experiment.

    Attributes:
        labeled: Training images with their masks.
        unlabeled: Training images without the `label` column.
        validation: Images of the labeled domain with masks, to choose a checkpoint by.
        test: Images with masks of each domain that has any, to be scored only.
        labeled_domain: The domain of the labels.
        seed: Seed of the draw.
    """

    labeled: datasets.Dataset
    unlabeled: datasets.Dataset
    validation: datasets.Dataset
    test: dict[str, datasets.Dataset]
    labeled_domain: str
    seed: int

    def summary(self) -> dict[str, Any]:
        """Counts of images and patients of each part and domain, and a hash of the names, ready for JSON."""
        return {
            "labeled_domain": self.labeled_domain,
            "seed": self.seed,
            "labeled": describe_part(self.labeled),
            "unlabeled": describe_part(self.unlabeled),
            "validation": describe_part(self.validation),
            "test": {domain: describe_part(rows) for domain, rows in self.test.items()},
        }


class _Case(NamedTuple):
    domain: str
    name: str
    patient: str
    split: str
    has_label: bool
    index: int
    order: int | None = None

    @property
    def key(self) -> tuple[str, str]:
        """The patient: two domains may use the same name."""
        return self.domain, self.patient


def semi_supervised_split(
    rows: datasets.Dataset,
    *,
    labeled_domain: str,
    num_labeled: int | Literal["all"] | None,
    num_validation: int,
    seed: int,
    test_fraction: float = 0.2,
    unlabeled_domains: Sequence[str] | None = None,
    allow_shared_patients: bool = False,
) -> SemiSupervisedSplit:
    """Split rows into labeled, unlabeled, validation and test images.

    Patients of a domain are sorted by name and permuted by a key made of the seed, the purpose and the domain, so that
    neither the order of the rows nor the other arguments have a part in it:

    - Test: in a domain with rows marked "test", exactly these. Otherwise `test_fraction` of its patients (at least
      one where there are two), drawn from those with masks that no row marks as "train" or "validation". The test
      images depend on the rows, `seed` and `test_fraction` only. Rows without a mask are not scored.
    - Validation: the rows of the labeled domain marked "validation", if any; otherwise whole patients from the end
      of the order below, each by its first image, until they have at least `num_validation` images.
    - Labeled: the first `num_labeled` images in the permuted order of patients, sorted by name within a patient. For
      one seed, a smaller labeled set is therefore contained in a larger one. Where the rows have a `labeled_order`,
      images with a place in it come first, in that order, whatever the seed.
    - Unlabeled: every other training image of `unlabeled_domains`.

    No patient is in two of training, validation and test; a labeled patient's other images may be unlabeled ones.
    With `allow_shared_patients` every image counts as a patient of its own: some published splits go by image.

    Args:
        rows: Rows as a reader of this package gives them.
        labeled_domain: Domain that the labels come from.
        num_labeled: Number of labeled images; "all" or None labels every training image with a mask in all domains
            (the upper bound), with the same validation and test images.
        num_validation: Least number of validation images to draw, 0 for none.
        seed: Seed of the draw.
        test_fraction: Share of a domain's patients to draw for test, in [0, 1).
        unlabeled_domains: Domains that unlabeled images come from; all by default.
        allow_shared_patients: Keep marked splits that divide a patient's images.

    Raises:
        ValueError: If a domain is unknown, a number is out of range, there are not enough images or none for a part,
            a name occurs twice in a domain, or the marked splits divide a patient.
    """
    require_columns(rows)
    cases = _cases(rows)
    _check_arguments(cases, labeled_domain, num_labeled, num_validation, seed, test_fraction, unlabeled_domains)
    if allow_shared_patients:
        cases = [case._replace(patient=case.name) for case in cases]
    _check_patients(cases)
    by_domain = _by_domain(cases)
    domains = list(by_domain)
    test_patients = {(d, p) for d in domains for p in _test_patients(by_domain[d], d, seed, test_fraction)}
    test = [case for case in cases if case.key in test_patients and case.has_label]
    training = [case for case in cases if case.key not in test_patients and case.split in ("", "train")]
    pool = _labeled_order(training, labeled_domain, seed)
    validation = _validation(cases, pool, labeled_domain, num_validation)
    held_out = {case.key for case in validation}
    placed = [case for case in pool if case.order is not None]
    training, pool = ([case for case in part if case.key not in held_out] for part in (training, pool))
    if num_labeled in ("all", None):
        labeled = [case for case in training if case.has_label]
        if not labeled:
            raise ValueError(
                f"no labeled image is left beside {len(validation)} for validation (whole patients) and {len(test)} "
                f"for test: lower num_validation ({num_validation}) or test_fraction ({test_fraction}), or add masks"
            )
    else:
        labeled = _first(pool, num_labeled, labeled_domain, len(validation))
        _refuse_held_out(placed[:num_labeled], held_out)
    taken = {case.index for case in labeled}
    sources = sorted(set(domains if unlabeled_domains is None else unlabeled_domains))
    unlabeled = [case for case in training if case.index not in taken and case.domain in sources]
    if not unlabeled and num_labeled not in ("all", None):
        raise ValueError(
            f"no unlabeled images are left in {sources}: lower num_labeled ({num_labeled}), num_validation "
            f"({num_validation}) or test_fraction ({test_fraction}), add images, or use num_labeled='all'"
        )
    return SemiSupervisedSplit(
        labeled=_take(rows, labeled),
        unlabeled=_take(rows, unlabeled).remove_columns("label"),
        validation=_take(rows, validation),
        test={domain: _take(rows, own) for domain, own in _by_domain(test).items()},
        labeled_domain=labeled_domain,
        seed=seed,
    )


def mark_test_patients(rows: datasets.Dataset, *, seed: int, test_fraction: float) -> datasets.Dataset:
    """Write the test images that `semi_supervised_split` would draw into the `split` column, the rest as training.

    Args:
        rows: Rows of a reader; domains with rows marked "test" keep their split.
        seed: Seed of the draw.
        test_fraction: Share of a domain's patients, in [0, 1).

    Returns:
        The rows with every split filled in; a patient that a row marks as "test" is one wholly.

    Raises:
        ValueError: If a split is unknown or a name occurs twice in a domain.
    """
    cases = _cases(rows)
    split = list(rows["split"])
    for domain, own in _by_domain(cases).items():
        patients = set(_test_patients(own, domain, seed, test_fraction))
        for case in own:
            split[case.index] = case.split or ("test" if case.patient in patients else "train")
    return rows.remove_columns("split").add_column("split", split)


def _cases(rows: datasets.Dataset) -> list[_Case]:
    wanted = ["domain", "name", "patient", "split"] + ["labeled_order"] * ("labeled_order" in rows.column_names)
    texts = rows.select_columns(wanted).with_format(None)[:]
    orders = texts.get("labeled_order", [None] * len(rows))
    columns = zip(texts["domain"], texts["name"], texts["patient"], texts["split"], orders, strict=True)
    labels = is_present(rows, "label")
    cases = [
        _Case(domain, name, patient or name, split or "", bool(labels[index]), index, order)
        for index, (domain, name, patient, split, order) in enumerate(columns)
    ]
    if not cases:
        raise ValueError("there are no rows to split; check the folder or manifest that they come from")
    cases.sort()
    for first, second in itertools.pairwise(cases):
        if first[:2] == second[:2]:
            raise ValueError(
                f"the name {first.name!r} occurs twice in domain {first.domain!r} "
                f"(rows {first.index} and {second.index}); names must be unique within a domain: rename one"
            )
    for case in cases:
        if case.split not in ("", *SPLITS):
            raise ValueError(
                f"row {case.index} ({case.domain}/{case.name}) has split {case.split!r}; use one of {SPLITS} or ''"
            )
    return cases


def _check_arguments(
    cases: list[_Case],
    labeled_domain: str,
    num_labeled: int | str | None,
    num_validation: int,
    seed: int,
    test_fraction: float,
    unlabeled_domains: Sequence[str] | None,
) -> None:
    domains = sorted({case.domain for case in cases})
    if labeled_domain not in domains:
        raise ValueError(f"labeled_domain {labeled_domain!r} is not in the data; choose from {domains}")
    unknown = sorted(set(unlabeled_domains or ()) - set(domains))
    if unknown:
        raise ValueError(f"unlabeled_domains {unknown} are not in the data; choose from {domains}")
    if num_labeled not in ("all", None) and (not isinstance(num_labeled, int) or num_labeled < 1):
        raise ValueError(f"num_labeled must be a positive integer or 'all', got {num_labeled!r}")
    if num_validation < 0:
        raise ValueError(f"num_validation must be at least 0, got {num_validation}")
    if seed < 0:
        raise ValueError(f"seed must be a non-negative integer, got {seed}")
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction must be in [0, 1), got {test_fraction}")


def _check_patients(cases: list[_Case]) -> None:
    """Refuse marked splits that divide a patient; an unmarked row counts as training."""
    parts: dict[tuple[str, str], set[str]] = {}
    for case in cases:
        parts.setdefault(case.key, set()).add(case.split or "train")
    for (domain, patient), splits in parts.items():
        if len(splits) > 1:
            raise ValueError(
                f"patient {patient!r} of domain {domain!r} is in {sorted(splits)} at once (an empty split counts as "
                "train); correct the split column, or allow it where a published split goes by image "
                "(allow_shared_patients)"
            )


def _test_patients(cases: list[_Case], domain: str, seed: int, fraction: float) -> list[str]:
    marked = sorted({case.patient for case in cases if case.split == "test"})
    if marked or fraction == 0:
        return marked
    fixed = {case.patient for case in cases if case.split}
    patients = sorted({case.patient for case in cases if case.has_label} - fixed)
    if len(patients) < 2:
        return []
    count = min(max(math.floor(fraction * len(patients) + 0.5), 1), len(patients) - 1)
    return [patients[i] for i in seeded_permutation(len(patients), seed, "test", domain)[:count]]


def _labeled_order(training: list[_Case], domain: str, seed: int) -> list[_Case]:
    """The training images with a mask of `domain`: those with a place in it first, the others by permuted patients."""
    pool = [case for case in _of(training, domain) if case.has_label]
    if not pool:
        raise ValueError(
            f"labeled_domain {domain!r} has no training image with a mask; add masks or choose another domain"
        )
    patients = sorted({case.patient for case in pool})
    rank = {patients[i]: place for place, i in enumerate(seeded_permutation(len(patients), seed, "labeled", domain))}
    unplaced = len(pool) + max((case.order for case in pool if case.order is not None), default=0)

    def place(case: _Case) -> tuple[int, int, str]:
        return (unplaced if case.order is None else case.order, rank[case.patient], case.name)

    return sorted(pool, key=place)


def _validation(cases: list[_Case], pool: list[_Case], domain: str, count: int) -> list[_Case]:
    marked = [case for case in _of(cases, domain) if case.split == "validation" and case.has_label]
    if marked:
        return marked
    if count > len(pool):
        raise ValueError(
            f"num_validation is {count}, but labeled_domain {domain!r} has only {len(pool)} training images with a "
            "mask; lower num_validation"
        )
    # Patients by their first image, from the end, so that validation stays the same when num_labeled changes.
    images = Counter(case.patient for case in pool)
    chosen: set[str] = set()
    total = 0
    for patient in reversed(images):
        if total >= count:
            break
        chosen.add(patient)
        total += images[patient]
    return [case for case in pool if case.patient in chosen]


def _refuse_held_out(placed: list[_Case], held_out: set[tuple[str, str]]) -> None:
    """Images that the rows say are the first to be labeled must not be held out for validation."""
    for case in placed:
        if case.key in held_out:
            raise ValueError(
                f"image {case.name!r} is to be labeled (labeled_order {case.order}), but its patient {case.patient!r} "
                "is needed for validation: lower num_validation, or num_labeled"
            )


def _first(pool: list[_Case], count: int, domain: str, num_validation: int) -> list[_Case]:
    if count > len(pool):
        raise ValueError(
            f"num_labeled is {count}, but labeled_domain {domain!r} has only {len(pool)} training images with a mask "
            f"beside {num_validation} for validation (whole patients); lower num_labeled, num_validation or "
            "test_fraction"
        )
    return pool[:count]


def _by_domain(cases: Iterable[_Case]) -> dict[str, list[_Case]]:
    """The cases of each domain in their order, domains sorted by name."""
    found: dict[str, list[_Case]] = {}
    for case in cases:
        found.setdefault(case.domain, []).append(case)
    return dict(sorted(found.items()))


def _of(cases: Iterable[_Case], domain: str) -> list[_Case]:
    return [case for case in cases if case.domain == domain]


def _take(rows: datasets.Dataset, cases: Iterable[_Case]) -> datasets.Dataset:
    return rows.select([case.index for case in sorted(cases)])


def describe_part(rows: datasets.Dataset) -> dict[str, Any]:
    """What a part of a split is made of, as it is written beside results.

    Args:
        rows: the images of the part.

    Returns:
        `images` and `patients`, their numbers (an image without a patient counts as one); `domains`, images by domain;
        `names_sha256`, the SHA-256 of the sorted lines `domain/name`, by which two runs know that they mean the same.
    """
    texts = rows.select_columns(["domain", "name", "patient"]).with_format(None)[:]
    cases = list(zip(texts["domain"], texts["name"], texts["patient"], strict=True))
    names = sorted(f"{domain}/{name}" for domain, name, _ in cases)
    return {
        "images": len(names),
        "patients": len({(domain, patient or name) for domain, name, patient in cases}),
        "domains": dict(sorted(Counter(texts["domain"]).items())),
        "names_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
    }
