"""launch.clean deletes what no run names, and nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from launch.clean import clean, unneeded
from launch.run_folder import RunFolder, differences, read_run
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


def test_keeps_what_kept_stages_were_made_from(tmp_path: Path) -> None:
    source = stage(tmp_path, "source")
    parts = [Part("word", ("word.txt",), write_word)]
    inputs = {"source": source.content}
    made = run_stage(tmp_path / "stages", "made", config={}, inputs=inputs, parts=parts)
    RunFolder(tmp_path / "demo", {"a": 1}).use(made)
    assert unneeded(tmp_path) == []


def test_deletes_nothing_while_a_process_is_at_work(tmp_path: Path) -> None:
    busy, idle = stage(tmp_path, "busy"), stage(tmp_path, "idle")
    with (
        FileLock(tmp_path / "stages" / f".{busy.path.name}.lock"),
        pytest.raises(ValueError, match=f"at work on {busy.path.name}"),
    ):
        clean(tmp_path, dry_run=False)
    assert busy.path.exists()
    assert idle.path.exists()


def test_killed_stages_go_only_when_asked(tmp_path: Path) -> None:
    partial = tmp_path / "stages" / "train-0123.partial"
    partial.mkdir(parents=True)
    clean(tmp_path, dry_run=False)
    assert partial.exists()
    clean(tmp_path, dry_run=False, partial=True)
    assert not partial.exists()


def test_a_damaged_run_stops_the_cleaning(tmp_path: Path) -> None:
    kept = stage(tmp_path, "kept")
    folder = RunFolder(tmp_path / "demo", {"a": 1})
    folder.use(kept)
    (folder.path / "run.json").write_text("[]")
    with pytest.raises(ValueError, match="delete this file"):
        clean(tmp_path, dry_run=False)
    assert kept.path.exists()


def test_two_processes_with_one_run_folder_lose_no_stage(tmp_path: Path) -> None:
    one, other = (RunFolder(tmp_path / "demo", {"a": 1}) for _ in range(2))
    one.use(stage(tmp_path, "first"))
    other.use(stage(tmp_path, "second"))
    assert len(read_run(tmp_path / "demo" / "run.json")["stages"]) == 2


def test_run_of_another_configuration_is_refused(tmp_path: Path) -> None:
    RunFolder(tmp_path / "demo", {"a": {"b": 1}}).use(stage(tmp_path, "kept"))
    RunFolder(tmp_path / "demo", {"a": {"b": 1}})
    with pytest.raises(ValueError, match=r"a\.b: 1 -> 2.*name=<name>"):
        RunFolder(tmp_path / "demo", {"a": {"b": 2}})


def test_differences_name_leaves() -> None:
    old, new = {"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4}}
    assert differences(old, new) == ["b.c: 2 -> 4", "b.d: 3 -> None"]
