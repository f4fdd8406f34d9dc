"""Four processes write into one ledger, one is killed and started again: none lost, none twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledger_writer import label_of, labeller_of
from postgres_server import PostgresServer
from test_ledger import record

from lsb.ids import sample_id
from lsb.ledger import ANNOTATED, SCHEMA_VERSION, Ledger
from lsb.selection import CHOSEN

HERE = Path(__file__).parent
WRITERS = 4


class Writer:
    """A process of ledger_writer.py."""

    def __init__(self, location: str, number: int, total: int, size: int, fatal: int = -1):
        numbers = [str(value) for value in (number, WRITERS, total, size, fatal)]
        self.process = subprocess.Popen(
            [sys.executable, HERE / "ledger_writer.py", location, *numbers],
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def ready(self) -> None:
        assert self.process.stdout is not None
        assert self.process.stdout.readline() == "ready\n", self.process.communicate()[1]

    def start(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def end(self) -> tuple[int, str, str]:
        out, error = self.process.communicate(timeout=120)
        return self.process.returncode, out, error


def write(location: str, total: int, size: int) -> float:
    """All of it, with a kill between an insert and its commit; returns seconds."""
    with Ledger.open(location) as ledger:
        ledger.record_round(record(1), CHOSEN.empty_table(), None)
    fatal = total // WRITERS // size // 2
    assert fatal > 2
    writers = [Writer(location, n, total, size, fatal if n == 2 else -1) for n in range(WRITERS)]
    for writer in writers:
        writer.ready()
    begin = time.monotonic()
    for writer in writers:
        writer.start()
    code, out, error = writers[2].end()
    assert (code, out) == (-signal.SIGKILL, ""), error
    again = Writer(location, 2, total, size)
    again.ready()
    again.start()
    writers[2] = again
    added = 0
    for writer in writers:
        code, out, error = writer.end()
        assert code == 0, error
        added += int(out)
    seconds = time.monotonic() - begin
    require_all(location, total)
    # What is missing was committed by the writer that did not live to tell.
    assert total - fatal * size <= added <= total
    return seconds


def require_all(location: str, total: int) -> None:
    with Ledger.open(location, create=False) as ledger, ledger.engine.connect() as connection:
        query = sa.select(ANNOTATED.c["clip_id", "task", "labeller", "round", "label"])
        held = sorted(tuple(row) for row in connection.execute(query))
    wanted = sorted(
        (sample_id(f"clip-{n:06d}").hex(), "x", labeller_of(n), 1, label_of(n))
        for n in range(total)
    )
    assert held == wanted


@pytest.mark.slow
def test_four_writers_on_postgresql_lose_nothing_and_write_nothing_twice(
    postgres: PostgresServer, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = write(postgres.new_database(), total=20_000, size=100)
    with capsys.disabled():
        print(f"\n20,000 annotations by 4 writers, each twice: {seconds:.1f} s")


def test_four_writers_on_sqlite_lose_nothing_and_write_nothing_twice(tmp_path: Path) -> None:
    write(str(tmp_path / "ledger.sqlite"), total=2_000, size=50)


def test_two_processes_that_create_one_ledger_make_one(
    ledger_location: str, tmp_path: Path
) -> None:
    code = (
        "import sys; from lsb.ledger import Ledger; sys.stdin.readline(); "
        "print(len(Ledger.open(sys.argv[1]).rounds()))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code, ledger_location],
            env={**os.environ, "PYTHONPATH": str(HERE.parents[1])},
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    told = [process.communicate("\n", timeout=60) for process in processes]
    assert [out for out, _ in told] == ["0\n"] * 4, told
    with Ledger.open(ledger_location, create=False) as ledger, ledger.engine.connect() as found:
        versions = found.execute(sa.text("SELECT version FROM schema_version")).scalars().all()
        assert versions == [SCHEMA_VERSION]


def test_schemas_hold_several_ledgers_in_one_database(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for name in ("arm1", "arm2"):
            connection.exec_driver_sql(f"CREATE SCHEMA {name}")
    engine.dispose()
    one, other = (f"{url}&options=-csearch_path%3D{name}" for name in ("arm1", "arm2"))
    with Ledger.open(one) as first, Ledger.open(other) as second:
        first.record_round(record(1), CHOSEN.empty_table(), None)
        assert ([held.round for held in first.rounds()], second.rounds()) == ([1], [])


def test_a_connection_that_the_server_closed_is_made_anew(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    with Ledger.open(url) as ledger:
        ledger.record_round(record(1), CHOSEN.empty_table(), None)
        killer = sa.create_engine(url)
        with killer.begin() as connection:
            connection.execute(
                sa.text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        killer.dispose()
        assert ledger.record_round(record(2), CHOSEN.empty_table(), None)
        assert [held.round for held in ledger.rounds()] == [1, 2]
