"""Checkpoint folders: complete or absent, whatever ends the process; damaged ones named; the oldest removed."""

import hashlib
import json
import logging
import os
import pathlib
import shutil

import pytest

from dim_hf.trainer.checkpoints import (
    LIST_FILE,
    DamagedCheckpointError,
    aside_of,
    check_complete,
    checkpoints_in,
    find_fault,
    last_complete,
    publish,
    read_facts,
    remove_checkpoint,
    remove_leftovers,
    rotate,
    write_failure,
)

FILES = {"trainer_state.json": "{}", "model.safetensors": "weights", "teacher/model.safetensors": "others", "no": ""}


def write_aside(run, step, files=FILES):
    aside = aside_of(run / f"checkpoint-{step}")
    for name, text in files.items():
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        (aside / name).write_text(text)
    return aside


def write_checkpoint(run, step, files=FILES):
    checkpoint = run / f"checkpoint-{step}"
    publish(write_aside(run, step, files), checkpoint, {"step": step})
    return checkpoint


def names(run):
    return sorted(path.name for path in run.iterdir())


def test_a_published_checkpoint_is_complete_and_lists_all_its_files(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 3)
    assert find_fault(checkpoint) is None
    assert read_facts(checkpoint) == {"step": 3}
    assert set(json.loads((checkpoint / LIST_FILE).read_text())["files"]) == set(FILES)
    assert names(tmp_path) == ["checkpoint-3"]


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_after_it(tmp_path, monkeypatch):
    aside, happened = write_aside(tmp_path, 3), []
    fsync, rename = os.fsync, pathlib.Path.rename
    monkeypatch.setattr(os, "fsync", lambda fd: (happened.append(os.fstat(fd).st_ino), fsync(fd)))
    monkeypatch.setattr(pathlib.Path, "rename", lambda *args: (happened.append("rename"), rename(*args)))
    publish(aside, tmp_path / "checkpoint-3", {})
    before, after = happened[: happened.index("rename")], happened[happened.index("rename") + 1 :]
    checkpoint = tmp_path / "checkpoint-3"
    assert set(before) == {path.stat().st_ino for path in (checkpoint, *checkpoint.rglob("*"))}
    assert before.index((checkpoint / LIST_FILE).stat().st_ino) == len(FILES)  # after all that it lists
    assert after == [tmp_path.stat().st_ino]


class Crash(BaseException):
    """What ends a process; no `except Exception` stops it."""


def crash_at(monkeypatch, count):
    """End at the given one of the moments that change the disk; returns how many have passed."""
    passed = [0]

    def before(function):
        def counted(*args, **kwargs):
            passed[0] += 1
            if passed[0] == count:
                raise Crash
            return function(*args, **kwargs)

        return counted

    for module, name in ((os, "fsync"), (os, "unlink"), (os, "rmdir"), (pathlib.Path, "rename")):
        monkeypatch.setattr(module, name, before(getattr(module, name)))
    return passed


def save_and_rotate(run, step):
    publish(write_aside(run, step), run / f"checkpoint-{step}", {})
    rotate(run, 2, run / f"checkpoint-{step}", run / "checkpoint-1")


def test_no_moment_leaves_half_a_checkpoint(tmp_path, monkeypatch):
    """A crash at each of the moments of writing checkpoint-4 anew and removing checkpoint-2."""
    with monkeypatch.context() as patch:
        all_moments = crash_at(patch, 0)
        for step in (1, 2, 4, 4):
            before = all_moments[0]
            save_and_rotate(tmp_path / "whole", step)
    moments = all_moments[0] - before
    assert moments > 15
    for moment in range(1, moments + 1):
        run = tmp_path / f"run{moment}"
        for step in (1, 2, 4):
            write_checkpoint(run, step)
        with monkeypatch.context() as patch:
            crash_at(patch, moment)
            with pytest.raises(Crash):
                save_and_rotate(run, 4)
        assert all(find_fault(path) is None for path in checkpoints_in(run)), moment
        assert last_complete(run) in (run / "checkpoint-2", run / "checkpoint-4")
        remove_leftovers(run)
        assert {path.name for path in checkpoints_in(run)} == set(names(run))
        save_and_rotate(run, 4)
        assert names(run) == ["checkpoint-1", "checkpoint-4"]


def truncate(checkpoint):
    (checkpoint / "model.safetensors").write_text("weigh")


def change(checkpoint):
    (checkpoint / "teacher" / "model.safetensors").write_text("0thers")


def lose_teacher(checkpoint):
    shutil.rmtree(checkpoint / "teacher")


def lose_list(checkpoint):
    (checkpoint / LIST_FILE).unlink()


def rewrite_list(text):
    return lambda checkpoint: (checkpoint / LIST_FILE).write_text(text)


DAMAGES = [
    (truncate, r"model.safetensors has 5 bytes, 7 were written"),
    (change, r"teacher/model.safetensors was changed: SHA-256 [0-9a-f]{12}…, [0-9a-f]{12}… was written"),
    (lose_teacher, r"teacher/model.safetensors is missing"),
    (lose_list, r"checkpoint.json is missing: not written to its end, or not by this trainer"),
    (rewrite_list('{"facts": '), r"checkpoint.json cannot be read"),
    (rewrite_list('{"facts": {}, "files": {}}'), r"checkpoint.json does not list"),
    (rewrite_list('{"facts": {}, "files": {"trainer_state.json": 1}}'), r"checkpoint.json cannot be read"),
    (rewrite_list("[]"), r"checkpoint.json cannot be read"),
]


@pytest.mark.parametrize(("damage", "fault"), DAMAGES)
def test_a_damaged_checkpoint_is_named_and_the_one_before_used(tmp_path, caplog, damage, fault):
    for step in (9, 10, 11):
        write_checkpoint(tmp_path, step)
    damage(tmp_path / "checkpoint-11")
    with pytest.raises(DamagedCheckpointError, match=rf"checkpoint-11 is damaged: {fault}.*Choose another"):
        check_complete(tmp_path / "checkpoint-11")
    with caplog.at_level(logging.WARNING):
        assert last_complete(tmp_path) == tmp_path / "checkpoint-10"
    (record,) = caplog.records
    assert "checkpoint-11 is damaged and passed over: " in record.getMessage()


def test_a_file_that_the_disk_does_not_give_back_is_a_damage(tmp_path, monkeypatch):
    checkpoint = write_checkpoint(tmp_path, 1)

    def broken(*args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(hashlib, "file_digest", broken)
    assert "cannot be read ([Errno 5] Input/output error)" in find_fault(checkpoint)


def test_where_all_are_damaged_it_says_what_is_wrong_and_what_to_do(tmp_path):
    lose_list(write_checkpoint(tmp_path, 1))
    truncate(write_checkpoint(tmp_path, 2))
    with pytest.raises(ValueError, match=r"no checkpoint in .*checkpoint-2: model.*checkpoint-1: .*output_dir"):
        last_complete(tmp_path)


def test_a_folder_without_checkpoints_has_none(tmp_path):
    assert last_complete(tmp_path / "nowhere") is None
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-7").write_text("a file")
    assert last_complete(tmp_path) is None
    with pytest.raises(ValueError, match="there is no checkpoint"):
        check_complete(tmp_path / "checkpoint-8")


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    write_checkpoint(tmp_path, 2)
    write_checkpoint(tmp_path, 2, FILES | {"model.safetensors": "newer"})
    assert (tmp_path / "checkpoint-2" / "model.safetensors").read_text() == "newer"
    assert names(tmp_path) == ["checkpoint-2"]


def test_only_leftovers_of_checkpoints_are_removed(tmp_path):
    write_checkpoint(tmp_path, 1)
    write_aside(tmp_path, 2)
    for name in ("_checkpoint-3.removed", "_checkpoint-x.writing", "_notes", "checkpoint-4.writing"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["_checkpoint-x.writing", "_notes", "checkpoint-1", "checkpoint-4.writing"]
    remove_leftovers(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("steps", "limit", "newest", "best", "left"),
    [
        ((9, 10, 11), None, 11, None, (9, 10, 11)),
        ((9, 10, 11), 0, 11, None, (9, 10, 11)),
        ((9, 10, 11), 3, 11, None, (9, 10, 11)),
        ((9, 10, 11), 2, 11, None, (10, 11)),
        ((9, 10, 11), 2, 11, 9, (9, 11)),
        ((9, 10, 11), 1, 11, 9, (9, 11)),  # the newest to go on from, the best to end with
        ((9, 10, 11), 1, 11, 11, (11,)),
        ((2, 4, 6), 2, 4, None, (2, 4)),  # resumed from 2: 6 is of the attempt that was given up
        ((2, 4, 6, 8), 3, 4, 8, (2, 4, 8)),
    ],
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path, steps, limit, newest, best, left):
    for step in steps:
        write_checkpoint(tmp_path, step)
        os.utime(tmp_path / f"checkpoint-{step}", (1e9 - step, 1e9 - step))  # dates as some copies leave them
    best = tmp_path / f"checkpoint-{best}" if best else None
    rotate(tmp_path, limit, tmp_path / f"checkpoint-{newest}", best)
    assert names(tmp_path) == sorted(f"checkpoint-{step}" for step in left)


def test_removing_takes_the_place_first(tmp_path, monkeypatch):
    checkpoint = write_checkpoint(tmp_path, 2)
    monkeypatch.setattr(shutil, "rmtree", lambda *args, **kwargs: None)
    remove_checkpoint(checkpoint)
    assert names(tmp_path) == ["_checkpoint-2.removed"]


def test_a_failure_to_write_says_where_how_much_and_what_to_do(tmp_path):
    write_checkpoint(tmp_path, 2, FILES | {"model.safetensors": "x" * 3_000_000})
    write_aside(tmp_path, 4, {"model.safetensors": "x" * 1_500_000})
    checkpoint = tmp_path / "checkpoint-4"
    said = str(write_failure(checkpoint, OSError(28, "No space left on device")))
    assert said.startswith(f"cannot write {checkpoint}: [Errno 28] No space left on device. 1.5 MB were written, ")
    for words in ("free, the checkpoint before took 3.0 MB", "Earlier checkpoints are intact", "save_total_limit"):
        assert words in said
    assert "There is no earlier" in str(write_failure(tmp_path / "other" / "checkpoint-4", OSError()))
