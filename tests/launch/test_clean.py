"""launch.clean deletes what nobody needs, and nothing else."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from filelock import FileLock

from launch.clean import clean, main, unneeded
from launch.stages.run_folder import RunFolder, differences, read_run
from lsb.artifact import Part, Stage, open_stage, run_stage
from lsb.kept import keep, kept


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


def test_keeps_what_was_asked_for_by_hand_until_it_is_forgotten(tmp_path: Path) -> None:
    source = stage(tmp_path, "source")
    parts = [Part("word", ("word.txt",), write_word)]
    inputs = {"source": source.content}
    made = run_stage(tmp_path / "stages", "made", config={}, inputs=inputs, parts=parts)
    keep(tmp_path / "stages", made, "vlmae.cache")
    assert unneeded(tmp_path) == []
    name = made.path.name
    assert clean(tmp_path, dry_run=True, letting_go=[name]) > 0
    assert list(kept(tmp_path / "stages")) == [name]
    clean(tmp_path, dry_run=False, letting_go=[name])
    assert not kept(tmp_path / "stages")
    assert not list((tmp_path / "stages").glob("*/"))


def test_letting_go_of_what_is_not_kept_deletes_nothing(tmp_path: Path) -> None:
    other = stage(tmp_path, "other")
    with pytest.raises(ValueError, match="other is not kept by hand, only nothing"):
        clean(tmp_path, dry_run=False, letting_go=["other"])
    assert other.path.exists()


def write_megabyte(folder: Path) -> dict[str, int]:
    (folder / "word.txt").write_bytes(bytes(1_000_000))
    return {"words": 1}


def big_stage(runs: Path, config: int) -> Stage:
    """A stage whose one file is linked between all of its kind."""
    parts = [Part("word", ("word.txt",), write_megabyte, key="one")]
    return run_stage(runs / "stages", "big", config={"n": config}, inputs={}, parts=parts)


def test_linked_files_are_freed_with_their_last_name(tmp_path: Path) -> None:
    kept_one, first, second = (big_stage(tmp_path, number) for number in range(3))
    RunFolder(tmp_path / "demo", {"a": 1}).use(kept_one)
    assert clean(tmp_path, dry_run=True) < 100_000
    (tmp_path / "demo" / "run.json").unlink()
    would = clean(tmp_path, dry_run=True)
    assert 1_000_000 < would < 1_100_000
    assert clean(tmp_path, dry_run=False) == would
    assert not first.path.exists()
    assert not second.path.exists()


def test_report_tells_kinds_keepers_and_what_could_be_freed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, _, _ = (big_stage(tmp_path, number) for number in range(3))
    word = stage(tmp_path, "word")
    for run in ("demo", "other"):
        RunFolder(tmp_path / run, {"a": 1}).use(word)
    keep(tmp_path / "stages", one, "vlmae.cache")
    killed = tmp_path / "stages" / "train-0123.partial"
    killed.mkdir()
    (killed / "x").write_bytes(bytes(2_000_000))
    (tmp_path / "stages" / "word-0123.redacting").mkdir()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(sys, "argv", ["clean", "--report", "--runs", str(tmp_path)])
    main()
    told = capsys.readouterr().out
    rows = [line.split() for line in told.splitlines()]
    assert ["big", "3", "1.0", "by", "hand:", "1,", "nobody:", "2", "0.0"] in rows
    assert ["train", "1", "2.0", "killed:", "1", "2.0"] in rows
    assert ["word", "1", "0.0", "demo:", "1,", "other:", "1", "0.0"] in rows
    assert ["all", "5", "3.0", "2.0"] in rows
    assert "stages/word-0123.redacting: run python -m vlmae.takedown" in told
    assert killed.exists()


def test_what_a_killed_takedown_left_is_put_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept_one = stage(tmp_path, "kept")
    RunFolder(tmp_path / "demo", {"a": 1}).use(kept_one)
    work = kept_one.path.with_name(f"{kept_one.path.name}.redacting")
    shutil.copytree(kept_one.path, work)
    kept_one.path.rename(work / ".replaced")
    assert clean(tmp_path, dry_run=True) == 0
    assert (work / ".replaced").is_dir()
    clean(tmp_path, dry_run=False)
    assert "run python -m vlmae.takedown" in capsys.readouterr().out
    assert open_stage(kept_one.path).manifest == kept_one.manifest
    assert not work.exists()
    assert not (kept_one.path / ".replaced").exists()


def two_words(runs: Path, second: Callable[[Path], dict[str, int]]) -> Stage:
    parts = [Part("word", ("word.txt",), write_word), Part("last", ("last.txt",), second)]
    return run_stage(runs / "stages", "two", config={}, inputs={}, parts=parts)


def write_last(folder: Path) -> dict[str, int]:
    (folder / "last.txt").write_text("last")
    return {"words": 1}


def fail(folder: Path) -> dict[str, int]:
    raise OSError("killed")


@pytest.mark.parametrize(("second", "lost"), [(write_last, "manifest.json"), (fail, "word.txt")])
def test_what_a_killed_cleaning_left_is_neither_finished_nor_gone_on_with(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    second: Callable[[Path], dict[str, int]],
    lost: str,
) -> None:
    with suppress(OSError):
        two_words(tmp_path, second)

    def killed(folder: Path) -> None:
        next(folder.rglob(lost)).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("launch.clean.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clean(tmp_path, dry_run=False, partial=True)
    stages = tmp_path / "stages"
    assert not list(stages.glob("*/manifest.json")), "who looks for stages would take it"
    made = two_words(tmp_path, write_last)
    assert open_stage(made.path).manifest["counts"] == {"words": 2}
    RunFolder(tmp_path / "demo", {"a": 1}).use(made)
    clean(tmp_path, dry_run=False)
    assert list(stages.glob("*/")) == [made.path]
