"""Labels of several people: imported, compared with gold, adjudicated, asked again, paid."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import pyarrow as pa
import pytest
import sqlalchemy as sa
from test_ledger import NOON, chosen, labels, record

from lsb.annotate import ANNOTATIONS
from lsb.ids import sample_id
from lsb.ledger import GOLD_LABELS, QUEUE, Ledger, MergeConfig
from lsb.ledger.tables import METADATA
from lsb.selection import CHOSEN

CLIPS = ("a", "b", "c", "d")


def content(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    with ledger.engine.connect() as connection:
        return {
            table.name: sorted(map(tuple, connection.execute(sa.select(table))), key=repr)
            for table in METADATA.sorted_tables
        }


def answers(labeller: str, given: dict[str, int], task: str = "x") -> pa.Table:
    return labels({(clip, task): label for clip, label in given.items()}, "human", labeller)


def gold(known: dict[str, int], task: str = "x") -> pa.Table:
    rows = [
        {"id": sample_id(clip), "key": clip, "task": task, "label": label}
        for clip, label in known.items()
    ]
    return pa.Table.from_pylist(rows, schema=GOLD_LABELS)


def trained(ledger: Ledger, *arguments: Any) -> dict[str, tuple[int, int, str]]:
    table = ledger.training_set(*arguments)
    return {r["key"]: (r["label_x"], r["round"], r["source"]) for r in table.to_pylist()}


@pytest.fixture
def ledger(ledger_location: str) -> Iterator[Ledger]:
    """Round 1 asked for four clips and has no label yet."""
    with Ledger.open(ledger_location) as ledger:
        ledger.record_round(record(1), chosen(*CLIPS), None)
        yield ledger


def test_labels_are_imported_once_however_often_they_come(ledger: Ledger) -> None:
    first = answers("ann", {"a": 1, "b": 0})
    moments = [NOON, NOON + timedelta(minutes=1)]
    assert ledger.import_annotations(1, first, labelled_at=moments) == 2
    assert ledger.annotations("b")[0]["labelled_at"] == "2026-01-02T12:01:00+00:00"
    before = content(ledger)
    assert ledger.import_annotations(1, first.take([1, 0])) == 0
    assert content(ledger) == before
    # A page that overlaps with the last one, and another person.
    assert ledger.import_annotations(1, answers("ann", {"b": 0, "c": 1})) == 1
    assert ledger.import_annotations(1, answers("bob", {"b": 1})) == 1
    # The run goes on and writes its round again: labels that came in between are no difference.
    assert not ledger.record_round(record(1), chosen(*CLIPS), None)
    with pytest.raises(ValueError, match="4 annotations there, 2 now"):
        ledger.record_round(record(1), chosen(*CLIPS), first)


@pytest.mark.parametrize(
    ("table", "number", "options", "message"),
    [
        (answers("ann", {"d": 1, "a": 0}), 1, {},
         r"label of clip 'a', task 'x' by 'ann' in round 1 is 1 in the ledger, 0 now: .*round"),
        (labels({("a", "x"): 1}, "oracle", "ann"), 1, {}, r"source of clip 'a'.*'human' in the"),
        (answers("ann", {"d": 1}), 2, {}, r"round 2 is not in the ledger .*only \[1\]: record"),
        (pa.concat_tables([answers("zoe", {"d": 1})] * 2), 1, {}, "hold clip 'd' twice"),
        (answers("zoe", {"d": 1}), 1, {"labelled_at": [NOON, NOON]}, "1 annotations but 2 times"),
        (answers("zoe", {"d": 1}), 1, {"labelled_at": datetime(2026, 1, 1)}, "no time zone"),
        (answers("zoe", {"d": 1}).set_column(3, ANNOTATIONS.field(3), pa.array([None], pa.int8())),
         1, {}, "clip 'd' has an annotation without label: leave out"),
        (answers("zoe", {"d": 1}).set_column(1, "key", pa.array(["e"])), 1, {},
         r"clip 'e' has id .*, its key gives .*sample_id"),
    ],
)  # fmt: skip
def test_labels_that_cannot_be_right_are_refused_and_nothing_is_written(
    ledger: Ledger, table: pa.Table, number: int, options: dict[str, Any], message: str
) -> None:
    ledger.import_annotations(1, answers("ann", {"a": 1}))
    before = content(ledger)
    with pytest.raises(ValueError, match=message):
        ledger.import_annotations(number, table, **options)
    assert content(ledger) == before


def test_disagreement_goes_to_the_queue_and_comes_back_resolved(ledger: Ledger) -> None:
    ledger.import_annotations(1, answers("ann", {"a": 1, "b": 0, "c": 1, "d": 1}))
    ledger.import_annotations(1, answers("Bob", {"a": 1, "b": 1, "c": 0}))
    assert trained(ledger) == {  # by name, as long as nobody has adjudicated
        "a": (1, 1, "human"), "b": (1, 1, "human"), "c": (0, 1, "human"), "d": (1, 1, "human"),
    }  # fmt: skip
    raw = content(ledger)["annotations"]
    done = ledger.adjudicate(MergeConfig(), at=NOON)
    assert (done.items, done.resolved, done.recorded) == (3, 1, 3)
    assert trained(ledger) == {"a": (1, 1, "human"), "d": (1, 1, "human")}
    queue = ledger.queue()
    assert queue.schema == QUEUE
    rows = {row["key"]: (row["labellers"], row["labels"]) for row in queue.to_pylist()}
    assert rows == {"b": (["Bob", "ann"], [1, 0]), "c": (["Bob", "ann"], [0, 1])}
    assert queue["id"].to_pylist() == sorted(sample_id(clip) for clip in ("b", "c"))

    # Again, nothing has changed; another policy is another decision.
    before = content(ledger)
    assert ledger.adjudicate(MergeConfig()).recorded == 0
    assert content(ledger) == before
    ledger.record_round(record(2), CHOSEN.empty_table(), answers("cy", {"b": 1}))
    done = ledger.adjudicate(MergeConfig(), at=NOON + timedelta(days=1))
    assert (done.items, done.resolved, done.recorded) == (3, 2, 1)
    assert trained(ledger) == {
        "a": (1, 1, "human"), "b": (1, 2, "human"), "d": (1, 1, "human"),
    }  # fmt: skip
    # As it was after round 1.
    assert trained(ledger, 1) == {"a": (1, 1, "human"), "d": (1, 1, "human")}
    assert ledger.queue()["key"].to_pylist() == ["c"]
    first, second = ledger.adjudications("b")
    assert (first["label"], first["confidence"], second["label"]) == (None, 0.5, 1)
    assert second["confidence"] == pytest.approx(2 / 3)
    assert first["evidence"] == {("ann", 1), ("Bob", 1)}
    assert second["evidence"] == {("ann", 1), ("Bob", 1), ("cy", 2)}
    assert second["policy"] == (
        "majority(agreement=0.5, minimum_annotators=1, sources=human+oracle)"
    )
    assert second["adjudicated_at"] == "2026-01-03T12:00:00+00:00"
    assert ledger.adjudicate(MergeConfig(agreement=0.9)).recorded == 3
    # Both are kept: what people said, and what was made of it.
    assert set(raw) < set(content(ledger)["annotations"])


def test_what_an_adjudication_would_leave_open_is_told_without_one(ledger: Ledger) -> None:
    ledger.import_annotations(1, answers("ann", {"a": 1, "b": 1, "c": 1}))
    ledger.import_annotations(1, answers("bob", {"a": 1, "b": 0, "c": 0}))
    ledger.add_gold(gold({"c": 1}))
    held = content(ledger)
    told = ledger.undecided(MergeConfig(), 1)
    assert content(ledger) == held
    assert told == {(sample_id("b").hex(), "x")}
    assert ledger.undecided(MergeConfig(minimum_annotators=3), 1) == told | {
        (sample_id("a").hex(), "x")
    }
    assert ledger.undecided(MergeConfig(), 0) == set()
    ledger.adjudicate(MergeConfig())
    assert {(row["id"].hex(), row["task"]) for row in ledger.queue().to_pylist()} == told


def test_adjudications_of_other_sources_are_not_used(ledger: Ledger) -> None:
    ledger.import_annotations(1, answers("ann", {"a": 1}))
    ledger.import_annotations(1, labels({("a", "x"): 0}, "oracle", "oracle"))
    ledger.import_annotations(1, labels({("a", "x"): 0}, "pseudo", "model"))
    ledger.adjudicate(MergeConfig())
    assert ledger.training_set().num_rows == 0
    assert trained(ledger, None, ["human"]) == {"a": (1, 1, "human")}
    assert trained(ledger, None, ["oracle", "pseudo"]) == {"a": (0, 1, "oracle")}
    with pytest.raises(ValueError, match=r"pseudo.*give some of human, oracle"):
        MergeConfig(sources=("human", "oracle", "pseudo"))  # a model never votes beside people
    ledger.import_annotations(1, answers("bob", {"a": 0}))
    ledger.adjudicate(MergeConfig())
    assert trained(ledger) == {"a": (0, 1, "oracle")}  # the least trusted is named
    ledger.import_annotations(1, labels({("a", "x"): 1}, "gold", "release"))
    assert trained(ledger) == {"a": (1, 1, "gold")}
    assert ledger.adjudicate(MergeConfig()).items == 0


def test_gold_measures_annotators_and_never_trains(ledger: Ledger) -> None:
    ledger.import_annotations(1, answers("ann", {"a": 1, "b": 0, "c": 1}))
    ledger.import_annotations(1, answers("bob", {"a": 0, "c": 0}))
    ledger.import_annotations(1, labels({("d", "x"): 0}, "gold", "release"))
    ledger.import_annotations(1, answers("bob", {"d": 0}))
    assert ledger.add_gold(gold({"a": 1, "b": 1})) == 2
    before = content(ledger)
    assert ledger.add_gold(gold({"b": 1})) == 0
    assert content(ledger) == before
    with pytest.raises(ValueError, match=r"gold label of clip 'b', task 'x' is 1 in the .*, 0 now"):
        ledger.add_gold(gold({"zzz": 1, "b": 0}))
    assert content(ledger) == before
    ann, bob = ledger.quality()
    assert (ann.labeller, ann.annotations, ann.gold, ann.correct) == ("ann", 3, 2, 1)
    assert (bob.labeller, bob.annotations, bob.gold, bob.correct) == ("bob", 3, 2, 1)
    assert ann.low is not None
    assert ann.high is not None
    assert ann.low < 0.5 < ann.high
    # a and b are known, d has a gold annotation: only c is a question.
    assert ledger.adjudicate(MergeConfig()).items == 1
    assert trained(ledger) == {"d": (0, 1, "gold")}
    assert ledger.queue()["key"].to_pylist() == ["c"]
    ledger.add_gold(gold({"c": 0}))
    assert ledger.queue().num_rows == 0
    with pytest.raises(ValueError, match="gold labels have columns"):
        ledger.add_gold(answers("ann", {"a": 1}))


def test_gold_weights_come_from_the_ledger(ledger: Ledger) -> None:
    known = {f"g{n}": n % 2 for n in range(10)}
    wrong = {clip: 1 - label for clip, label in known.items()}
    ledger.import_annotations(1, answers("good", {**known, "a": 1}))
    ledger.import_annotations(1, answers("bad", {**wrong, "a": 0}))
    ledger.import_annotations(1, answers("worse", {**wrong, "a": 0}))
    ledger.add_gold(gold(known))
    assert ledger.adjudicate(MergeConfig("gold_weighted")).resolved == 1
    assert trained(ledger) == {"a": (1, 1, "human")}
    assert ledger.adjudicate(MergeConfig("majority")).recorded == 1
    assert trained(ledger) == {"a": (0, 1, "human")}


def test_dawid_skene_on_a_ledger(ledger: Ledger) -> None:
    pytest.importorskip("crowdkit", reason="no crowd-kit: pip install 'vlmae[crowd]'")
    clips = [f"c{n}" for n in range(30)]
    for labeller in ("one", "two"):
        ledger.import_annotations(1, answers(labeller, dict.fromkeys(clips, 1)))
    ledger.import_annotations(1, answers("contrary", dict.fromkeys(clips, 0)))
    done = ledger.adjudicate(MergeConfig("dawid_skene"))
    assert (done.items, done.resolved) == (30, 30)
    assert {label for label, *_ in trained(ledger).values()} == {1}


def test_costs_are_written_once(ledger: Ledger) -> None:
    assert ledger.record_cost(1, "ann", 0.25, 40)
    assert not ledger.record_cost(1, "ann", 0.25, 40)
    assert ledger.record_cost(1, "ann", 0.25, 2, entry="second batch")
    with pytest.raises(ValueError, match=r"40 labels of 'ann' at 0\.25 as entry '', 41 at 0\.25"):
        ledger.record_cost(1, "ann", 0.25, 41)
    with pytest.raises(ValueError, match="round 9 is not in the ledger"):
        ledger.record_cost(9, "ann", 0.25, 40)
    for price, count in ((-1.0, 1), (float("inf"), 1), (float("nan"), 1), (1.0, -1)):
        with pytest.raises(ValueError, match="are no cost: give numbers of 0 or more"):
            ledger.record_cost(1, "ann", price, count)
    assert [(row["entry"], row["count"]) for row in ledger.costs()] == [
        ("", 40), ("second batch", 2),
    ]  # fmt: skip


def test_many_labels_are_compared_by_pages_of_clips(ledger: Ledger) -> None:
    many = {f"clip-{n}": n % 2 for n in range(1200)}
    assert ledger.import_annotations(1, answers("ann", many)) == 1200
    assert ledger.import_annotations(1, answers("ann", {**many, "new": 1})) == 1
    last = max(many, key=sample_id)
    with pytest.raises(ValueError, match=f"label of clip '{last}'"):
        ledger.import_annotations(1, answers("ann", {**many, last: 1 - many[last]}))
