"""Arrow tables as rows of the ledger, checked, and comparison with rows that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from typing import Any

import pyarrow as pa
import sqlalchemy as sa

from lsb.annotate import ANNOTATIONS, SOURCES
from lsb.ids import ID_TYPE, sample_id
from lsb.ledger.database import name_of
from lsb.ledger.tables import Row

GOLD_FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "key": pa.string(),
    "task": pa.string(),
    "label": pa.int8(),
}
GOLD_LABELS = pa.schema(GOLD_FIELDS)

ANNOTATION_KEY = ("clip_id", "task", "labeller")
_NAMED = (("key", "clip"), ("task", "task"))
# SQLite before 3.32 takes 999 parameters in one statement.
_CLIPS_A_QUERY = 500


def utc_text(moment: datetime) -> str:
    """A time as the ledger stores it: UTC, whole seconds.

    Raises:
        ValueError: it has no time zone.
    """
    if moment.tzinfo is None:
        raise ValueError(f"labelled_at {moment} has no time zone: give one in UTC")
    return moment.astimezone(UTC).isoformat(timespec="seconds")


def candidate_rows(number: int, candidates: pa.Table) -> list[Row]:
    """Rows of `candidates` from schema `lsb.selection.CHOSEN`, by clip."""
    rows = []
    for row in candidates.to_pylist():
        seed = row["seed_id"]
        rows.append(
            {
                "round": number,
                "clip_id": row["id"].hex(),
                "key": row["key"],
                "seed_id": None if seed is None else seed.hex(),
                "seed_key": row["seed_key"],
                "seed_kind": row["kind"],
                "task": row["task"],
                "similarity": row["similarity"],
                "lookalike_threshold": row["lookalike_threshold"],
                "rank": row["rank"],
                "reason": row["reason"],
            }
        )
    return _unique("candidates", rows, ("clip_id",))


def annotation_rows(
    number: int, annotations: pa.Table, times: Sequence[str] | None = None
) -> list[Row]:
    """Rows of `annotations` from schema `lsb.annotate.ANNOTATIONS`, by clip, task and labeller.

    Args:
        number: of the round.
        annotations: unique in (id, task, labeller).
        times: `labelled_at` of each; the rows have none if it is None.
    """
    if annotations.schema.names != ANNOTATIONS.names:
        raise ValueError(
            f"annotations have columns {annotations.schema.names}, expected {ANNOTATIONS.names}"
        )
    rows = []
    for index, row in enumerate(annotations.to_pylist()):
        if row["source"] not in SOURCES:
            raise ValueError(
                f"clip {row['key']!r} has source {row['source']!r}: use one of {', '.join(SOURCES)}"
            )
        for field in ("label", "task", "labeller"):
            if row[field] is None:
                raise ValueError(
                    f"clip {row['key']!r} has an annotation without {field}: leave out what was "
                    "not answered"
                )
        time = {} if times is None else {"labelled_at": times[index]}
        clip = row.pop("id").hex()
        rows.append({"round": number, "clip_id": clip, **row, **time})
    return _unique("annotations", rows, ANNOTATION_KEY)


def gold_rows(gold: pa.Table) -> list[Row]:
    """Rows of `gold` from schema `GOLD_LABELS`, by clip and task."""
    if gold.schema.names != GOLD_LABELS.names:
        raise ValueError(
            f"gold labels have columns {gold.schema.names}, expected {GOLD_LABELS.names}"
        )
    rows = []
    for row in gold.to_pylist():
        if row["label"] is None or row["task"] is None:
            raise ValueError(f"clip {row['key']!r} has no gold label: leave it out")
        rows.append({"clip_id": row.pop("id").hex(), **row})
    return _unique("gold labels", rows, ("clip_id", "task"))


def require_ids_of_keys(rows: list[Row]) -> None:
    """Refuse rows whose id is not their key's: they would belong to no clip."""
    for row in rows:
        if row["clip_id"] != sample_id(row["key"]).hex():
            raise ValueError(
                f"clip {row['key']!r} has id {row['clip_id']}, its key gives "
                f"{sample_id(row['key']).hex()}: make ids with lsb.ids.sample_id"
            )


def require_equal(
    connection: sa.Connection,
    table: sa.Table,
    number: int,
    rows: list[Row],
    *conditions: sa.ColumnElement[bool],
) -> None:
    """Refuse a round that `table` holds with other rows; names the first difference.

    Rows of the table that miss one of `conditions` are not compared.
    """
    names = [column.name for column in table.c if column.name != "labelled_at"]
    order = [column.name for column in table.primary_key.columns if column.name != "round"]
    query = sa.select(*(table.c[name] for name in names)).where(
        table.c.round == number, *conditions
    )
    held = [dict(row) for row in connection.execute(query).mappings()]
    # Not by the database, whose collation may order text in another way than Python does.
    held.sort(key=lambda row: tuple(row[name] for name in order))
    for index in range(max(len(held), len(rows))):
        old = held[index] if index < len(held) else None
        new = rows[index] if index < len(rows) else None
        if old == new:
            continue
        if old is None or new is None:
            difference = f"{len(held)} {table.name} there, {len(rows)} now"
        else:
            name = next(name for name in names if old[name] != new[name])
            of = next((f" of {what} {old[field]!r}" for field, what in _NAMED if field in old), "")
            difference = f"{table.name}.{name}{of} is {old[name]!r} there, {new[name]!r} now"
        raise ValueError(
            f"round {number} is in the ledger {name_of(connection.engine)} with other content "
            f"({difference}): a recorded round is never rewritten; record a new round, or start a "
            "new ledger for a changed experiment"
        )


def held_rows(
    connection: sa.Connection, table: sa.Table, rows: list[Row], *conditions: sa.ColumnElement[bool]
) -> Iterator[Row]:
    """Rows that `table` holds of the clips of `rows`, in no order."""
    clips = sorted({row["clip_id"] for row in rows})
    for start in range(0, len(clips), _CLIPS_A_QUERY):
        chosen = table.c.clip_id.in_(clips[start : start + _CLIPS_A_QUERY])
        for row in connection.execute(sa.select(table).where(chosen, *conditions)).mappings():
            yield dict(row)


def by_text(rows: list[Row], *fields: str) -> list[Row]:
    """Rows ordered by Python's order of `fields`, equal for every database and collation."""
    return sorted(rows, key=lambda row: tuple(row[field] for field in fields))


def _unique(name: str, rows: list[Row], fields: Sequence[str]) -> list[Row]:
    """Rows ordered by `fields`; refuses two that are equal in all of them."""
    rows.sort(key=lambda row: _place(row, fields))
    for before, after in pairwise(rows):
        if _place(before, fields) == _place(after, fields):
            raise ValueError(
                f"{name} hold clip {after['key']!r} twice with the same {', '.join(fields)}: merge "
                "them before they are recorded"
            )
    return rows


def _place(row: Row, fields: Sequence[str]) -> tuple[Any, ...]:
    return tuple(row[field] for field in fields)
