"""Where a ledger is: the path of an SQLite file or a URL, as people write it and as a run keeps it.

What is kept beside a run, printed or logged holds no password: libpq finds one in ~/.pgpass or in
the environment.
"""

from __future__ import annotations

import re
from pathlib import Path

import sqlalchemy as sa

LOCATION_FILE = "ledger.location"
"""In the folder of an arm whose ledger is elsewhere: one line, its path or URL."""
PASSWORDS = ("password", "sslpassword")
"""Of libpq, behind the ? of a URL."""


def url_of(location: str | Path) -> sa.URL:
    """A location as a URL of SQLAlchemy.

    Args:
        location: path of an SQLite file, or a URL of SQLite or PostgreSQL.

    Raises:
        ValueError: it is no URL, or one of something else; the message leaves out what may be a
            password.
    """
    if not isinstance(location, str) or "://" not in location:
        if re.match(r"postgres\w*(\+\w+)?:", str(location)):
            raise ValueError(
                "the ledger's URL has no :// in it: write postgresql+psycopg://user@host/database"
            )
        return sa.URL.create("sqlite", database=str(location))
    try:
        url = sa.make_url(location)
    except (sa.exc.ArgumentError, ValueError) as error:
        raise ValueError(
            "the ledger's URL cannot be read: write postgresql+psycopg://user@host/database"
        ) from error
    if url.drivername in ("postgresql", "postgres"):
        url = url.set(drivername="postgresql+psycopg")
    if url.get_backend_name() not in ("sqlite", "postgresql"):
        raise ValueError(
            f"a ledger is an SQLite file or a PostgreSQL database, not {url.drivername!r}: give a "
            "path, or postgresql+psycopg://user@host/database"
        )
    return url


def shown(url: sa.URL) -> str:
    """A URL for messages, without its passwords."""
    return url.difference_update_query(_passwords(url)).render_as_string(hide_password=True)


def require_no_password(key: str, location: str | Path) -> None:
    """Refuse a location that cannot be kept with a run.

    Args:
        key: of the config, for the message.
        location: path or URL.

    Raises:
        ValueError: it holds a password, or see `url_of`; the message does not show it.
    """
    url = url_of(location)
    if url.password is not None or _passwords(url):
        raise ValueError(
            f"{key} is {shown(url)} with a password, which would be kept with the run: leave it "
            "out, and put it into ~/.pgpass or the environment variable PGPASSWORD"
        )


def kept_location(folder: Path) -> str | None:
    """Where the ledger of an arm is, as the arm's folder says; None where it says nothing."""
    file = folder / LOCATION_FILE
    return file.read_text(encoding="utf-8").strip() if file.is_file() else None


def _passwords(url: sa.URL) -> list[str]:
    return [name for name in url.query if name.lower() in PASSWORDS]
