"""The database under a ledger: SQLite files and PostgreSQL servers, opened and versioned alike.

SQLite keeps its default rollback journal, because write-ahead logging needs shared memory that
network file systems do not offer; the transaction survives `kill -9` with either.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.dialects import postgresql, sqlite

from lsb.ledger.location import shown, url_of
from lsb.ledger.tables import METADATA, SCHEMA_VERSION, VERSIONS, Row

WAIT_SECONDS = 30
"""How long a writer of an SQLite file waits for another one, and a connection for a server."""
LONGEST_NAME = 63
"""Bytes of a PostgreSQL name that count."""
# One lock for each PostgreSQL database, held until the transaction ends: "lsb" in ASCII.
_WRITER_LOCK = 0x6C7362


def open_database(location: str | Path, *, create: bool, upgrade: bool) -> sa.Engine:
    """An engine over a ledger of this release's version.

    Args:
        location: path of an SQLite file, or an SQLAlchemy URL of SQLite or PostgreSQL.
        create: make the tables where there are none.
        upgrade: migrate an older version.

    Raises:
        ValueError: there is no ledger and `create` is false, it has another version, or the
            database cannot be reached or is none; says what to do.
    """
    url = url_of(location)
    if url.get_backend_name() == "sqlite" and url.database:
        path = Path(url.database)
        if not path.is_file() and not create:
            raise ValueError(f"{path} does not exist: give a ledger's path")
        path.parent.mkdir(parents=True, exist_ok=True)
    engine = _engine(url)
    try:
        _require_version(engine, create, upgrade)
    except sa.exc.DatabaseError as error:
        engine.dispose()
        cause = str(error.orig).strip().splitlines()[0]
        raise ValueError(
            f"{name_of(engine)} cannot be read as a ledger ({cause}): {_remedy(cause, url)}"
        ) from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def name_of(engine: sa.Engine) -> str:
    """The ledger's name in messages: its URL without the password."""
    return shown(engine.url)


@contextmanager
def writing(engine: sa.Engine, *, alone: bool = True) -> Iterator[sa.Connection]:
    """A transaction that writes; left by an exception it leaves nothing.

    Args:
        engine: of the ledger.
        alone: take the ledger's write lock first, so that what is read inside stays true. SQLite
            has one writer at any time and always does so.
    """
    with engine.execution_options(writing=True).begin() as connection:
        if alone and engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_WRITER_LOCK)))
        yield connection


def insert_absent(connection: sa.Connection, table: sa.Table, rows: list[Row]) -> set[Any]:
    """Insert rows whose primary key is not there yet, whoever else inserts them meanwhile.

    Args:
        connection: in a writing transaction.
        table: to insert into.
        rows: ordered by primary key, unless the ledger's write lock is held: two writers that
            insert the same rows in different orders wait for each other.

    Returns:
        Primary keys, as tuples, of the rows that were inserted.
    """
    if not rows:
        return set()
    dialect = postgresql if connection.dialect.name == "postgresql" else sqlite
    statement = dialect.insert(table).on_conflict_do_nothing()
    keys = statement.returning(*table.primary_key.columns)
    return {tuple(row) for row in connection.execute(keys, rows)}


def all_rows(connection: sa.Connection, query: sa.Select[Any]) -> list[Row]:
    """Everything a query gives, in the database's order."""
    result = connection.execute(query)
    names = tuple(result.keys())
    return [dict(zip(names, row, strict=True)) for row in result]


def version_of(engine: sa.Engine | sa.Connection) -> int | None:
    """Schema version of a ledger, None where there are no tables, 0 for tables of something else.

    An engine is asked in a transaction of its own.
    """
    if isinstance(engine, sa.Engine):
        with engine.connect() as connection:
            return version_of(connection)
    tables = sa.inspect(engine).get_table_names()
    if not tables:
        return None
    if VERSIONS.name not in tables:
        return 0
    versions = [int(version) for version in engine.execute(sa.select(VERSIONS.c.version)).scalars()]
    return versions[0] if len(versions) == 1 else 0


def _given(engine: sa.Engine) -> str:
    """What a command takes for this ledger: the path of a file, or the URL."""
    path = engine.url.database if engine.dialect.name == "sqlite" else None
    return path or name_of(engine)


def _remedy(cause: str, url: sa.URL) -> str:
    """What to do where a database refuses, by what its server says in English."""
    if f'database "{url.database}" does not exist' in cause:
        return (
            "PostgreSQL makes no database by itself: createdb --encoding=UTF8 --template=template0 "
            f"{url.database}, on its server as a user who may, or give another URL"
        )
    if "no schema has been selected" in cause:
        return "make the schema that its search_path names with CREATE SCHEMA, or give another URL"
    if "no password supplied" in cause:
        return "put the password into ~/.pgpass or the environment variable PGPASSWORD"
    return "give another path or URL, and see that a server runs there"


def _engine(url: sa.URL) -> sa.Engine:
    if url.get_backend_name() == "sqlite":
        engine = sa.create_engine(url)
        event.listen(engine, "connect", _configure_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    try:
        # Trainings lie between two writes: a connection that the server closed is made anew.
        return sa.create_engine(
            url, pool_pre_ping=True, connect_args={"connect_timeout": WAIT_SECONDS}
        )
    except ImportError as error:
        raise ValueError(
            f"a ledger in PostgreSQL needs the package psycopg ({error}): pip install "
            "'vlmae[postgres]'"
        ) from error


def _require_version(engine: sa.Engine, create: bool, upgrade: bool) -> None:
    found = version_of(engine)
    if found == SCHEMA_VERSION:
        return
    if found is None and not create:
        raise ValueError(f"{name_of(engine)} holds no ledger: give the path or URL of one")
    if found == 0 or (found is not None and found > SCHEMA_VERSION):
        raise ValueError(
            f"{name_of(engine)} has ledger schema version {found or 'none'}, this release reads "
            f"{SCHEMA_VERSION}: open it with the release that wrote it, or give another path or URL"
        )
    if found is not None and not upgrade:
        raise ValueError(
            f"{name_of(engine)} has ledger schema version {found}, this release reads "
            f"{SCHEMA_VERSION}: bring it up to date with python -m lsb.ledger migrate "
            f"{_given(engine)}"
        )
    with writing(engine) as connection:
        # Somebody else may have done it while this process waited for the lock.
        found = version_of(connection)
        if found is None:
            if connection.dialect.name == "postgresql":
                _make_schema(connection)
            METADATA.create_all(connection)
            connection.execute(sa.insert(VERSIONS), [{"version": SCHEMA_VERSION}])
        elif found < SCHEMA_VERSION:
            from lsb.ledger.migrations import migrate  # Alembic, needed once

            migrate(connection, found)


def _make_schema(connection: sa.Connection) -> None:
    """Make the schema that the URL names by its search_path, as a file's folder is made.

    Several ledgers of one database, e.g. of all arms of a run, need no set-up then.

    Raises:
        ValueError: its name is longer than PostgreSQL keeps, so that another may be the same.
    """
    asked = sa.select(sa.func.current_schema(), sa.func.current_setting("search_path"))
    current, path = connection.execute(asked).one()
    if current is not None or not re.fullmatch(r"[\w.-]+", path):
        return
    if len(path.encode()) > LONGEST_NAME:
        raise ValueError(
            f"the schema {path!r} has a name of more than {LONGEST_NAME} bytes, which PostgreSQL "
            "cuts off: give a shorter one"
        )
    # A search_path is read without regard to case, unless it is quoted.
    connection.execute(sa.schema.CreateSchema(path.lower(), if_not_exists=True))


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions by itself: it would leave some statements outside.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute(f"PRAGMA busy_timeout = {WAIT_SECONDS * 1000}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes its lock before it looks whether the round is there already.
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")
