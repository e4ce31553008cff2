import json
import random
from itertools import chain, pairwise

import datasets
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dim_hf.data import splits
from dim_hf.data.rows import row_features
from dim_hf.data.splits import mark_test_patients, semi_supervised_split


def rows_of(cases):
    """Rows from (domain, name, patient, split, has_label); the files do not exist, as none is opened."""
    table = {
        "image": [f"/{domain}/{name}.png" for domain, name, *_ in cases],
        "label": [f"/{case[0]}/{case[1]}_mask.png" if case[4] else None for case in cases],
        "domain": [case[0] for case in cases],
        "patient": [case[2] for case in cases],
        "name": [case[1] for case in cases],
        "split": [case[3] for case in cases],
    }
    return datasets.Dataset.from_dict(table, features=row_features(datasets.Image()))


def site(domain, patients, slices=1, split="", has_label=True):
    return [(domain, f"p{p:02}_{s}", f"p{p:02}", split, has_label) for p in range(patients) for s in range(slices)]


CASES = site("a", 12, 3) + site("b", 10) + site("c", 6, 2)
OPTIONS = {"labeled_domain": "a", "num_labeled": 4, "num_validation": 5, "seed": 3}


def split_of(cases, **changes):
    return semi_supervised_split(rows_of(cases), **{**OPTIONS, **changes})


def keys(rows):
    texts = rows.select_columns(["domain", "name", "patient"])[:]
    return list(zip(texts["domain"], texts["name"], texts["patient"], strict=True))


def parts(split):
    return {
        "labeled": keys(split.labeled),
        "unlabeled": keys(split.unlabeled),
        "validation": keys(split.validation),
        "test": [key for rows in split.test.values() for key in keys(rows)],
    }


def patients(part):
    return {(domain, patient) for domain, _, patient in part}


@st.composite
def tables(draw):
    cases = []
    for domain in "abc":
        sizes = draw(st.lists(st.integers(1, 4), min_size=5, max_size=9))
        cases += [(domain, f"p{p}_{s}", f"p{p}", "", True) for p, size in enumerate(sizes) for s in range(size)]
    return cases


@settings(max_examples=15, deadline=None)
@given(tables(), st.integers(0, 2**33), st.integers(1, 2), st.integers(0, 2), st.randoms(use_true_random=False))
def test_laws_of_the_split(cases, seed, num_labeled, num_validation, shuffler):
    options = {"seed": seed, "num_labeled": num_labeled, "num_validation": num_validation}
    split = split_of(cases, **options)
    found = parts(split)
    # The four parts are the data, each image once.
    assert sorted(chain.from_iterable(found.values())) == sorted(
        (domain, name, patient) for domain, name, patient, *_ in cases
    )
    assert len(found["labeled"]) == num_labeled
    assert len(found["validation"]) >= num_validation
    assert {domain for domain, _, _ in found["labeled"] + found["validation"]} <= {"a"}
    # No patient crosses training, validation and test.
    training = patients(found["labeled"]) | patients(found["unlabeled"])
    assert not training & patients(found["validation"])
    assert not training & patients(found["test"])
    assert not patients(found["validation"]) & patients(found["test"])
    # Rows in another order give the same split.
    shuffled = list(cases)
    shuffler.shuffle(shuffled)
    assert parts(split_of(shuffled, **options)) == found


def test_test_images_depend_on_seed_and_fraction_only():
    first = parts(split_of(CASES))["test"]
    others = [
        {"labeled_domain": "b", "num_validation": 2},
        {"num_labeled": 7},
        {"num_labeled": "all"},
        {"unlabeled_domains": ["c"]},
    ]
    assert all(parts(split_of(CASES, **changes))["test"] == first for changes in others)
    # One domain's test images do not depend on which others there are.
    alone = split_of([case for case in CASES if case[0] == "a"])
    assert keys(alone.test["a"]) == [key for key in first if key[0] == "a"]
    assert parts(split_of(CASES, seed=4))["test"] != first


def test_counts_of_the_test_images():
    split = split_of(CASES, test_fraction=0.25)
    # Of 12, 10 and 6 patients: 3, 2.5 rounded up, 1.5 rounded up; 3, 1 and 2 images each.
    assert {domain: len(rows) for domain, rows in split.test.items()} == {"a": 9, "b": 3, "c": 4}
    assert {domain: len(rows) for domain, rows in split_of(CASES, test_fraction=0.01).test.items()} == {
        "a": 3,
        "b": 1,
        "c": 2,
    }
    assert split_of(CASES, test_fraction=0).test == {}


def test_labeled_sets_are_nested_and_fill_patient_by_patient():
    sets = [set(parts(split_of(CASES, num_labeled=count))["labeled"]) for count in (2, 4, 9, 20)]
    assert all(small < large for small, large in pairwise(sets))
    assert [len(patients(part)) for part in sets] == [1, 2, 3, 7]


def test_validation_is_whole_patients_and_independent_of_num_labeled():
    split = split_of(CASES)
    assert len(split.validation) == 6
    assert len(patients(keys(split.validation))) == 2
    for count in (1, 15, "all"):
        assert keys(split_of(CASES, num_labeled=count).validation) == keys(split.validation)


def test_the_draw_differs_by_seed_and_is_not_by_name():
    drawn = {tuple(parts(split_of(CASES, seed=seed))["labeled"]) for seed in range(8)}
    assert len(drawn) > 4


@pytest.mark.parametrize("all_labels", ["all", None])
def test_upper_bound_labels_every_training_image_of_all_domains(all_labels):
    cases = [*CASES, ("b", "bare", "bare", "", False)]
    split, bound = split_of(cases), split_of(cases, num_labeled=all_labels)
    expected = parts(split)["labeled"] + parts(split)["unlabeled"]
    assert sorted(parts(bound)["labeled"]) == sorted(key for key in expected if key[1] != "bare")
    assert [key[1] for key in keys(bound.unlabeled)] == ["bare"]


def test_marked_splits_are_honoured():
    cases = (
        [("a", f"t{i}", f"t{i}", "test", True) for i in range(3)]
        + [("a", f"v{i}", f"v{i}", "validation", True) for i in range(2)]
        + [("a", f"r{i}", f"r{i}", "train" if i % 2 else "", True) for i in range(6)]
        + [("a", "t_bare", "t_bare", "test", False)]
        + site("b", 5)
    )
    split = split_of(cases, num_validation=1)
    assert {key[1] for key in keys(split.test["a"])} == {"t0", "t1", "t2"}
    assert {key[1] for key in keys(split.validation)} == {"v0", "v1"}
    used = parts(split)["labeled"] + parts(split)["unlabeled"]
    assert sorted(key[1] for key in used if key[0] == "a") == [f"r{i}" for i in range(6)]
    assert len(split.test["b"]) == 1


def test_patients_marked_for_training_are_not_drawn_for_test():
    cases = [("a", f"n{i}", f"n{i}", "train" if i < 6 else "", True) for i in range(8)]
    split = split_of(cases, num_validation=0, test_fraction=0.9)
    assert len(split.test["a"]) == 1
    assert {key[1] for key in keys(split.test["a"])} <= {"n6", "n7"}


def test_images_without_masks_are_unlabeled_and_never_scored():
    cases = CASES + site("d", 4, has_label=False)
    split = split_of(cases)
    assert "d" not in split.test
    assert len([key for key in keys(split.unlabeled) if key[0] == "d"]) == 4
    assert split.unlabeled.column_names == ["image", "domain", "patient", "name", "split"]


def test_unlabeled_images_come_from_the_chosen_domains():
    split = split_of(CASES, unlabeled_domains=["b", "c"])
    assert {key[0] for key in keys(split.unlabeled)} == {"b", "c"}
    assert set(split.test) == {"a", "b", "c"}


def test_the_same_patient_name_in_two_domains_is_two_patients():
    split = split_of(site("a", 20) + site("b", 20))
    assert split.summary()["unlabeled"]["patients"] == len(split.unlabeled) == 16 - 5 - 4 + 16


def test_an_empty_patient_is_the_image_itself():
    cases = [(domain, name, "", split, label) for domain, name, _, split, label in site("a", 20)]
    assert len(split_of(cases).validation) == 5


def test_summary_is_plain_json_with_counts_and_a_hash_of_the_names():
    summary = split_of(CASES).summary()
    assert json.loads(json.dumps(summary)) == summary
    assert summary["labeled"]["images"] == 4
    assert summary["labeled"]["patients"] == 2
    assert summary["labeled"]["domains"] == {"a": 4}
    assert set(summary["test"]) == {"a", "b", "c"}
    shuffled = list(CASES)
    random.Random(0).shuffle(shuffled)
    assert split_of(shuffled).summary() == summary
    other = split_of(CASES, seed=9).summary()
    assert other["labeled"]["names_sha256"] != summary["labeled"]["names_sha256"]


@pytest.mark.parametrize(
    ("cases", "changes", "message"),
    [
        (CASES, {"labeled_domain": "x"}, r"labeled_domain 'x' is not in the data; choose from \['a', 'b', 'c'\]"),
        (CASES, {"unlabeled_domains": ["b", "y"]}, r"unlabeled_domains \['y'\] are not in the data"),
        (CASES, {"num_labeled": 0}, "num_labeled must be a positive integer or 'all', got 0"),
        (CASES, {"num_labeled": "some"}, "got 'some'"),
        (CASES, {"num_labeled": 28}, "num_labeled is 28, but labeled_domain 'a' has only 24 .* beside 6 for valid"),
        (CASES, {"num_validation": -1}, "num_validation must be at least 0"),
        (CASES, {"num_validation": 31}, "num_validation is 31, but labeled_domain 'a' has only 30"),
        (CASES, {"test_fraction": 1.0}, r"test_fraction must be in \[0, 1\)"),
        (CASES, {"seed": -1}, "seed must be a non-negative"),
        (site("a", 6, has_label=False), {}, "'a' has no training image with a mask"),
        (site("a", 1, 4), {"num_labeled": "all", "num_validation": 1}, "no labeled image is left beside 4 for valid"),
        (site("a", 10), {"num_labeled": 4, "num_validation": 4}, r"no unlabeled images are left in \['a'\]"),
        (CASES[:3] + CASES[:1], {}, "the name 'p00_0' occurs twice in domain 'a'"),
        ([*CASES, ("b", "x", "x", "val", True)], {}, "b/x.* has split 'val'; use one of"),
        ([*CASES, ("a", "x", "p00", "test", True)], {}, r"patient 'p00' of domain 'a' is in \['test', 'train'\]"),
        ([], {}, "there are no rows"),
    ],
)
def test_impossible_splits_are_refused(cases, changes, message):
    with pytest.raises(ValueError, match=message):
        split_of(cases, **changes)


def test_rows_without_a_column_are_refused():
    with pytest.raises(ValueError, match=r"lack the columns \['split'\]"):
        semi_supervised_split(rows_of(CASES).remove_columns("split"), **OPTIONS)


def test_a_labeled_order_comes_first_whatever_the_seed():
    order = [None, 1, None, 0, None, None]
    rows = rows_of([("a", f"n{i}", f"p{i}", "train" if i < 5 else "test", True) for i in range(6)])
    rows = rows.add_column("labeled_order", order)
    for seed in range(3):
        split = semi_supervised_split(rows, labeled_domain="a", num_labeled=2, num_validation=1, seed=seed)
        assert sorted(split.labeled["name"]) == ["n1", "n3"]
        assert split.validation["name"][0] in ("n0", "n2", "n4")
    split = semi_supervised_split(rows, labeled_domain="a", num_labeled=1, num_validation=0, seed=0)
    assert split.labeled["name"] == ["n3"]


def test_validation_leaves_the_images_that_are_to_be_labeled():
    """One slice of each patient has a place: its other slices must not draw the patient into validation."""
    cases = site("a", 6, 4, split="train")
    places = [int(patient[1:]) if name.endswith("_0") and patient < "p04" else None for _, name, patient, *_ in cases]
    rows = rows_of(cases).add_column("labeled_order", places)
    for seed in range(4):
        options = {"labeled_domain": "a", "seed": seed, "test_fraction": 0}
        split = semi_supervised_split(rows, num_labeled=4, num_validation=8, **options)
        assert sorted(split.labeled["name"]) == ["p00_0", "p01_0", "p02_0", "p03_0"]
        assert set(split.validation["patient"]) == {"p04", "p05"}
        split = semi_supervised_split(rows, num_labeled=3, num_validation=9, **options)
        assert set(split.validation["patient"]) == {"p03", "p04", "p05"}
        with pytest.raises(ValueError, match=r"'p03_0' is to be labeled .labeled_order 3., but its patient 'p03'"):
            semi_supervised_split(rows, num_labeled=4, num_validation=9, **options)


def test_a_published_split_by_image_is_kept_only_when_allowed():
    rows = rows_of(
        [("a", "n0", "p0", "train", True), ("a", "n1", "p0", "test", True), ("a", "n2", "p1", "train", True)]
    )
    arguments = {"labeled_domain": "a", "num_labeled": 1, "num_validation": 0, "seed": 0}
    with pytest.raises(ValueError, match="allow_shared_patients"):
        semi_supervised_split(rows, **arguments)
    split = semi_supervised_split(rows, **arguments, allow_shared_patients=True)
    assert split.test["a"]["name"] == ["n1"]
    assert sorted([*split.labeled["name"], *split.unlabeled["name"]]) == ["n0", "n2"]


def test_marked_test_patients_are_those_that_training_would_draw():
    rows = rows_of([(domain, f"n{i}", f"p{i // 2}", "", True) for domain in "ab" for i in range(12)])
    marked = mark_test_patients(rows, seed=3, test_fraction=0.3)
    drawn = semi_supervised_split(rows, labeled_domain="a", num_labeled=2, num_validation=0, seed=3, test_fraction=0.3)
    for domain in "ab":
        columns = zip(marked["name"], marked["domain"], marked["split"], strict=True)
        names = {name for name, of, split in columns if (of, split) == (domain, "test")}
        assert names == set(drawn.test[domain]["name"])
    assert set(marked["split"]) == {"train", "test"}


def test_the_rows_are_gone_through_once_however_many_domains_there_are(monkeypatch):
    """Once for each domain, as it was, a hundred thousand domains would take a day."""
    seen, chosen = [], splits._of
    monkeypatch.setattr(splits, "_of", lambda cases, domain: seen.append(domain) or chosen(cases, domain))
    rows = rows_of([(f"d{number // 4}", f"n{number}", "", "", True) for number in range(200)])
    split = semi_supervised_split(rows, labeled_domain="d0", num_labeled=1, num_validation=1, seed=0)
    assert sorted(split.test) == sorted(set(rows["domain"]))
    marked = mark_test_patients(rows, seed=0, test_fraction=0.2)
    drawn = {(row["domain"], row["name"]) for row in texts_of(marked) if row["split"] == "test"}
    assert drawn == {(row["domain"], row["name"]) for part in split.test.values() for row in texts_of(part)}
    assert set(seen) == {"d0"}


def texts_of(rows):
    return rows.select_columns(["domain", "name", "split"])
