from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import sqlalchemy as sa

from lsb.annotate import annotation_table
from lsb.ids import sample_id, to_hex
from lsb.ledger import ANNOTATED, Ledger, Round
from lsb.selection import CHOSEN

NOON = datetime(2026, 1, 2, 12, tzinfo=UTC)


def chosen(*keys: str, seed: str | None = None, similarity: float = 0.875) -> pa.Table:
    return pa.Table.from_pylist(
        [
            {
                "id": sample_id(key),
                "key": key,
                "seed_id": sample_id(seed) if seed else None,
                "seed_key": seed,
                "kind": "confident_error" if seed else None,
                "task": "x" if seed else None,
                "similarity": float(np.float32(similarity)) if seed else None,
                "lookalike_threshold": 0.7 if seed else None,
                "rank": rank,
                "reason": "lookalike" if seed else "fill",
            }
            for rank, key in enumerate(keys, start=1)
        ],
        schema=CHOSEN,
    )


def labels(
    answers: dict[tuple[str, str], int], source: str = "oracle", labeller: str = "oracle:noise=0.0"
) -> pa.Table:
    names = [key for key, _ in answers]
    tasks = [task for _, task in answers]
    ids = [sample_id(key) for key in names]
    return annotation_table(
        ids, names, tasks, list(answers.values()), source=source, labeller=labeller
    )


def record(number: int = 0, arm: str = "lsb_lt") -> Round:
    return Round(number, arm, "c" * 32, "s" * 32, 0.7, 0.81, 240)


def content(ledger: Ledger) -> dict[str, list[tuple[object, ...]]]:
    with ledger.engine.connect() as connection:
        return {
            name: sorted(map(tuple, connection.execute(sa.text(f"SELECT * FROM {name}"))), key=repr)
            for name in ("rounds", "candidates", "annotations", "schema_version")
        }


@pytest.fixture
def ledger(ledger_location: str) -> Iterator[Ledger]:
    with Ledger.open(ledger_location) as ledger:
        yield ledger


def test_records_and_gives_back(ledger: Ledger, ledger_location: str) -> None:
    table = chosen("b", "a", seed="gold", similarity=0.1)
    assert ledger.record_round(record(), table, labels({("a", "x"): 1}), labelled_at=NOON)
    ledger.close()
    with Ledger.open(ledger_location, create=False) as again:
        assert again.rounds() == [record()]
        row = again.candidacies("b")[0]
        assert row["similarity"] == float(np.float32(0.1))
        assert (row["seed_key"], row["seed_kind"], row["reason"]) == (
            "gold", "confident_error", "lookalike",
        )  # fmt: skip
        assert (row["checkpoint_hash"], row["threshold_pairs"], row["arm"]) == (
            "c" * 32, 240, "lsb_lt",
        )  # fmt: skip
        assert [label["labelled_at"] for label in again.annotations("a")] == [
            "2026-01-02T12:00:00+00:00"
        ]
        assert again.keys() == ["a", "b"]
        assert to_hex(again.labelled_ids()) == [sample_id("a").hex()]


def test_writing_a_round_again_changes_nothing(ledger: Ledger) -> None:
    answers = labels({("a", "x"): 1, ("b", "x"): 0})
    table = chosen("a", "b", seed="gold")
    assert ledger.record_round(record(), table, answers, labelled_at=NOON)
    before = content(ledger)
    shuffled = table.take([1, 0])
    assert not ledger.record_round(record(), shuffled, answers.take([1, 0]))
    assert content(ledger) == before


@pytest.mark.parametrize(
    ("table", "answers", "arm", "message"),
    [
        (chosen("a", seed="g"), {("a", "x"): 0}, "lsb_lt",
         r"annotations\.label of clip 'a' is 1 there, 0 now"),
        (chosen("a", seed="h"), {("a", "x"): 1}, "lsb_lt",
         r"candidates\.seed_id of clip 'a' is '"),
        (chosen("a", "b", seed="g"), {("a", "x"): 1}, "lsb_lt", "1 candidates there, 2 now"),
        (chosen("a", seed="g"), {}, "lsb_lt", "1 annotations there, 0 now"),
        (chosen("a", seed="g"), {("a", "x"): 1}, "random",
         r"rounds\.arm is 'lsb_lt' there, 'random' now"),
    ],
)  # fmt: skip
def test_other_content_for_the_same_round_is_refused(
    ledger: Ledger, table: pa.Table, answers: dict[tuple[str, str], int], arm: str, message: str
) -> None:
    ledger.record_round(record(), chosen("a", seed="g"), labels({("a", "x"): 1}), labelled_at=NOON)
    before = content(ledger)
    with pytest.raises(ValueError, match=f"round 0 is in the ledger .*{message}.*new"):
        ledger.record_round(record(arm=arm), table, labels(answers))
    assert content(ledger) == before


def test_training_set_and_its_conflict_rule(ledger: Ledger) -> None:
    gold = labels({("g", "x"): 1, ("a", "x"): 0}, "gold", "release")
    first = labels({("a", "x"): 1, ("a", "y"): 1, ("b", "x"): 0})
    second = labels({("b", "x"): 1, ("c", "y"): 0})
    pseudo = labels({("b", "x"): 0, ("p", "x"): 1}, "pseudo", "model")
    none = CHOSEN.empty_table()
    ledger.record_round(record(0), none, gold)
    ledger.record_round(record(1), chosen("a", "b"), first)
    ledger.record_round(record(2), chosen("c"), second)
    ledger.record_round(record(3), none, pseudo)
    table = ledger.training_set()
    assert table.column_names == ["id", "key", "round", "label_x", "label_y", "source"]
    assert table.schema.field("label_x").type == pa.int8()
    assert table["id"].to_pylist() == sorted(table["id"].to_pylist())
    rows = {
        row["key"]: (row["label_x"], row["label_y"], row["round"], row["source"])
        for row in table.to_pylist()
    }
    assert rows == {
        "g": (1, None, 0, "gold"),
        "a": (0, 1, 0, "oracle"),  # x from gold, y from the oracle: the less trusted is named
        "b": (1, None, 2, "oracle"),  # later round wins, and pseudo never does
        "c": (None, 0, 2, "oracle"),
        "p": (1, None, 3, "pseudo"),
    }
    early = ledger.training_set(1, ["oracle"])
    assert {r["key"]: (r["label_x"], r["label_y"]) for r in early.to_pylist()} == {
        "a": (1, 1), "b": (0, None),
    }  # fmt: skip
    assert len(ledger.labelled_ids(1)) == 3
    assert ledger.training_set(sources=["human"]).num_rows == 0
    with pytest.raises(ValueError, match="source 'guess' is unknown"):
        ledger.training_set(sources=["guess"])


def test_pseudo_labels_count_in_their_round_alone_and_bar_nobody(ledger: Ledger) -> None:
    none = CHOSEN.empty_table()
    asked = labels({("a", "x"): 1})
    ledger.record_round(record(0), none, asked)
    ledger.record_round(record(1), none, labels({("b", "x"): 1}))
    ledger.import_annotations(1, labels({("p", "x"): 1, ("q", "x"): 0}, "pseudo", "pseudo:one"))
    ledger.record_round(record(2), none, labels({("p", "x"): 0}))
    ledger.import_annotations(2, labels({("p", "x"): 1, ("r", "x"): 1}, "pseudo", "pseudo:two"))

    def trained(through: int | None) -> dict[str, tuple[int, str]]:
        rows = ledger.training_set(through).to_pylist()
        return {row["key"]: (row["label_x"], row["source"]) for row in rows}

    people = {"a": (1, "oracle"), "b": (1, "oracle")}
    assert trained(0) == {"a": (1, "oracle")}
    assert trained(1) == {**people, "p": (1, "pseudo"), "q": (0, "pseudo")}
    # q is withdrawn with the model that labelled it; what the oracle says of p counts.
    assert trained(2) == trained(None) == {**people, "p": (0, "oracle"), "r": (1, "pseudo")}
    ledger.record_round(record(3), none, None)
    assert trained(None) == {**people, "p": (0, "oracle")}, "round 3 has none yet"
    assert len(ledger.labelled_ids(1)) == 2, "q may still be asked about"
    # A run that goes on records its rounds again, before it makes its pseudo-labels.
    assert not ledger.record_round(record(1), none, labels({("b", "x"): 1}))
    with pytest.raises(ValueError, match="with other content"):
        ledger.record_round(record(1), none, labels({("b", "x"): 0}))


def test_ids_with_trailing_nul_bytes_survive(ledger: Ledger) -> None:
    number = next(n for n in range(10_000) if sample_id(f"clip-{n}").endswith(b"\0"))
    key = f"clip-{number}"
    ledger.record_round(record(), chosen(key), labels({(key, "x"): 1}))
    assert ledger.training_set()["id"].to_pylist() == [sample_id(key)]
    assert ledger.labelled_ids().tobytes() == sample_id(key)


def test_bad_tables_and_times_are_refused(ledger: Ledger) -> None:
    twice = pa.concat_tables([labels({("a", "x"): 1})] * 2)
    with pytest.raises(ValueError, match="annotations hold clip 'a' twice"):
        ledger.record_round(record(), chosen("a"), twice)
    with pytest.raises(ValueError, match="candidates hold clip 'a' twice"):
        ledger.record_round(record(), chosen("a", "a"), labels({}))
    with pytest.raises(ValueError, match="has no time zone"):
        ledger.record_round(record(), chosen("a"), labels({}), labelled_at=datetime(2026, 1, 1))
    with pytest.raises(ValueError, match="annotations have columns"):
        ledger.record_round(record(), chosen("a"), chosen("a"))
    bad = labels({("a", "x"): 1}).set_column(4, "source", pa.array(["guess"]))
    with pytest.raises(ValueError, match="clip 'a' has source 'guess'"):
        ledger.record_round(record(), chosen("a"), bad)
    assert content(ledger)["rounds"] == []


def test_times_are_stored_in_utc(ledger: Ledger) -> None:
    moment = NOON.astimezone(timezone(timedelta(hours=5)))
    ledger.record_round(record(), chosen("a"), labels({("a", "x"): 1}), labelled_at=moment)
    assert ledger.annotations("a")[0]["labelled_at"] == "2026-01-02T12:00:00+00:00"


def test_database_itself_refuses_orphans_and_unknown_sources(ledger: Ledger) -> None:
    row = {
        "clip_id": "0" * 32, "task": "x", "labeller": "me", "round": 9, "key": "a", "label": 1,
        "source": "human", "labelled_at": "now",
    }  # fmt: skip
    with pytest.raises(sa.exc.IntegrityError), ledger.engine.begin() as connection:
        connection.execute(sa.insert(ANNOTATED), [row])
    ledger.record_round(record(9), CHOSEN.empty_table(), labels({}))
    with pytest.raises(sa.exc.IntegrityError), ledger.engine.begin() as connection:
        connection.execute(sa.insert(ANNOTATED), [{**row, "source": "guess"}])


def test_a_newer_version_is_refused(ledger: Ledger, ledger_location: str) -> None:
    with ledger.engine.begin() as connection:
        connection.execute(sa.text("UPDATE schema_version SET version = 99"))
    ledger.close()
    for create in (True, False):
        with pytest.raises(ValueError, match="version 99, this release reads 3: open it with"):
            Ledger.open(ledger_location, create=create)


def test_other_files_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign.sqlite"
    with sqlite3.connect(foreign) as connection:
        connection.execute("CREATE TABLE t (a)")
    connection.close()
    with pytest.raises(ValueError, match="schema version none"):
        Ledger.open(foreign)
    text = tmp_path / "notes.txt"
    text.write_text("not a database " * 100)
    with pytest.raises(ValueError, match="cannot be read as a ledger"):
        Ledger.open(text)
    with pytest.raises(ValueError, match="does not exist"):
        Ledger.open(tmp_path / "absent.sqlite", create=False)
    assert not (tmp_path / "absent.sqlite").exists()


KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
import sqlalchemy as sa
from test_ledger import chosen, labels, record
from lsb.ledger import Ledger

ledger = Ledger.open(sys.argv[1])
when = sys.argv[3]

@sa.event.listens_for(ledger.engine, "after_cursor_execute")
def kill(connection, cursor, statement, *rest):
    if when in statement:
        os.kill(os.getpid(), signal.SIGKILL)

@sa.event.listens_for(ledger.engine, "commit")
def kill_at_commit(connection):
    if when == "COMMIT":
        os.kill(os.getpid(), signal.SIGKILL)

keys = [f"clip-{n}" for n in range(3000)]
ledger.record_round(record(1), chosen(*keys), labels({(k, "x"): 1 for k in keys}))
"""


@pytest.mark.parametrize(
    "when", ["INSERT INTO rounds", "INSERT INTO candidates", "INSERT INTO annotations", "COMMIT"]
)
def test_kill_in_the_transaction_leaves_nothing_of_it(
    ledger_location: str, tmp_path: Path, when: str
) -> None:
    path = ledger_location
    with Ledger.open(path) as ledger:
        ledger.record_round(record(0), chosen("a"), labels({("a", "x"): 1}), labelled_at=NOON)
        before = content(ledger)
    driver = tmp_path / "driver.py"
    driver.write_text(KILLED)
    repository = Path(__file__).parents[2]

    killed = subprocess.run(
        [sys.executable, driver, path, Path(__file__).parent, when],
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Ledger.open(path) as ledger:
        assert content(ledger) == before
        # What the killed process tried is written by the next one.
        keys = [f"clip-{n}" for n in range(3000)]
        ledger.record_round(record(1), chosen(*keys), labels({(key, "x"): 1 for key in keys}))
        after = content(ledger)
    assert (len(after["candidates"]), len(after["annotations"])) == (3001, 3001)
