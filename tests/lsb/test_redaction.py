"""lsb.redaction swaps whole stages, wherever it is killed; lsb.kept knows what was asked for."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from lsb.artifact import Part, Stage, StageError, open_stage, run_stage
from lsb.kept import forget, keep, kept
from lsb.redaction import (
    Edited,
    drop_parts,
    recorded_parts,
    redact_stage,
    require_idle,
    seal_whole,
    settle,
    unsettled,
)

GONE = "ab" * 16


def words(root: Path, names: str = "abc", text: str = "secret", **options: Any) -> Stage:
    def part(name: str) -> Part:
        def make(folder: Path) -> dict[str, int]:
            (folder / f"{name}.txt").write_text(f"{name} {text}")
            (folder / f"{name}.log").write_text(name)
            return {"words": 2}

        return Part(name, (f"{name}.txt", f"{name}.log"), make, key=f"key of {name}")

    parts = [part(name) for name in names]
    return run_stage(root, "words", config={"names": names}, inputs={}, parts=parts, **options)


def without_secret(source: Path, target: Path, entry: Mapping[str, Any]) -> Edited:
    name = next(iter(entry["files"]))
    (target / name).write_text((source / name).read_text().removesuffix(" secret"))
    return Edited({"words": entry["counts"]["words"] - 1}, "new key", (GONE,))


def tree(root: Path) -> dict[str, bytes]:
    """Every file below a folder but locks."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and path.suffix != ".lock"
    }


def test_changes_the_part_and_its_record_and_links_the_rest(tmp_path: Path) -> None:
    old = words(tmp_path)
    inode = (old.path / "a.txt").stat().st_ino
    new = redact_stage(old.path, {"b": without_secret})
    assert open_stage(new.path).manifest == new.manifest
    assert (new.path / "b.txt").read_text() == "b"
    assert (new.path / "a.txt").stat().st_ino == inode
    assert new.content == old.content
    assert new.counts == {"words": 5}
    assert new.manifest["redacted"] == 1
    assert new.manifest["parts"]["b"]["redacted"] == [GONE]
    assert new.manifest["parts"]["b"]["key"] == "new key"
    assert new.manifest["parts"]["a"] == old.manifest["parts"]["a"]
    assert not unsettled(tmp_path)


def test_a_second_redaction_adds_to_the_first(tmp_path: Path) -> None:
    path = words(tmp_path).path
    redact_stage(path, {"b": without_secret})
    again = redact_stage(path, {"a": without_secret, "b": without_secret})
    assert again.manifest["redacted"] == 1
    assert again.manifest["parts"]["a"]["redacted"] == [GONE]
    assert again.counts == {"words": 3}


@pytest.mark.parametrize("call", ["replace", "rmtree"])
def test_killed_anywhere_and_run_again_it_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    words(tmp_path / "undisturbed")
    stage = redact_stage(next((tmp_path / "undisturbed").glob("words-*")), {"b": without_secret})
    wanted = tree(stage.path)
    module = os if call == "replace" else shutil
    real: Callable[..., None] = getattr(module, call)
    kills = 0
    while True:
        root = tmp_path / f"killed-{kills}"
        path = words(root).path
        (path / "timing.json").write_bytes(wanted["timing.json"])
        left = kills

        def killed(*arguments: Any, **options: Any) -> None:
            nonlocal left
            if left == 0:
                raise KeyboardInterrupt
            left -= 1
            real(*arguments, **options)

        with monkeypatch.context() as patched:
            patched.setattr(module, call, killed)
            try:
                redact_stage(path, {"b": without_secret})
            except KeyboardInterrupt:
                kills += 1
            else:
                break
        settle(root)
        open_stage(path)  # whole, old or new
        if "redacted" not in open_stage(path).manifest:
            redact_stage(path, {"b": without_secret})
        assert tree(path) == wanted
        assert [entry for entry in root.iterdir() if entry.is_dir()] == [path]
    assert kills == {"replace": 3, "rmtree": 1}[call]


def test_refuses_while_a_process_makes_the_stage(tmp_path: Path) -> None:
    path = words(tmp_path).path
    for lock in (f".{path.name}.lock", f".{path.name}.0-of-2.lock"):
        with (
            FileLock(tmp_path / lock),
            pytest.raises(StageError, match=f"at work on {path.name}"),
        ):
            redact_stage(path, {"b": without_secret})
    with FileLock(tmp_path / ".other.lock"), pytest.raises(StageError, match=r"other.*then sleep"):
        require_idle(tmp_path, "sleep")
    assert (path / "b.txt").read_text() == "b secret"


def test_a_missing_file_of_the_part_is_named(tmp_path: Path) -> None:
    path = words(tmp_path).path
    (path / "b.log").unlink()
    with pytest.raises(StageError, match=r"b\.log is missing: run the command that made it"):
        redact_stage(path, {"b": without_secret})
    assert open_stage(path, verify=False).counts == {"words": 6}


def test_a_redacted_part_is_lent_as_it_is(tmp_path: Path) -> None:
    path = words(tmp_path).path
    redact_stage(path, {"b": without_secret})

    def never(folder: Path) -> dict[str, int]:
        raise AssertionError("made again")

    parts = [Part("x", ("x.txt", "x.log"), never, key="new key")]
    grown = run_stage(tmp_path, "words", config={}, inputs={}, parts=parts)
    assert (grown.path / "x.txt").read_text() == "b"
    assert grown.counts == {"words": 1}


def test_unfinished_stages_lose_parts_and_leftovers_only(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, int]:
        raise RuntimeError("killed")

    def part(name: str) -> Part:
        def make(folder: Path) -> dict[str, int]:
            (folder / f"{name}.txt").write_text(name)
            return {"words": 1}

        return Part(name, (f"{name}.txt",), fail if name == "c" else make)

    with pytest.raises(RuntimeError):
        run_stage(tmp_path, "words", config={}, inputs={}, parts=[part(name) for name in "abc"])
    partial = next(tmp_path.glob("words-*.partial"))
    (partial / "unrecorded.txt").write_text("secret")
    (partial / ".tmp-c-0123").mkdir()
    (partial / ".tmp-c-0123" / "c.txt").write_text("secret")
    drop_parts(partial, ["b"])
    assert set(tree(partial)) == {"a.txt", "parts/a.json"}
    assert recorded_parts(partial) == {"a": ["a.txt"]}
    assert seal_whole(partial) is None


def test_a_stage_killed_before_its_last_rename_is_finished(tmp_path: Path) -> None:
    stage = words(tmp_path)
    partial = tmp_path / f"{stage.path.name}.partial"
    stage.path.rename(partial)
    (partial / "parts").mkdir()
    assert seal_whole(partial) == stage.path
    assert open_stage(stage.path).manifest == stage.manifest


def test_what_is_kept_by_hand_stays_until_forgotten(tmp_path: Path) -> None:
    one, other = words(tmp_path), words(tmp_path, "xy")
    keep(tmp_path, one, "vlmae.cache")
    first = kept(tmp_path)
    keep(tmp_path, keep(tmp_path, other, "vlmae.train"), "vlmae.embed")
    assert kept(tmp_path)[one.path.name] == first[one.path.name]
    assert kept(tmp_path)[other.path.name]["by"] == "vlmae.train"
    with pytest.raises(ValueError, match=r"nothing-1 is not kept by hand, only words-"):
        forget(tmp_path, [one.path.name, "nothing-1"])
    forget(tmp_path, [one.path.name])
    assert list(kept(tmp_path)) == [other.path.name]


@pytest.mark.parametrize("text", ["[]", '{"format": "vlmae-kept", "version": 9}', "{"])
def test_a_list_nobody_can_read_stops(tmp_path: Path, text: str) -> None:
    (tmp_path / "kept.json").write_text(text)
    with pytest.raises(StageError, match=r"kept\.json"):
        kept(tmp_path)
