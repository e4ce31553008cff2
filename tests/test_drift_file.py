"""`site_statistics.json`: what was written is read, and nothing else is."""

import json

import numpy as np
import pytest

from dim_hf.inference.drift import ONE_SIDED, fit_statistics
from dim_hf.inference.drift_file import (
    MAX_BYTES,
    STATISTICS_FILE,
    find_statistics,
    read_statistics,
    statistics_hash,
    to_json,
    write_statistics,
)


@pytest.fixture(scope="module")
def statistics():
    generator = np.random.default_rng(0)
    widths = {"intensity": 9, "features": 16, "entropy": 1, "flips": 1, "teacher_student": 1}
    values = {name: np.abs(generator.normal(size=(40, width))) for name, width in widths.items()}
    return fit_statistics(values, ["a", "site <b>\x1b[2J"] * 20, [""] * 40, [False] * 40)


def new_images():
    generator = np.random.default_rng(1)
    widths = {"intensity": 9, "features": 16, "entropy": 1, "flips": 1}
    return {name: np.abs(generator.normal(size=(30, width))) * 2 for name, width in widths.items()}


def changed(statistics, path, value):
    """The file's values with one replaced, by keys and indices."""
    values = json.loads(to_json(statistics))
    place = values
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(values)


def test_what_was_written_is_read(statistics, tmp_path):
    found = read_statistics(write_statistics(statistics, tmp_path))
    assert (found.sites, found.calibrated_on, found.threshold) == (
        statistics.sites,
        statistics.calibrated_on,
        statistics.threshold,
    )
    np.testing.assert_allclose(found.scores(new_images()), statistics.scores(new_images()), atol=1e-4)
    assert to_json(found) == to_json(statistics)
    assert statistics_hash(found) == statistics_hash(statistics)
    assert sorted(path.name for path in tmp_path.iterdir()) == [STATISTICS_FILE]


def test_the_flattest_statistics_are_read_and_score_without_a_warning(tmp_path, recwarn):
    flat = {"features": np.zeros((40, 3)), "entropy": np.zeros((40, 1))}
    found = read_statistics(write_statistics(fit_statistics(flat, ["a"] * 40, [""] * 40, [False] * 40), tmp_path))
    scores = found.scores({"features": np.full((2, 3), 1e30), "entropy": np.full((2, 1), 1e30)})
    assert all(found.is_strange(score) for score in scores)
    assert not recwarn.list


def test_people_can_read_it(statistics):
    lines = to_json(statistics).splitlines()
    assert len(lines) < 120
    assert json.loads(to_json(statistics))["sites"] == {"a": 20, "site <b>\x1b[2J": 20}
    assert "\x1b" not in to_json(statistics)


def test_a_model_without_the_file_has_none(tmp_path):
    assert find_statistics(str(tmp_path)) is None
    assert find_statistics("nobody/nothing") is None  # and the Hub is not there


def test_a_models_folder_is_found(statistics, tmp_path):
    write_statistics(statistics, tmp_path)
    assert find_statistics(str(tmp_path)).images == 40


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (["format"], 2, "format is 2"),
        (["format"], True, "format is True"),
        (["format"], 1.0, "format is 1.0"),
        (["sites"], {}, "sites"),
        (["sites"], {f"s{index}": 1 for index in range(1001)}, "1 to 1000 names"),
        (["sites", "a"], -1, "numbers of images"),
        (["sites", "a"], True, "numbers of images"),
        (["wanted_rate"], 0.0, "wanted_rate"),
        (["wanted_rate"], "0.05", "wanted_rate"),
        (["calibrated_on"], "nothing", "calibrated_on"),
        (["moments"], [], "moments must be an object"),
        (["moments", "features"], None, "features must be an object"),
        (["moments", "features", "spreads", 0], 0.0, "a spread of features is 0, below 1e-12"),
        (["moments", "features", "spreads", 0], 1e-300, "a spread of features is 1e-300, below 1e-12"),
        (["moments", "features", "spreads", 0], -1.0, "a spread of features is -1, below 1e-12"),
        (["moments", "features", "spreads", 0], "1", "no finite number"),
        (["moments", "features", "spreads", 0], True, "no finite number"),
        (["moments", "features", "spreads", 0], 10**400, "no finite number"),
        (["moments", "features", "spreads"], [1.0] * 600, "at most 512"),
        (["moments", "features", "means", 0], [1.0] * 3, "shape"),
        (["moments", "features", "means"], [], "shape"),
        (["moments", "features", "correlation", 0, 1], 0.9, "symmetric"),
        (["moments", "entropy", "correlation"], [[-1.0]], "positive definite"),
        (["moments", "extra"], {"means": [[1.0]], "spreads": [1.0], "correlation": [[1.0]]}, "its parts"),
        (["calibration", "entropy"], [], "shape"),
        (["calibration", "entropy"], [1.0] * 10_001, "at most 10000"),
        (["calibration", "entropy"], [1.0] * 3, "as many distances"),
        (["calibration", "entropy", 0], -1.0, "none below 0"),
        (["calibration", "entropy", 0], [[[]]], "no finite number"),
        (["calibration"], {}, "its parts"),
        (["calibration", "strange"], [1.0] * 40, "its parts"),
    ],
)
def test_a_value_that_is_not_what_it_should_be_is_refused(statistics, tmp_path, path, value, said):
    file = tmp_path / STATISTICS_FILE
    file.write_text(changed(statistics, path, value))
    with pytest.raises(ValueError, match=r"copy the model again, or remove the file") as caught:
        find_statistics(str(tmp_path))
    assert said in str(caught.value)
    assert STATISTICS_FILE in str(caught.value)


@pytest.mark.parametrize(
    "text",
    ["", "[]", "null", "{", "[" * 100_000, '{"format": NaN}', '{"format": 1, "sites": {"a": Infinity}}', "\udcff"],
)
def test_text_that_is_no_such_file_is_refused(tmp_path, text):
    file = tmp_path / STATISTICS_FILE
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match="cannot be read"):
        read_statistics(file)


def test_a_number_beyond_all_limits_is_refused(statistics, tmp_path):
    text = to_json(statistics).replace('"wanted_rate": 0.05', '"wanted_rate": 1e999')
    (tmp_path / STATISTICS_FILE).write_text(text)
    with pytest.raises(ValueError, match="wanted_rate"):
        find_statistics(str(tmp_path))


def test_a_huge_file_is_not_read(tmp_path):
    with (tmp_path / STATISTICS_FILE).open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(ValueError, match="the limit is"):
        find_statistics(str(tmp_path))


def test_distances_of_one_sided_parts_have_no_moments(statistics):
    assert set(statistics.calibration) - set(statistics.moments) == set(ONE_SIDED)
