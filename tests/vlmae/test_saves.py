"""Saves are whole or absent: an interrupted one is never picked up, and the last few are kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from vlmae.saves import Moment, Save, Saves, find_save, saves_below

NOW = Moment("a training", 0, 2, 1, "zero2")


def at(step: int) -> Moment:
    return Moment("a training", step, 2, 1, "zero2")


def save(saves: Saves, step: int) -> None:
    saves.clear(step)
    state = saves.begin(step)
    state.mkdir()
    (state / "shard-0").write_text(f"weights of step {step}")
    saves.finish(at(step))


def steps(saves: Saves) -> list[int]:
    return [one.moment.step for one in saves.finished()]


def test_the_latest_are_kept(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "saves", keep=2)
    assert saves.latest() is None
    for step in (3, 20, 100):
        save(saves, step)
    assert steps(saves) == [20, 100]
    assert sorted(path.name for path in saves.folder.iterdir()) == ["step-000020", "step-000100"]
    latest = saves.latest()
    assert latest == Save(saves.folder / "step-000100", at(100))
    assert (latest.state / "shard-0").read_text() == "weights of step 100"
    save(saves, 100)  # a resumed training comes by again
    assert steps(saves) == [20, 100]


def test_an_interrupted_save_is_not_picked_up_though_its_step_is_higher(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "saves", keep=2)
    save(saves, 10)
    saves.clear(20)
    saves.begin(20).mkdir()
    (saves.begin(20) / "shard-0").write_text("half of the wei")
    for name in ("step-000030", "step-000040"):  # copied by hand, or being deleted
        (saves.folder / name / "state").mkdir(parents=True)
    assert steps(saves) == [10]
    assert find_save(saves.folder).moment.step == 10
    save(saves, 30)
    assert steps(saves) == [10, 30]
    assert not list(saves.folder.glob(".step-*")), "what was left is removed"
    saves.clear(50)
    with pytest.raises(ValueError, match=r"state was not written"):
        saves.finish(at(50))
    assert steps(saves) == [10, 30]


def test_saves_are_found_in_and_below_a_folder(tmp_path: Path) -> None:
    for stage, step in (("train-1.partial", 10), ("train-2.partial", 7)):
        save(Saves(tmp_path / stage / ".scratch-model" / "saves"), step)
    assert [one.moment.step for one in saves_below(tmp_path)] == [10, 7]
    assert find_save(tmp_path).moment.step == 10
    one = tmp_path / "train-2.partial" / ".scratch-model" / "saves" / "step-000007"
    assert find_save(one) == find_save(one.parent) == Save(one, at(7))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no finished save of this training: give"):
        find_save(tmp_path / "empty")


def test_a_save_of_another_release_is_refused_with_the_remedy(tmp_path: Path) -> None:
    saves = Saves(tmp_path / "saves")
    save(saves, 10)
    marker = saves.folder / "step-000010" / "save.json"
    marker.write_text(json.dumps({**json.loads(marker.read_text()), "version": 0}))
    with pytest.raises(ValueError, match=r"of another release.*delete .*step-000010 to start"):
        saves.latest()
    assert saves_below(tmp_path) == []
    with pytest.raises(ValueError, match=r"trainer.keep_saves is 0: keep at least 1"):
        Saves(tmp_path, keep=0)
