"""A delegate is offered stages that are wanted whole, and nothing else changes."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from lsb.artifact import Part, Stage, StageError, run_stage, share_of, work_on_stage
from lsb.delegation import StageCall, delegated


def write(name: str, folder: Path) -> dict[str, int]:
    (folder / f"{name}.txt").write_text(name)
    return {"rows": 1}


def stage(root: Path, name: str = "words", letters: str = "abcd") -> Stage:
    parts = [Part(letter, (f"{letter}.txt",), partial(write, letter)) for letter in letters]
    return run_stage(root, name, config={"k": 1}, inputs={}, parts=parts)


def make(call: StageCall, of: int) -> None:
    for number in range(of):
        work_on_stage(
            call.root,
            call.stage,
            config=call.config,
            inputs=call.inputs,
            parts=call.parts,
            share=(number, of),
            processes=call.processes,
            revision=call.revision,
        )


def test_what_others_made_is_opened_and_is_the_same(tmp_path: Path) -> None:
    calls: list[StageCall] = []

    def delegate(call: StageCall) -> bool:
        calls.append(call)
        make(call, of=3)
        return True

    with delegated(delegate):
        made = stage(tmp_path / "there")
        again = stage(tmp_path / "there")
    assert [call.target for call in calls] == [made.path]
    assert not made.reused
    assert again.reused
    here = stage(tmp_path / "here")
    assert made.content == here.content
    assert made.path.name == here.path.name


def test_refused_offers_are_made_here(tmp_path: Path) -> None:
    with delegated(lambda call: False):
        assert stage(tmp_path).counts == {"rows": 4}


def test_a_delegate_is_not_offered_what_it_asks_for_itself(tmp_path: Path) -> None:
    asked: list[str] = []

    def delegate(call: StageCall) -> bool:
        asked.append(call.stage)
        stage(tmp_path, "inner")
        return False

    with delegated(delegate):
        stage(tmp_path, "outer")
        stage(tmp_path, "next")
    assert asked == ["outer", "next"]


def test_a_delegate_that_lies_is_found_out(tmp_path: Path) -> None:
    with delegated(lambda call: True), pytest.raises(StageError, match="words-"):
        stage(tmp_path)


def test_shares_are_not_offered(tmp_path: Path) -> None:
    def delegate(call: StageCall) -> bool:
        raise AssertionError("a share is this process's own work")

    parts = [Part("a", ("a.txt",), partial(write, "a"))]
    shares = [(number, 2) for number in range(2)]
    with delegated(delegate):
        made = [
            work_on_stage(tmp_path, "s", config={}, inputs={}, parts=parts, share=share)
            for share in shares
        ]
    assert made[share_of("a", 2)] is not None


def test_parts_that_are_dealt_are_not_offered(tmp_path: Path) -> None:
    """Also of a single process: a training that grows embeds by weights that it alone has."""

    def delegate(call: StageCall) -> bool:
        raise AssertionError("the part holds what cannot be handed on")

    held = object()
    parts = [Part("a", ("a.txt",), lambda folder: write("a", folder) if held else {})]
    with delegated(delegate):
        made = work_on_stage(
            tmp_path, "s", config={}, inputs={}, parts=parts, share=(0, 1), dealt={"a": 0}
        )
    assert made is not None
    assert made.counts == {"rows": 1}
