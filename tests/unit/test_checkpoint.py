"""Checkpoints: whatever goes wrong at whatever moment, `latest` names a whole one, and the newest that was said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from faults import KILL, faults, operations, strike
from toys import toy_checkpoint

from hpctrack.errors import InputError
from hpctrack.files import atomic
from hpctrack.training import checkpoint

META = {"config": {}, "data": "", "tuned": {}, "window": {}}


def save(folder: Path, step: int, value: float, keep: int = 2) -> None:
    state = {"model": {"weight": torch.full((300,), value)}}
    checkpoint.save(folder, step, state, META | {"step": step, "value": value}, keep)


def newest(folder: Path) -> tuple[int, float]:
    """Step and value of the checkpoint that a run goes on from, all of it looked at."""
    path = checkpoint.find(folder)
    meta, state = checkpoint.read_meta(path), checkpoint.read_state(path)
    assert (state["model"]["weight"] == meta["value"]).all()
    return meta["step"], meta["value"]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def whole_ones(folder: Path) -> list[int]:
    """Steps of all checkpoints; each must be whole."""
    found = checkpoint.whole(folder)
    for path in found:
        checkpoint.read_meta(path), checkpoint.read_state(path)
    return [checkpoint.order(path)[0] for path in found]


CASES = {  # steps that are there, the one that `latest` names, the step that is saved
    "the first one": ([], None, 2),
    "into an empty folder": (None, None, 2),
    "one too many": ([2, 4], 4, 6),
    "the same step again": ([2, 4], 4, 4),
    "after going back": ([2, 4, 6], 2, 4),
    "after going back, elsewhere": ([2, 4, 6], 2, 5),
}


ALSO_FULL = ("the same step again",)  # where each operation fails, too; tests/campaigns has all of them


@pytest.mark.parametrize("case", CASES)
def test_saving_that_goes_wrong_anywhere_loses_nothing(tmp_path, case):
    before, named, step = CASES[case]
    folder = tmp_path / "run" / "checkpoints"

    def prepare():
        atomic.remove(tmp_path / "run")
        for one in before or ():
            save(folder, one, one, keep=9)
        if before is None:
            folder.mkdir(parents=True)
        if named:
            (folder / "latest").write_text(f"step-{named:08d}")

    def act():
        save(folder, step, step + 0.5)

    prepare()
    ways = [
        fault
        for fault in faults(operations(act, [tmp_path]))
        if fault.how == KILL or (case in ALSO_FULL and not fault.lasting)
    ]
    assert len(ways) >= 20
    for fault in ways:
        prepare()
        assert strike(act, [tmp_path], fault).struck, fault
        if named or (folder / "latest").exists():
            assert newest(folder) in ((named, named), (step, step + 0.5)), fault
        else:
            assert checkpoint.latest(folder) is None, fault
        whole_ones(folder) if folder.exists() else None
        if named:
            assert len(whole_ones(folder)) >= min(2, len([one for one in before if one <= named])), fault
        checkpoint.clear(folder)  # the next run does
        act()
        assert newest(folder) == (step, step + 0.5), fault
        assert not list(tmp_path.rglob("*.tmp")), fault
        assert whole_ones(folder)[-1] == step and len(whole_ones(folder)) <= 2, fault


def test_other_meta_data_on_the_same_state_come_in_one_step(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 2, 1.0)

    def act():
        checkpoint.amend(folder / "step-00000002", META | {"step": 2, "value": 1.0, "tuned": {"radius": 0.1}})

    for fault in faults(operations(act, [tmp_path])):
        save(folder, 2, 1.0) if not folder.exists() else None
        strike(act, [tmp_path], fault)
        assert newest(folder) == (2, 1.0)
    act()
    assert checkpoint.read_meta(folder / "step-00000002")["tuned"] == {"radius": 0.1}


def test_rotation_goes_by_the_course_of_the_run(tmp_path):
    for step in (2, 4, 6, 8):
        save(tmp_path, step, step, keep=3)
    assert names(tmp_path) == ["latest", "step-00000004", "step-00000006", "step-00000008"]
    (tmp_path / "latest").write_text("step-00000004")  # back to it
    save(tmp_path, 5, 5.5, keep=3)
    assert names(tmp_path) == ["latest", "step-00000004", "step-00000005"] and newest(tmp_path) == (5, 5.5)
    for step in (6, 7, 8):
        save(tmp_path, step, step + 0.5, keep=3)
    assert names(tmp_path) == ["latest", "step-00000006", "step-00000007", "step-00000008"]
    assert newest(tmp_path) == (8, 8.5)


def test_latest_that_is_missing_is_refused_and_said_what_to_do(tmp_path):
    assert checkpoint.latest(tmp_path) is None
    for step in (2, 4):
        save(tmp_path, step, step)
    (tmp_path / "latest").unlink()
    with pytest.raises(
        InputError, match=r"latest: missing, but checkpoints are there \(step-00000002, step-00000004\)"
    ):
        checkpoint.latest(tmp_path)
    (tmp_path / "latest").write_text("step-00000006")
    with pytest.raises(InputError, match=r"names 'step-00000006', which is not there; name one of .*step-00000004"):
        checkpoint.latest(tmp_path)
    (tmp_path / "latest").write_text("../step-00000004")
    with pytest.raises(InputError, match=r"names '\.\./step-00000004', which is not there; name one of"):
        checkpoint.latest(tmp_path)
    (tmp_path / "latest").write_text("\n")
    with pytest.raises(InputError, match=r"latest: is empty; name one of .*step-00000004"):
        checkpoint.latest(tmp_path)
    (tmp_path / "latest").write_text("step-00000002")
    assert newest(tmp_path) == (2, 2)


def test_a_link_to_a_folder_elsewhere_stays_one(tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "checkpoints").symlink_to(tmp_path / "large")
    for step in (2, 4):
        save(tmp_path / "checkpoints", step, step)
    assert (tmp_path / "checkpoints").is_symlink() and whole_ones(tmp_path / "large") == [2, 4]


def damaged(path: Path, how: str) -> str:
    """Change the file in the middle, or its end; what is said of it."""
    content = bytearray(path.read_bytes())
    if how == "cut":
        del content[-40:]
    else:
        content[len(content) // 2] ^= 1
    path.write_bytes(content)
    return path.name


@pytest.mark.parametrize("how", ["cut", "changed"])
@pytest.mark.parametrize("name", ["state.pt", "meta.json"])
def test_a_changed_file_is_refused(tmp_path, name, how):
    path = toy_checkpoint(tmp_path / "checkpoints", 2)
    damaged(path / name, how)
    with pytest.raises(InputError, match=name.replace(".", r"\.")):
        checkpoint.read_meta(path), checkpoint.read_state(path)


def test_only_what_is_ours_and_nobodys_is_cleared(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 2, 2.0)
    for path in (folder, folder / "step-00000002", tmp_path):
        (path / ".checkpoints.1-0123456789ab.tmp").mkdir()
    (folder / f".mine.{os.getpid()}-0123456789ab.tmp").write_text("")
    (folder / ".not-ours.tmp").write_text("")
    (folder / ".step-00000006.tmp").mkdir()  # as 0.1.0 named them
    checkpoint.clear(folder)
    kept = [f".mine.{os.getpid()}-0123456789ab.tmp", ".not-ours.tmp"]
    assert sorted(path.name for path in tmp_path.rglob(".*")) == sorted(kept)
