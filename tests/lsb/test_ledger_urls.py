"""URLs of ledgers: passwords are never shown or kept, and a server says what is lacking."""

from __future__ import annotations

from pathlib import Path

import pytest
from postgres_server import PostgresServer

from lsb.ledger import Ledger, Round, require_no_password
from lsb.ledger.location import shown, url_of
from lsb.selection import CHOSEN

SECRET = (
    "postgresql://me:secret@db/growth",
    "postgresql://me@db/growth?password=secret",
    "postgresql+psycopg://me@db/growth?sslmode=require&SSLPassword=secret",
)


@pytest.mark.parametrize("location", SECRET)
def test_a_password_is_refused_and_never_shown(location: str) -> None:
    assert "secret" not in shown(url_of(location))
    with pytest.raises(ValueError, match=r"key is postgresql\+psycopg.*~/\.pgpass") as refused:
        require_no_password("key", location)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "location",
    ["growth.sqlite", "sqlite:///growth.sqlite", "postgresql://me@db/growth?passfile=/me/.pgpass"],
)
def test_what_has_none_is_taken(location: str) -> None:
    require_no_password("key", location)


def test_a_url_without_its_slashes_is_no_path() -> None:
    with pytest.raises(ValueError, match="has no :// in it") as refused:
        url_of("postgresql:/me:secret@db/growth")
    assert "secret" not in str(refused.value)


def test_an_absent_database_names_createdb(postgres: PostgresServer) -> None:
    location = postgres.new_database().replace("/ledger", "/absent")
    with pytest.raises(ValueError, match=r"createdb .* absent") as refused:
        Ledger.open(location)
    assert len(str(refused.value).splitlines()) == 1


def test_ledgers_of_one_database_are_made_with_their_schemas(postgres: PostgresServer) -> None:
    database = postgres.new_database()
    first, second = (
        f"{database}&options=-csearch_path%3D{name}" for name in ("Run_1.lsb_lt", "run-1.7")
    )
    with pytest.raises(ValueError, match="holds no ledger"):
        Ledger.open(first, create=False)
    with Ledger.open(first) as ledger, Ledger.open(second) as other:
        assert ledger.record_round(Round(0, "first", "", ""), CHOSEN.empty_table(), None)
        assert other.rounds() == []
    with Ledger.open(first, create=False) as ledger:
        assert [held.round for held in ledger.rounds()] == [0]
    with pytest.raises(ValueError, match="holds no ledger"):
        Ledger.open(database, create=False)


@pytest.mark.parametrize(
    ("path", "message"), [("a" * 64, "more than 63 bytes"), ("a,b", "CREATE SCHEMA")]
)
def test_a_schema_that_cannot_be_made_is_refused(
    path: str, message: str, postgres: PostgresServer
) -> None:
    location = f"{postgres.new_database()}&options=-csearch_path%3D{path}"
    with pytest.raises(ValueError, match=message):
        Ledger.open(location)


def test_a_file_needs_no_schema(tmp_path: Path) -> None:
    with Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite") as ledger:
        assert ledger.rounds() == []
