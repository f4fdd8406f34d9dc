"""Answers in files: what is read, what is refused by its line, what reaches the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from lsb.annotate.answers import Answer, first_answers, read_answers, take_answers
from lsb.annotate.lines import write_lines
from lsb.ids import sample_id, to_hex
from lsb.ledger import Ledger, Round
from lsb.selection import CHOSEN

KEYS = ["a", "b", "c"]
IDS = {key: sample_id(key).hex() for key in KEYS}
TASKS = ("policy", "unsafe")
TIME = "2026-03-04T05:06:07Z"


def line(key: str, labeller: str = "ann", **fields: Any) -> dict[str, Any]:
    told = {
        "format": "vlmae-answer-1",
        "clip_id": IDS[key],
        "labeller": labeller,
        "labelled_at": TIME,
        "labels": {"policy": 1},
    }
    return told | fields


def answer(key: str, labeller: str = "ann", minute: int = 0, **fields: Any) -> Answer:
    at = datetime(2026, 3, 4, 5, minute, tzinfo=UTC)
    told = line(key, labeller, **fields)
    return Answer.model_validate(told | {"labelled_at": at})


def written(folder: Path, *lines: Any, name: str = "ann.jsonl") -> Path:
    text = "\n".join(one if isinstance(one, str) else json.dumps(one) for one in lines)
    (folder / name).write_text(text + "\n", "utf-8")
    return folder


def read(folder: Path) -> list[Answer]:
    answers, refused = read_answers(folder, set(IDS.values()), TASKS)
    assert refused == []
    return answers


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    rows = [
        dict.fromkeys(CHOSEN.names)
        | {"id": sample_id(key), "key": key, "rank": rank, "reason": "fill"}
        for rank, key in enumerate(KEYS, start=1)
    ]
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        chosen = pa.Table.from_pylist(rows, schema=CHOSEN)
        ledger.record_round(Round(1, "lsb_lt", "c", "s"), chosen, None)
        yield ledger


def test_files_are_read_in_any_order_and_may_repeat_each_other(tmp_path: Path) -> None:
    skip = line("b", "bob", labels={}, skipped=True, seconds=3.5)
    written(tmp_path, line("c"), skip, name="2.jsonl")
    written(tmp_path, line("a", labels={"policy": 0, "unsafe": 1}), line("c"), name="1.jsonl")
    found = read(tmp_path)
    assert [one.place for one in found] == sorted(one.place for one in found)
    assert {one.place: (one.labels, one.skipped) for one in found} == {
        (IDS["a"], "ann"): ({"policy": 0, "unsafe": 1}, False),
        (IDS["b"], "bob"): ({}, True),
        (IDS["c"], "ann"): ({"policy": 1}, False),
    }
    write_lines(tmp_path / "again" / "out.jsonl", found)
    assert read(tmp_path / "again") == found


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "line 2: Invalid JSON"),
        ("", "line 2: Invalid JSON"),
        ({"clip_id": IDS["a"]}, "line 2: format: Field required"),
        (line("a", format="vlmae-answer-2"), "line 2: format: Input should be 'vlmae-answer-1'"),
        (line("a", labels={"policy": 2}), "line 2: labels.policy: .*less than or equal to 1"),
        (line("a", labels={"policy": "yes"}), "line 2: labels.policy: .*valid integer"),
        (line("a", labels={"policy": True}), "line 2: labels.policy: .*valid integer"),
        (line("a", labels={}), "line 2: .*give labels, or an empty labels and skipped=true"),
        (line("a", skipped=True), "line 2: .*give labels, or"),
        (line("a", clip_id="A" * 32), "line 2: clip_id: String should match"),
        (line("a", labelled_at="2026-03-04T05:06:07"), "line 2: labelled_at: .*timezone"),
        (line("a", labeller=" ann"), "line 2: labeller: String should match"),
        (line("a", labeller="oracle:noise=0.0"), "line 2: labeller: .*give the person's own"),
        (line("a", comment="?"), "line 2: comment: Extra inputs"),
        (line("a", seconds=-1), "line 2: seconds: .*greater than or equal to 0"),
        (line("a", labels={"weather": 1}), "line 2: task 'weather' was not asked about"),
        (line("a", clip_id="0" * 32), "line 2: clip 0+ was not asked about in this round"),
        (line("c", labels={"policy": 0}), r"line 2: 'ann' has answered .*ann.jsonl, line 1"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_taken(tmp_path: Path, bad: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(written(tmp_path, line("c"), bad, line("b")))


def test_all_bad_lines_are_counted(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ann.jsonl, line 1: .*\(2 of 3 lines are bad\)"):
        read(written(tmp_path, "no", line("a"), "json"))


def test_lines_end_at_newlines_alone(tmp_path: Path) -> None:
    text = json.dumps(line("a", "an\u2028n"), ensure_ascii=False)
    assert [one.labeller for one in read(written(tmp_path, text))] == ["an\u2028n"]


def test_the_first_answer_counts_and_an_answer_beats_a_skip() -> None:
    skip = answer("a", minute=0, labels={}, skipped=True)
    first, second = answer("a", minute=2), answer("a", minute=3, labels={"policy": 0})
    other = answer("a", "bob", minute=9)
    found = [(second, "3"), (other, "4"), (first, "2"), (skip, "1")]
    for order in (found, found[::-1]):
        kept, refused = first_answers(order)
        assert kept == [first, other]
        assert {(one.place, one.reason) for one in refused} == {
            ("1", "answered again: the first counts"),
            ("3", "answered again: the first counts"),
        }


def rows(ledger: Ledger) -> list[tuple[Any, ...]]:
    return [
        (row["key"], row["task"], row["labeller"], row["label"], row["source"], row["labelled_at"])
        for row in ledger.annotations()
    ]


def test_pulling_often_and_once_give_the_same_ledger(ledger: Ledger, tmp_path: Path) -> None:
    every = [
        answer("a", minute=1, labels={"policy": 1, "unsafe": 0}),
        answer("b", minute=2, labels={}, skipped=True),
        answer("a", "bob", minute=3, labels={"policy": 0}),
        answer("c", "bob", minute=4),
    ]
    once = take_answers(ledger, 1, every)
    assert (once.labels, once.refused) == (4, [])
    assert once.answers == sorted(every, key=lambda one: one.place)
    again = take_answers(ledger, 1, every, once.answers)
    assert (again.labels, again.answers) == (0, once.answers)
    with Ledger.open(tmp_path / "other.sqlite") as other:
        chosen = [row | {"id": bytes.fromhex(row["clip_id"])} for row in ledger.candidacies()]
        fields = [{name: row.get(name) for name in CHOSEN.names} for row in chosen]
        table = pa.Table.from_pylist(fields, schema=CHOSEN)
        other.record_round(Round(1, "lsb_lt", "c", "s"), table, None)
        taken: list[Answer] = []
        for count in (1, 2, 4):
            taken = take_answers(other, 1, every[:count], taken).answers
        assert (rows(other), taken) == (rows(ledger), once.answers)
    expected = ("a", "policy", "ann", 1, "human", "2026-03-04T05:01:00+00:00")
    assert expected in rows(ledger)


def test_what_was_taken_stays(ledger: Ledger) -> None:
    first = [answer("a", labels={"policy": 1}), answer("b", labels={}, skipped=True)]
    taken = take_answers(ledger, 1, first).answers
    # Whoever was asked about is not asked about again, skipped or not answered at all.
    assert to_hex(ledger.asked_ids()) == sorted(IDS.values())
    assert to_hex(ledger.labelled_ids()) == [IDS["a"]]
    assert len(ledger.asked_ids(0)) == 0
    later = [
        answer("a", labels={"policy": 0, "unsafe": 1}),
        answer("b", minute=9, labels={"policy": 0}),
    ]
    told = take_answers(ledger, 1, later, taken)
    assert [(one.clip_id, one.reason) for one in told.refused] == [
        (IDS["a"], "changed after it was taken (policy, unsafe): the first counts")
    ]
    held = {one.clip_id: one.labels for one in told.answers}
    assert held == {IDS["a"]: {"policy": 1}, IDS["b"]: {"policy": 0}}  # a skip may be made good
    gone = take_answers(ledger, 1, [], told.answers)
    assert (gone.labels, gone.answers) == (0, told.answers)
    moved = answer("a", minute=30).model_copy(
        update={"labelled_at": first[0].labelled_at + timedelta(hours=1)}
    )
    assert take_answers(ledger, 1, [moved], told.answers).answers == told.answers
