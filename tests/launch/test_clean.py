"""launch.clean deletes what no run names, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from launch.clean import clean, unneeded
from launch.run_folder import RunFolder, differences
from lsb.artifact import Part, Stage, run_stage


def write_word(folder: Path) -> dict[str, int]:
    (folder / "word.txt").write_text("word")
    return {"words": 1}


def stage(runs: Path, name: str) -> Stage:
    parts = [Part("word", ("word.txt",), write_word)]
    return run_stage(runs / "stages", name, config={}, inputs={}, parts=parts)


def test_keeps_what_a_run_names(tmp_path: Path) -> None:
    kept, other = stage(tmp_path, "kept"), stage(tmp_path, "other")
    RunFolder(tmp_path / "demo", {"a": 1}).use(kept)
    assert unneeded(tmp_path) == [other.path]
    assert clean(tmp_path, dry_run=True) > 0
    assert other.path.exists()
    clean(tmp_path, dry_run=False)
    assert kept.path.exists()
    assert not other.path.exists()


def test_leaves_a_stage_at_work_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    busy = stage(tmp_path, "busy")
    with FileLock(tmp_path / "stages" / f".{busy.path.name}.lock"):
        clean(tmp_path, dry_run=False)
    assert busy.path.exists()
    assert "in use" in capsys.readouterr().out


def test_killed_stages_are_deleted(tmp_path: Path) -> None:
    partial = tmp_path / "stages" / "train-0123.partial"
    partial.mkdir(parents=True)
    clean(tmp_path, dry_run=False)
    assert not partial.exists()


def test_run_of_another_configuration_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path / "demo", {"a": {"b": 1}}).use(stage(tmp_path, "kept"))
    RunFolder(tmp_path / "demo", {"a": {"b": 1}})
    with pytest.raises(ValueError, match=r"a\.b: 1 -> 2.*name=<name>"):
        RunFolder(tmp_path / "demo", {"a": {"b": 2}})


def test_differences_name_leaves() -> None:
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4}}
    assert differences(old, new) == ["b.c: 2 -> 4", "b.d: 3 -> None"]
