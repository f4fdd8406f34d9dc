"""A private PostgreSQL server; `from postgres_server import postgres` in a conftest.

Debian's server (`apt-get install postgresql`), in a cluster of its own below a temporary folder. It
listens on a Unix socket in that folder alone, and its text is ordered by ICU's English rules, as in
many real databases and unlike Python's.
"""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

HOW = "apt-get install postgresql (version 15 or newer), pip install 'psycopg[binary]'"
START_SECONDS = 60


def binaries() -> Path | None:
    """Folder of initdb and postgres, the newest where there are several."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    versions = sorted(
        Path("/usr/lib/postgresql").glob("*/bin/initdb"),
        key=lambda path: int(path.parts[-3]) if path.parts[-3].isdigit() else 0,
    )
    return versions[-1].parent if versions else None


class PostgresServer:
    """A cluster in `folder`, and its server, which is this process's child."""

    def __init__(self, programs: Path, folder: Path):
        self.folder = folder
        self._numbers = itertools.count(1)
        who: dict[str, Any] = {}
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            entry = next(e for e in map(_user, ("postgres", "nobody")) if e is not None)
            who = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
            os.chown(folder, entry.pw_uid, entry.pw_gid)
        self._log = folder / "server.log"
        data = folder / "data"
        collation = ["--locale-provider=icu", "--icu-locale=en-US", "--locale=C.UTF-8"]
        made = subprocess.run(
            [programs / "initdb", "--pgdata", data, "--username=tester", "--auth=trust",
             "--encoding=UTF8", "--no-sync", *collation],
            cwd=folder, capture_output=True, text=True, check=False, **who,
        )  # fmt: skip
        assert made.returncode == 0, f"initdb failed: {made.stdout}{made.stderr}"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                [programs / "postgres", "-D", data, "-k", folder, "-c", "listen_addresses=",
                 "-c", "max_connections=40", "-c", "shared_buffers=16MB", "-c", "fsync=off"],
                cwd=folder, stdout=log, stderr=log, stdin=subprocess.DEVNULL, **who,
            )  # fmt: skip
        self._wait()

    def new_database(self) -> str:
        """URL of an empty database."""
        name = f"ledger{next(self._numbers)}"
        self._execute(f"CREATE DATABASE {name}")
        return self._url(name)

    def close(self) -> None:
        """End the server."""
        self._process.send_signal(signal.SIGQUIT)  # "immediate": the data are thrown away
        self._process.wait(timeout=START_SECONDS)

    def _url(self, database: str) -> str:
        return f"postgresql+psycopg://tester@/{database}?host={self.folder}"

    def _execute(self, statement: str) -> None:
        engine = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql(statement)
        finally:
            engine.dispose()

    def _wait(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                return self._execute("SELECT 1")
            except sa.exc.OperationalError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise AssertionError(f"no server: {self._log.read_text()}") from None
                time.sleep(0.05)


def _user(name: str) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwnam(name)
    except KeyError:
        return None


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """The server, for the session."""
    programs = binaries()
    if programs is None:
        pytest.skip(f"no PostgreSQL server is installed: {HOW}")
    pytest.importorskip("psycopg", reason=f"no psycopg is installed: {HOW}")
    # Not below pytest's folder, which no other user may enter.
    folder = Path(tempfile.mkdtemp(prefix="vlmae-postgres-"))
    try:
        server = PostgresServer(programs, folder)
        try:
            yield server
        finally:
            server.close()
    finally:
        shutil.rmtree(folder)
