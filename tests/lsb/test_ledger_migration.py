"""A ledger of an older version is brought to this one whole, or not at all."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from lsb.annotate import ANNOTATIONS
from lsb.ids import sample_id
from lsb.ledger import Ledger, MergeConfig, Round, TaskThreshold
from lsb.ledger.__main__ import main
from lsb.ledger.tables import METADATA
from lsb.selection import CHOSEN

REPOSITORY = Path(__file__).parents[2]

# What release 0.1.0 wrote, as its `sqlite_master` has it.
VERSION_1 = """
CREATE TABLE schema_version (version INTEGER NOT NULL, PRIMARY KEY (version));
CREATE TABLE rounds (
    round INTEGER NOT NULL, arm VARCHAR NOT NULL, checkpoint_hash VARCHAR NOT NULL,
    store_hash VARCHAR NOT NULL, threshold_value DOUBLE,
    threshold_precision DOUBLE, threshold_pairs INTEGER, PRIMARY KEY (round));
CREATE TABLE candidates (
    round INTEGER NOT NULL, clip_id VARCHAR(32) NOT NULL, "key" VARCHAR NOT NULL,
    seed_id VARCHAR(32), seed_key VARCHAR, seed_kind VARCHAR, task VARCHAR,
    similarity DOUBLE, lookalike_threshold DOUBLE, rank INTEGER NOT NULL,
    reason VARCHAR NOT NULL, PRIMARY KEY (round, clip_id),
    FOREIGN KEY(round) REFERENCES rounds (round));
CREATE INDEX ix_candidates_key ON candidates ("key");
CREATE TABLE annotations (
    clip_id VARCHAR(32) NOT NULL, task VARCHAR NOT NULL, labeller VARCHAR NOT NULL,
    round INTEGER NOT NULL, "key" VARCHAR NOT NULL, label SMALLINT NOT NULL,
    source VARCHAR NOT NULL, labelled_at VARCHAR(32) NOT NULL,
    PRIMARY KEY (clip_id, task, labeller, round),
    CONSTRAINT known_source CHECK (source IN ('gold', 'human', 'oracle', 'pseudo')),
    FOREIGN KEY(round) REFERENCES rounds (round));
CREATE INDEX ix_annotations_key ON annotations ("key");
INSERT INTO schema_version VALUES (1);
INSERT INTO rounds VALUES (0, 'first', '', '', NULL, NULL, NULL);
INSERT INTO rounds VALUES (1, 'lsb_lt', 'c', 's', 0.7, 0.8, 240);
"""


def write_version_1(location: str) -> None:
    """A ledger as release 0.1.0 left it, with 50 labels of one labeller and some of another."""
    if "://" not in location:
        Path(location).parent.mkdir(parents=True, exist_ok=True)
    url = location if "://" in location else f"sqlite:///{location}"
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        script = VERSION_1 if url.startswith("sqlite") else _for_postgresql(VERSION_1)
        for statement in script.strip().split(";\n"):
            connection.exec_driver_sql(statement.removesuffix(";"))
        for number in range(50):
            key = f"clip-{number}"
            row = {"id": sample_id(key).hex(), "key": key, "label": number % 2}
            connection.execute(
                sa.text(
                    "INSERT INTO annotations VALUES (:id, 'x', 'ann', 0, :key, :label, 'human', "
                    "'2026-01-02T12:00:00+00:00')"
                ),
                row,
            )
            connection.execute(
                sa.text(
                    "INSERT INTO candidates VALUES (1, :id, :key, NULL, NULL, NULL, NULL, NULL, "
                    "NULL, 1, 'fill')"
                ),
                row,
            )
    engine.dispose()


def _for_postgresql(script: str) -> str:
    return script.replace("DOUBLE", "DOUBLE PRECISION")


def content(location: str) -> dict[str, list[tuple[object, ...]]]:
    engine = sa.create_engine(location if "://" in location else f"sqlite:///{location}")
    with engine.connect() as connection:
        tables = sorted(sa.inspect(connection).get_table_names())
        rows = {
            name: sorted(map(tuple, connection.execute(sa.text(f"SELECT * FROM {name}"))), key=repr)
            for name in tables
        }
    engine.dispose()
    return rows


def test_opening_for_writing_migrates_and_keeps_every_row(ledger_location: str) -> None:
    write_version_1(ledger_location)
    before = content(ledger_location)
    with Ledger.open(ledger_location) as ledger:
        # The tables are those that a new ledger has: Alembic finds no difference.
        with ledger.engine.connect() as connection:
            options = {"compare_type": True, "compare_server_default": True}
            context = MigrationContext.configure(connection, opts=options)
            assert compare_metadata(context, METADATA) == []
        assert len(ledger.labelled_ids()) == 50
        assert ledger.adjudicate(MergeConfig()).items == 0
    after = content(ledger_location)
    assert after.pop("schema_version") == [(3,)]
    new = ("adjudications", "adjudicated_from", "gold", "costs", "task_thresholds")
    assert [after.pop(name) for name in new] == [[], [], [], [], []]
    del before["schema_version"]
    assert after == before
    with Ledger.open(ledger_location) as again:  # nothing is left to do
        assert again.rounds()[1].threshold_pairs == 240


def test_new_and_migrated_ledgers_have_the_same_constraints(
    ledger_location: str, tmp_path: Path
) -> None:
    """Alembic does not compare keys and checks of SQLite; the inspector does."""
    write_version_1(ledger_location)
    with (
        Ledger.open(ledger_location) as migrated,
        Ledger.open(tmp_path / "new.sqlite") as new,
    ):
        one, other = sa.inspect(migrated.engine), sa.inspect(new.engine)
        assert sorted(one.get_table_names()) == sorted(other.get_table_names())
        for table in one.get_table_names():
            primary = [i.get_pk_constraint(table)["constrained_columns"] for i in (one, other)]
            assert primary[0] == primary[1]
            foreign = [
                sorted(
                    (key["constrained_columns"], key["referred_table"], key["referred_columns"])
                    for key in inspector.get_foreign_keys(table)
                )
                for inspector in (one, other)
            ]
            assert foreign[0] == foreign[1], table
            nullable = [
                {c["name"]: c["nullable"] for c in inspector.get_columns(table)}
                for inspector in (one, other)
            ]
            assert nullable[0] == nullable[1], table


def test_opening_for_reading_leaves_it_and_names_the_command(
    ledger_location: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_version_1(ledger_location)
    before = content(ledger_location)
    with pytest.raises(
        ValueError, match=r"version 1, this release reads 3: .*lsb.ledger migrate \S"
    ):
        Ledger.open(ledger_location, create=False)
    assert content(ledger_location) == before
    assert main(["migrate", ledger_location]) == 0
    assert "is at version 3" in capsys.readouterr().out
    assert main(["migrate", ledger_location]) == 0
    with Ledger.open(ledger_location, create=False) as ledger:
        assert ledger.import_annotations(1, ANNOTATIONS.empty_table()) == 0
        assert not ledger.record_round(ledger.rounds()[0], CHOSEN.empty_table(), None)


def test_a_round_of_version_2_is_given_its_thresholds_when_its_run_goes_on(
    ledger_location: str,
) -> None:
    thresholds = (TaskThreshold("x", "image", "calibrated", 2.5, 0.61, 40, 9),)
    held = Round(1, "lsb_lt", "c", "s")
    with Ledger.open(ledger_location) as ledger:
        ledger.record_round(held, CHOSEN.empty_table(), None)
        with ledger.engine.begin() as connection:
            connection.execute(sa.text("DROP TABLE task_thresholds"))
            connection.execute(sa.text("UPDATE schema_version SET version = 2"))
    with pytest.raises(ValueError, match="version 2, this release reads 3"):
        Ledger.open(ledger_location, create=False)
    with Ledger.open(ledger_location) as ledger:
        assert ledger.rounds() == [held]
        again = replace(held, task_thresholds=thresholds)
        assert not ledger.record_round(again, CHOSEN.empty_table(), None)
        assert ledger.rounds() == [again]


KILLED = """
import os, signal, sys
import sqlalchemy as sa
from lsb.ledger import Ledger

@sa.event.listens_for(sa.Engine, "after_cursor_execute")
def kill(connection, cursor, statement, *rest):
    if sys.argv[2] in statement:
        os.kill(os.getpid(), signal.SIGKILL)

Ledger.open(sys.argv[1])
"""


@pytest.mark.parametrize("when", ["CREATE TABLE gold", "UPDATE schema_version"])
def test_killed_in_the_migration_the_next_one_does_it_whole(
    ledger_location: str, tmp_path: Path, when: str
) -> None:
    write_version_1(ledger_location)
    before = content(ledger_location)
    driver = tmp_path / "driver.py"
    driver.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, driver, ledger_location, when]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    with Ledger.open(ledger_location) as ledger:  # waits until the server has let go of the lock
        assert len(ledger.labelled_ids()) == 50
    after = content(ledger_location)
    assert after["schema_version"] == [(3,)]
    assert after["annotations"] == before["annotations"]


def test_killed_in_the_migration_nothing_of_it_is_there(tmp_path: Path) -> None:
    location = str(tmp_path / "ledger.sqlite")
    write_version_1(location)
    before = content(location)
    driver = tmp_path / "driver.py"
    driver.write_text(KILLED)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [sys.executable, driver, location, "CREATE TABLE costs"]
    killed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert content(location) == before


def test_migrating_what_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["migrate", str(tmp_path / "absent.sqlite")]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [captured.err.strip()]
    assert "does not exist" in captured.err
    assert not (tmp_path / "absent.sqlite").exists()
