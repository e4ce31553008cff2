"""The volume tab without a browser: masks are those of the predictor, slices show them, and nothing stays behind."""

import base64
import re
import zipfile
from io import BytesIO
from types import SimpleNamespace

import nibabel
import numpy as np
import PIL.Image
import pytest
import SimpleITK

from dim_hf.data.volumes.volume import Volume, read_volume, same_grid, write_nifti
from dim_hf.demo import volume_tab
from dim_hf.demo.context import Demo
from dim_hf.demo.drawing import PALETTE, screen_size
from dim_hf.demo.models import DemoModel, DemoModels
from dim_hf.demo.planes import PLANES, cut, plane_spacing
from dim_hf.demo.refusals import Refusal
from dim_hf.demo.sessions import SessionStore
from dim_hf.demo.settings import DemoSettings
from dim_hf.demo.volume_view import LONGEST, ViewedVolume, findings, review_reasons, slice_figure
from dim_hf.inference.measurements import measure
from dim_hf.inference.prediction import Prediction
from tests.inference_samples import STRUCTURES, bands, predictor, scan
from tests.test_data_volume_dicom import write_series
from tests.test_demo_drawing import oblique

NAMES = {0: "background", 1: "rim", 2: "cup"}
ARRAY = scan(np.random.default_rng(0), (12, 10, 9))
AFFINE = oblique((2, 0, 1), (1, -1, 1), (10, -20, 30))


@pytest.fixture
def demo(tmp_path):
    root = tmp_path / "server"
    (root / "sessions").mkdir(parents=True)
    model = DemoModel("tiny", "Tiny", predictor(), "volume", "folder", "")
    store = SessionStore(DemoSettings(), root / "sessions", uploads=root)
    return Demo(DemoSettings(), DemoModels(model, model, model), store, root)


def uploaded(demo, name, write):
    """A file where the server would put it."""
    folder = demo.store.uploads / ("a" * 64)
    folder.mkdir(exist_ok=True)
    write(folder / name)
    return str(folder / name)


def as_nifti(path):
    write_nifti(Volume(ARRAY, AFFINE), path)


def as_itk(path):
    image = SimpleITK.GetImageFromArray(ARRAY.T)
    image.SetSpacing((0.5, 1.5, 3.0))
    image.SetOrigin((1.0, -2.0, 3.0))
    SimpleITK.WriteImage(image, str(path), useCompression=True)


def as_zip(path):
    files = write_series(path.parent.parent / "slices", ARRAY)
    with zipfile.ZipFile(path, "w") as archive:
        for file in files:
            archive.write(file, f"study/{file.name}")


@pytest.mark.parametrize(
    ("name", "write"),
    [("a.nii.gz", as_nifti), ("a.nii", as_nifti), ("a.mha", as_itk), ("a.nrrd", as_itk), ("a.zip", as_zip)],
)
def test_the_mask_is_the_predictors_on_the_grid_of_the_input(demo, tmp_path, name, write):
    path = uploaded(demo, name, write)
    viewed, prediction, mask, table = volume_tab.predict(demo, "me", path)
    assert mask.name.startswith("a_mask.nii")
    assert np.array_equal(np.asarray(nibabel.load(mask).dataobj), bands(ARRAY))
    assert np.array_equal(prediction.labels, bands(ARRAY))
    if name.endswith(".zip"):
        source = demo.models.volume.predictor(tmp_path / "server" / "slices")
        assert np.array_equal(source.labels, prediction.labels)
        assert np.allclose(nibabel.load(mask).affine, source.affine, atol=1e-4)
    else:
        assert same_grid(read_volume(mask), read_volume(path), 1e-4) is None
    assert table.read_text().startswith("image,structure,quantity,value,unit,pixels\na,disc,volume,")
    assert viewed.size_bytes == 2 * ARRAY.size
    assert {file.name for file in mask.parent.iterdir()} == {mask.name, table.name}


def test_a_nifti_mask_has_the_very_fields_that_place_the_image(demo):
    path = uploaded(demo, "a.nii.gz", as_nifti)
    mask = volume_tab.predict(demo, "me", path)[2]
    theirs, ours = nibabel.load(path).header, nibabel.load(mask).header
    for field in ("pixdim", "sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d", "srow_x", "xyzt_units"):
        assert np.array_equal(theirs[field], ours[field]), field


def test_sliding_shows_what_was_predicted_to_the_session_that_asked_and_predicts_nothing(demo, monkeypatch):
    volume_tab.predict(demo, "me", uploaded(demo, "a.nii.gz", as_nifti))
    monkeypatch.setattr(type(demo.models.volume.predictor), "predict_volume", None)
    for plane in PLANES:
        notice, figure = volume_tab._slide(demo, plane)(3, SimpleNamespace(session_hash="me"))
        assert notice == ""
        assert f"a: {plane} slice 3 of" in figure
    notice, _ = volume_tab._slide(demo, "axial")(3, SimpleNamespace(session_hash="another"))
    assert "press the button again" in notice
    demo.store.close("me")
    assert "press the button again" in volume_tab._slide(demo, "axial")(3, SimpleNamespace(session_hash="me"))[0]


def test_nothing_stays_when_the_session_ends_or_the_file_is_refused(demo):
    path = uploaded(demo, "a.zip", as_zip)
    volume_tab.predict(demo, "me", path)
    broken = uploaded(demo, "b.nii", lambda place: place.write_bytes(b"\x5c\x01\0\0" + bytes(400)))
    with pytest.raises(Refusal, match=r"b\.nii"):
        volume_tab.predict(demo, "me", broken)
    assert len(list(demo.store.folder("me").iterdir())) == 1
    demo.store.close("me")
    left = [file for file in demo.store.uploads.rglob("*") if file.is_file() and "slices" not in file.parts]
    assert left == []
    assert demo.store.kept_bytes == 0


def test_nothing_given_and_hostile_names(demo):
    with pytest.raises(Refusal, match="upload one, or pick an example"):
        volume_tab.predict(demo, "me", None)
    path = uploaded(demo, '=1+1"><img src=x onerror=alert(1)>.nii.gz', as_nifti)
    viewed, prediction, mask, table = volume_tab.predict(demo, "me", path)
    assert re.fullmatch(r"[\w.-]+_mask\.nii\.gz", mask.name)
    assert ",'=1+1" in f",{table.read_text()}".replace("\n", ",").replace('"', "")
    shown = findings(viewed, prediction) + slice_figure(viewed, "axial", 0)
    assert "onerror=alert(1)>" not in shown.replace("&gt;", "")


def view(labels=None, spacing=(1.0, 2.0, 3.0), name="scan"):
    labels = bands(ARRAY) if labels is None else labels
    grey = (ARRAY / 1000 * 255).astype(np.uint8)
    return ViewedVolume(name, grey, labels, spacing, NAMES, STRUCTURES)


def layers(figure):
    return {
        kind: np.asarray(PIL.Image.open(BytesIO(base64.b64decode(content))).convert("RGBA"))
        for kind, content in re.findall(r'class="layer (\w+)"[^>]*base64,([^"]+)', figure)
    }


@pytest.mark.parametrize("plane", PLANES)
def test_layers_lie_on_each_other_and_say_what_the_mask_says(plane):
    viewed = view()
    found = layers(slice_figure(viewed, plane, 4))
    labels = cut(viewed.labels, plane, 4)
    size = screen_size(labels.shape, plane_spacing(viewed.spacing_mm, plane), LONGEST)
    assert {part.shape[:2] for part in found.values()} == {size}
    assert list(found) == ["base", "fill", "lines"]
    # The middle of each voxel as shown.
    rows, columns = (
        ((np.arange(extent) + 0.5) * shown / extent).astype(int)
        for extent, shown in zip(labels.shape, size, strict=True)
    )
    fill = found["fill"][np.ix_(rows, columns)]
    for index in (1, 2):
        assert (fill[labels == index] == (*PALETTE[index - 1], 255)).all()
    assert not fill[labels == 0][:, 3].any()
    lines = found["lines"][..., 3] > 0
    assert not lines[found["fill"][..., 3] == 0].any()
    assert lines.any()


def test_an_empty_slice_is_a_picture_alone_and_says_so():
    figure = slice_figure(view(np.zeros(ARRAY.shape, np.uint8)), "axial", 0)
    assert list(layers(figure)) == ["base"]
    assert "nothing outlined" in figure


@pytest.mark.parametrize(("position", "shown"), [(-5, 1), (0, 1), (8, 9), (10**9, 9)])
def test_the_nearest_slice_is_shown(position, shown):
    assert f"axial slice {shown} of 9" in slice_figure(view(), "axial", position)


def predicted(labels, **values):
    spacing = (1.0, 2.0, 3.0)
    return Prediction(labels, NAMES, STRUCTURES, spacing, np.eye(4), measure(labels, STRUCTURES, spacing), **values)


def test_the_volume_is_given_in_ml():
    labels = np.zeros((30, 30, 30), np.uint8)
    labels[5:15, 5:15, 5:15] = 1
    cards = findings(view(labels), predicted(labels))
    assert "6.0 ml" in cards
    assert "1,000 voxels" in cards
    assert "30×30×30" in cards


def test_reasons_for_a_second_look():
    labels = np.zeros((9, 9, 9), np.uint8)
    labels[3:6, 3:6, 3:6] = 1
    labels[4, 4, 4] = 2
    assert review_reasons(predicted(labels)) == []
    assert "unlike" in review_reasons(predicted(labels, review=True))[0]
    labels[0, 4, 4] = 1
    assert "edge" in review_reasons(predicted(labels))[0]
    assert "Not found: disc, cup" in review_reasons(predicted(np.zeros_like(labels)))[0]


@pytest.mark.parametrize(("drift", "review", "said"), [(0.97, True, "Look again"), (0.4, False, "approves nothing")])
def test_scanner_drift_is_shown_where_the_model_knows_it(drift, review, said):
    labels = np.full((9, 9, 9), 0, np.uint8)
    labels[4, 4, 3:5] = 1, 2
    cards = findings(view(labels), predicted(labels, drift=drift, review=review))
    assert f"more unusual than {100 * drift:.0f} % of the training scans" in cards
    assert said in cards
    unknown = findings(view(labels), predicted(labels))
    assert "drift" not in unknown
    assert "not known for this model" in unknown


def test_samples_are_volumes_with_thumbnails(demo):
    samples = volume_tab.sample_volumes(demo)
    assert samples == volume_tab.sample_volumes(demo)
    for file, thumbnail in samples:
        assert read_volume(file).orientation == "LPS"
        assert PIL.Image.open(thumbnail).size == (96, 96)
