"""Parts that are borrowed from other stages, shared among processes, or made in several goes."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path

import pytest
from filelock import FileLock

from lsb import artifact
from lsb.artifact import Part, Progress, Stage, StageError, run_stage, scratch, work_on_stage


def write(folder: Path, *, name: str, text: str, log: list[str]) -> dict[str, int]:
    log.append(name)
    (folder / f"{name}.txt").write_text(text)
    return {"rows": len(text)}


def parts_of(texts: dict[str, str], log: list[str], *, keyed: bool = True) -> list[Part]:
    return [
        Part(
            name,
            (f"{name}.txt",),
            partial(write, name=name, text=text, log=log),
            key=f"key of {text}" if keyed else None,
        )
        for name, text in texts.items()
    ]


def test_a_grown_stage_borrows_the_parts_it_already_had(tmp_path: Path) -> None:
    log: list[str] = []
    small = run_stage(
        tmp_path, "s", config={}, inputs={"in": "1"}, parts=parts_of({"a": "one", "b": "two"}, log)
    )
    texts = {"a": "one", "b": "two", "c": "three"}
    grown = run_stage(tmp_path, "s", config={}, inputs={"in": "2"}, parts=parts_of(texts, log))
    assert log == ["a", "b", "c"]
    assert grown.counts == {"rows": 11}
    assert (grown.path / "a.txt").samefile(small.path / "a.txt")
    assert {name: (grown.path / f"{name}.txt").read_text() for name in texts} == texts


def test_what_is_borrowed_has_the_same_content_as_what_is_made(tmp_path: Path) -> None:
    texts = {"a": "one", "b": "two"}
    run_stage(tmp_path / "x", "s", config={}, inputs={"in": "1"}, parts=parts_of(texts, []))
    borrowed = run_stage(tmp_path / "x", "s", config={}, inputs={}, parts=parts_of(texts, []))
    made = run_stage(tmp_path / "y", "s", config={}, inputs={}, parts=parts_of(texts, []))
    assert borrowed.content == made.content
    manifests = [(stage.path / "manifest.json").read_bytes() for stage in (borrowed, made)]
    assert manifests[0] == manifests[1]


def test_a_part_is_borrowed_under_another_name(tmp_path: Path) -> None:
    log: list[str] = []
    run_stage(tmp_path, "s", config={}, inputs={}, parts=parts_of({"a": "one"}, log))
    other = run_stage(tmp_path, "s", config={}, inputs={}, parts=parts_of({"b": "one"}, log))
    assert log == ["a"]
    assert (other.path / "b.txt").read_text() == "one"


@pytest.mark.parametrize("change", ["damaged", "revision", "no key"])
def test_nothing_is_borrowed_that_is_damaged_or_of_other_code(tmp_path: Path, change: str) -> None:
    log: list[str] = []
    keyed = change != "no key"
    parts = parts_of({"a": "one"}, log, keyed=keyed)
    first = run_stage(tmp_path, "s", config={}, inputs={"in": "1"}, parts=parts)
    if change == "damaged":
        (first.path / "a.txt").write_text("eno")
    again = run_stage(
        tmp_path,
        "s",
        config={},
        inputs={"in": "2"},
        parts=parts,
        revision=2 if change == "revision" else 1,
    )
    assert log == ["a", "a"]
    assert (again.path / "a.txt").read_text() == "one"


def test_shares_make_every_part_once_and_the_last_one_seals(tmp_path: Path) -> None:
    log: list[str] = []
    parts = parts_of({name: name * 3 for name in "abcdefgh"}, log)
    shares = [
        work_on_stage(tmp_path / "shared", "s", config={}, inputs={}, parts=parts, share=(n, 3))
        for n in (2, 0, 1)
    ]
    assert [stage is None for stage in shares] == [True, True, False]
    assert sorted(log) == list("abcdefgh")
    alone = run_stage(tmp_path / "alone", "s", config={}, inputs={}, parts=parts)
    assert shares[2] is not None
    assert shares[2].content == alone.content


def test_a_share_that_looks_while_another_seals_finds_the_finished_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {name: name * 3 for name in "efgh"}
    log: list[str] = []
    parts = parts_of(texts, log)

    def share(number: int) -> Stage | None:
        return work_on_stage(tmp_path, "s", config={}, inputs={}, parts=parts, share=(number, 2))

    assert share(0) is None
    look = artifact.is_recorded

    def after_the_other(folder: Path, name: str) -> bool:
        monkeypatch.setattr(artifact, "is_recorded", look)
        assert share(1) is not None
        return look(folder, name)

    monkeypatch.setattr(artifact, "is_recorded", after_the_other)
    found = share(0)  # started again, although its parts were made
    assert found is not None
    assert sorted(log) == sorted(texts), "every part is made once"
    assert [path.name for path in tmp_path.glob("*.partial")] == []


def test_a_share_is_refused_while_another_number_of_shares_is_at_work(tmp_path: Path) -> None:
    parts = parts_of({name: name for name in "abcd"}, [])
    work_on_stage(tmp_path, "s", config={}, inputs={}, parts=parts, share=(0, 2))
    lock = next(tmp_path.glob(".s-*.0-of-2.lock"))
    with FileLock(lock), pytest.raises(StageError, match="agree on the number of shares"):
        work_on_stage(tmp_path, "s", config={}, inputs={}, parts=parts, share=(0, 3))
    assert run_stage(tmp_path, "s", config={}, inputs={}, parts=parts).counts == {"rows": 4}


def test_a_share_is_not_refused_because_another_one_looks(tmp_path: Path) -> None:
    parts = parts_of({name: name for name in "abcd"}, [])
    work_on_stage(tmp_path, "s", config={}, inputs={}, parts=parts, share=(0, 2))
    (other,) = tmp_path.glob(".s-*.0-of-2.lock")
    whole = other.with_name(other.name.replace(".0-of-2", ""))  # all shares look at that one
    glance = FileLock(whole, thread_local=False)
    glance.acquire()
    release = threading.Timer(0.2, glance.release)
    release.start()
    stage = work_on_stage(tmp_path, "s", config={}, inputs={}, parts=parts, share=(1, 2))
    release.join()
    assert stage is not None
    assert stage.counts == {"rows": 4}


def test_a_share_out_of_range_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        work_on_stage(tmp_path, "s", config={}, inputs={}, parts=[], share=(2, 2))


def test_unfinished_work_in_scratch_outlives_a_failure_and_goes_when_done(tmp_path: Path) -> None:
    def make(folder: Path) -> dict[str, int]:
        place = scratch(folder) / "half.txt"
        if not place.exists():
            place.write_text("half ")
            raise RuntimeError("killed")
        (folder / "a.txt").write_text(place.read_text() + "and half")
        return {}

    parts = [Part("a", ("a.txt",), make)]
    with pytest.raises(RuntimeError, match="killed"):
        run_stage(tmp_path, "s", config={}, inputs={}, parts=parts)
    stage = run_stage(tmp_path, "s", config={}, inputs={}, parts=parts)
    assert (stage.path / "a.txt").read_text() == "half and half"
    assert not list(stage.path.glob(".scratch*"))


def test_progress_counts_parts_and_what_they_hold(tmp_path: Path) -> None:
    seen: list[Progress] = []
    parts = parts_of({"a": "x", "b": "yy"}, [])
    run_stage(tmp_path, "s", config={}, inputs={}, parts=parts, on_part=seen.append)
    assert [(p.parts, p.of, p.counts["rows"]) for p in seen] == [(1, 2, 1), (2, 2, 3)]
    assert seen[0].remaining == pytest.approx(seen[0].seconds)
    assert seen[1].remaining == 0
