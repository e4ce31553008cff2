"""What the demo keeps of its visitors: for whom, how much, and for how long."""

import os
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from dim_hf.demo.context import Demo
from dim_hf.demo.models import DemoModel, DemoModels
from dim_hf.demo.refusals import (
    BUSY,
    OUT_OF_MEMORY,
    UNEXPECTED,
    Refusal,
    error_panel,
    sentence_of,
    shown_on_page,
)
from dim_hf.demo.sessions import FORGOTTEN, SessionStore
from dim_hf.demo.settings import DemoSettings
from dim_hf.demo.uploads import remember_upload
from dim_hf.inference.predictor import Predictor
from dim_hf.models import DimImageProcessor
from tests.tiny import tiny_model


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def store(tmp_path):
    return SessionStore(DemoSettings(memory_bytes=100, session_seconds=60), tmp_path / "sessions", tmp_path, Clock())


def upload(tmp_path, content="a", name="a.png"):
    place = tmp_path / (content * 64) / name
    place.parent.mkdir(exist_ok=True)
    place.write_text(content)
    return place


def tiny_demo(tmp_path, **settings):
    limits = DemoSettings(**settings)
    predictor = Predictor(tiny_model(), DimImageProcessor(size={"height": 32, "width": 32}, num_channels=1))
    model = DemoModel("tiny", "Tiny", predictor, "fundus", "folder", "")
    return Demo(limits, DemoModels(model, model, model), SessionStore(limits, tmp_path), tmp_path), model


# -- whose


def test_a_session_gets_its_own_values_only(store):
    store.keep("a", "volume", "of a", 1)
    store.keep("b", "volume", "of b", 1)
    assert store.recall("a", "volume") == "of a"
    assert store.recall("b", "volume") == "of b"
    with pytest.raises(Refusal, match="no longer kept"):
        store.recall("c", "volume")


def test_folders_are_named_by_the_server_not_by_the_session(store):
    folder = store.folder("../../etc")
    assert folder.parent == store.root
    assert "etc" not in folder.name
    assert store.folder("../../etc") == folder != store.folder("other")


@pytest.mark.parametrize("name", [None, "", "x" * 129, 7])
def test_a_request_without_a_usable_session_is_refused(store, name):
    with pytest.raises(Refusal, match="reload"):
        store.folder(name)


def test_many_threads_get_what_they_kept(tmp_path):
    store = SessionStore(DemoSettings(), tmp_path)
    wrong = []

    def visit(number):
        for turn in range(50):
            store.keep(str(number), "value", (number, turn), 10)
            if store.recall(str(number), "value") != (number, turn):
                wrong.append(number)
        store.close(str(number))

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert (store.sessions, store.kept_bytes, list(tmp_path.iterdir())) == (0, 0, [])


# -- how much


def test_what_was_longest_unused_gives_way_to_new_values(store):
    store.keep("a", "first", 1, 40)
    store.keep("b", "second", 2, 40)
    store.recall("a", "first")
    store.keep("c", "third", 3, 40)
    assert store.kept_bytes == 80
    assert store.recall("a", "first") == 1
    with pytest.raises(Refusal) as refused:
        store.recall("b", "second")
    assert str(refused.value) == FORGOTTEN


def test_a_value_replaces_its_elder_and_is_counted_once(store):
    store.keep("a", "x", 1, 60)
    store.keep("a", "x", 2, 70)
    assert (store.kept_bytes, store.recall("a", "x")) == (70, 2)


def test_what_is_larger_than_the_budget_is_not_kept_and_drives_nobody_out(store):
    store.keep("a", "x", 1, 90)
    store.keep("b", "y", 2, 101)
    assert store.recall("a", "x") == 1
    with pytest.raises(Refusal):
        store.recall("b", "y")


# -- how long


def test_closing_a_session_removes_its_files_uploads_and_values_and_nobody_elses(store, tmp_path):
    for session, letter in (("a", "a"), ("b", "b")):
        store.own_upload(session, upload(tmp_path, letter))
        (store.folder(session) / "mask.png").write_text("result")
        store.keep(session, "x", letter, 10)
    store.close("a")
    left = sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
    assert left == ["a.png", "mask.png"]
    assert (tmp_path / ("b" * 64) / "a.png").exists()
    assert store.recall("b", "x") == "b"
    assert store.kept_bytes == 10
    store.close("a")  # twice is once


def test_an_upload_of_the_same_content_stays_for_the_other_visitor(store, tmp_path):
    place = upload(tmp_path)
    store.own_upload("a", place)
    store.own_upload("b", place)
    store.close("a")
    assert place.exists()
    store.close("b")
    assert not place.parent.exists()


def test_a_sample_that_a_session_used_stays(store, tmp_path):
    sample = tmp_path / "samples" / "example.png"
    sample.parent.mkdir()
    sample.write_text("sample")
    store.own_upload("a", sample)
    store.close("a")
    assert sample.exists()


def test_an_upload_that_came_again_meanwhile_stays(store, tmp_path):
    place = upload(tmp_path)
    store.own_upload("a", place)
    os.utime(place, ns=(1, place.stat().st_mtime_ns + 1000))  # somebody uploads it, and has not pressed the button yet
    store.close("a")
    assert place.exists()


def test_idle_sessions_are_swept_and_active_ones_stay(store):
    store.keep("idle", "x", 1, 10)
    store._clock.now = 40
    store.keep("active", "x", 2, 10)
    store._clock.now = 61
    assert store.sweep() == 1
    assert store.recall("active", "x") == 2
    assert len(list(store.root.iterdir())) == 1
    with pytest.raises(Refusal):
        store.recall("idle", "x")


def test_uploads_that_nobody_used_are_swept_when_they_are_old(store, tmp_path):
    old, fresh, used = (upload(tmp_path, letter) for letter in "abc")
    sample = tmp_path / "samples" / "example.png"
    sample.parent.mkdir()
    sample.write_text("sample")
    for path in (old, used, sample):
        os.utime(path, (time.time() - 100,) * 2)
    store.own_upload("c", used)
    store.sweep()
    assert [path.exists() for path in (old, fresh, used, sample)] == [False, True, True, True]


def test_what_cut_off_uploads_left_is_swept_and_growing_files_stay(tmp_path):
    store = SessionStore(DemoSettings(upload_seconds=60), tmp_path / "sessions", tmp_path)
    left, growing, other = (tmp_path / name for name in ("tmpleft", "tmpgrowing", "alive"))
    for path in (left, growing, other):
        path.write_text("x")
    for path in (left, other):
        os.utime(path, (time.time() - 100,) * 2)
    store.sweep()
    assert [path.exists() for path in (left, growing, other)] == [False, True, True]


def test_folders_that_vanish_during_a_sweep_stop_nothing(store, tmp_path, monkeypatch):
    (tmp_path / ("a" * 64)).mkdir()
    old = upload(tmp_path, "b")
    os.utime(old, (time.time() - 100,) * 2)
    listed = os.listdir

    def gone(folder):
        if os.fspath(folder).endswith("a"):
            raise FileNotFoundError(folder)
        return listed(folder)

    monkeypatch.setattr(os, "listdir", gone)
    store.sweep()
    assert not old.exists()


# -- after the page was closed


def test_a_closed_page_gets_nothing_more_until_it_is_forgotten(store, tmp_path):
    store.folder("a")
    store.close("a")
    place = upload(tmp_path)
    for ask in (store.folder, store.new_folder, lambda name: store.own_upload(name, place)):
        with pytest.raises(Refusal, match="closed"):
            ask("a")
    assert not place.exists()
    assert list(store.root.iterdir()) == []
    store._clock.now = 61
    store.sweep()
    assert store.folder("a").exists()


def test_a_closed_page_takes_no_upload_from_others(store, tmp_path):
    store.folder("a")
    store.close("a")
    place = store.own_upload("b", upload(tmp_path))
    with pytest.raises(Refusal):
        store.own_upload("a", place)
    assert place.exists()


def test_an_idle_page_that_is_still_open_starts_anew(store):
    store.folder("a")
    store._clock.now = 61
    assert store.sweep() == 1
    assert store.folder("a").exists()


def test_closing_names_that_nobody_had_is_not_remembered(store):
    for number in range(100):
        store.close(str(number))
    assert store.folder("5").exists()


def test_a_prediction_that_ends_after_its_page_was_closed_leaves_nothing(tmp_path):
    demo, model = tiny_demo(tmp_path)

    class Closing:
        def __call__(self, image, spacing_mm=None):
            demo.store.close("a")
            return model.predictor(image)

    with pytest.raises(Refusal, match="closed"):
        demo.predict("a", replace(model, predictor=Closing()), np.zeros((32, 32), np.uint8))
    assert list(tmp_path.iterdir()) == []


def test_an_upload_belongs_to_its_page_before_it_is_used(tmp_path):
    demo, _ = tiny_demo(tmp_path)
    remember = remember_upload(demo)
    visitor = SimpleNamespace(session_hash="a")
    places = [upload(tmp_path, letter) for letter in "ab"]
    remember(str(places[0]), visitor)
    remember([str(places[1])], visitor)
    remember(None, visitor)
    demo.store.close("a")
    assert [place.exists() for place in places] == [False, False]
    late = upload(tmp_path, "c")
    remember(str(late), visitor)
    assert not late.exists()


def test_closing_everything_leaves_no_file(tmp_path):
    store = SessionStore(DemoSettings(), tmp_path / "all")
    (store.folder("a") / "x").write_text("x")
    store.close_all()
    assert list(tmp_path.iterdir()) == []


# -- turns


def test_who_waits_too_long_is_told_so_politely(tmp_path):
    demo, model = tiny_demo(tmp_path, busy_seconds=1)
    with demo.turn(), pytest.raises(Refusal) as refused:
        demo.predict("a", model, np.zeros((32, 32), np.uint8))
    assert str(refused.value) == BUSY
    assert demo.predict("a", model, np.zeros((32, 32), np.uint8)).labels.shape == (32, 32)


def test_the_place_is_given_back_after_an_error(tmp_path):
    demo, model = tiny_demo(tmp_path, busy_seconds=1)
    for _ in range(3):
        with pytest.raises(Refusal):
            demo.predict("a", model, np.zeros((2, 2, 2, 2, 2), np.uint8))
    demo.predict("a", model, np.zeros((32, 32), np.uint8))


def test_a_refusal_does_not_tell_where_the_file_lies(tmp_path):
    demo, model = tiny_demo(tmp_path)
    broken = tmp_path / "secret place" / "x.png"
    broken.parent.mkdir()
    broken.write_bytes(b"no picture")
    with pytest.raises(Refusal) as refused:
        demo.predict("a", model, broken)
    assert "secret place" not in str(refused.value)


# -- words


def test_only_refusals_speak_for_themselves(caplog):
    assert sentence_of(Refusal("Too large; cut it.")) == "Too large; cut it."
    assert sentence_of(ValueError("/home/somebody/weights are broken")) == UNEXPECTED
    assert sentence_of(MemoryError("12 GiB")) == OUT_OF_MEMORY
    assert "somebody" in caplog.text  # for the operator


def test_panels_escape_what_strangers_wrote():
    panel = error_panel("the file <img src=x onerror=alert(1)> is no picture")
    assert "<img" not in panel
    assert "&lt;img" in panel
    assert 'role="alert"' in panel


def test_a_decorated_event_shows_the_sentence_and_clears_the_rest():
    @shown_on_page(("nothing", None))
    def event(value):
        if value < 0:
            raise Refusal("Give a number from 0.")
        return "drawn", value

    assert event(1) == ("", "drawn", 1)
    notice, *rest = event(-1)
    assert "Give a number from 0." in notice
    assert rest == ["nothing", None]


def test_a_decorated_generator_shows_its_steps_and_then_the_sentence():
    @shown_on_page(("nothing",))
    def event():
        yield "half"
        raise RuntimeError("unknown")

    steps = list(event())
    assert steps[0] == ("", "half")
    assert UNEXPECTED in steps[1][0]
    assert steps[1][1:] == ("nothing",)


# -- settings


def test_settings_come_from_the_environment():
    settings = DemoSettings.from_environment({"DIM_MODEL": "runs/a", "DIM_DEMO_MAX_PIXELS": "100", "HOME": "/"})
    assert (settings.model, settings.max_pixels, settings.compare_model) == ("runs/a", 100, None)


@pytest.mark.parametrize("text", ["", "0", "-1", "1.5", "many"])
def test_limits_that_are_no_positive_numbers_are_refused(text):
    with pytest.raises(ValueError, match="at least 1"):
        DemoSettings.from_environment({"DIM_DEMO_MAX_PIXELS": text})


def test_a_misspelled_limit_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="DIM_DEMO_MAX_PIXELS"):
        DemoSettings.from_environment({"DIM_DEMO_MAX_PIXEL": "100"})
