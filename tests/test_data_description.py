"""`dim_dataset.json` of strangers."""

import json

import pytest

from dim_hf.data.description import DatasetDescription, parse_description, read_description, write_description

GOOD = {"id2label": {"0": "background", "1": "cup"}, "structures": {"cup": [1]}}


def test_what_is_written_is_read(tmp_path):
    about = DatasetDescription({0: "background", 1: "cup"}, {"cup": [1]}, 3, label_values={"folders": {"255": 1}})
    assert read_description(write_description(about, tmp_path)) == about


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("id2label", ["background", "cup"]),
        ("id2label", {"0": "background", "1": 5}),
        ("structures", [[1]]),
        ("structures", {"cup": 1}),
        ("structures", {"cup": [True]}),
        ("structures", {"cup": [1.0]}),
        ("structures", {"cup": "1"}),
        ("num_channels", True),
        ("num_channels", 3.0),
        ("num_channels", [3]),
        ("spatial_dims", "2"),
        ("intensity", ["range"]),
        ("label_values", [1]),
        ("label_values", {"folders": 1}),
        ("label_values", {"folders": {"0": "a"}}),
        ("splits", "drawn"),
        ("splits", [1]),
        ("licence", None),
        ("licence", 4.0),
        ("source", "a hospital"),
        ("source", [None]),
        ("notes", {"a": 1}),
    ],
)
def test_values_of_another_type_are_refused_with_their_field(field, value):
    """Each was a traceback somewhere downstream."""
    text = json.dumps({**GOOD, field: value})
    with pytest.raises(ValueError, match=r"^there describes no data set: .*(cup|" + field + ")"):
        parse_description(json.loads(text), "there")


def test_the_choices_of_intensity_are_those_of_the_image_processor():
    from dim_hf.data.description import INTENSITIES
    from dim_hf.models import intensity_dim_unet

    assert intensity_dim_unet.INTENSITIES == INTENSITIES
