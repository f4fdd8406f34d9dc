"""Ledger: every label, and why its clip was asked for (design, contract 5).

Three tables: rounds, candidates (clips that were chosen, with seed, similarity and LT) and
annotations. A round is written in one transaction or not at all; writing it again changes nothing.
SQLite keeps its default rollback journal, because write-ahead logging needs shared memory that
network file systems do not offer; the transaction survives `kill -9` with either.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import sqlalchemy as sa
from sqlalchemy import event

from lsb.annotate import ANNOTATIONS, SOURCES
from lsb.ids import ID_TYPE, IdArray, from_hex, to_arrow
from lsb.labelled import LABEL

SCHEMA_VERSION = 1

METADATA = sa.MetaData()
VERSIONS = sa.Table(
    "schema_version",
    METADATA,
    sa.Column("version", sa.Integer, primary_key=True, autoincrement=False),
)
ROUNDS = sa.Table(
    "rounds",
    METADATA,
    sa.Column("round", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("arm", sa.String, nullable=False),
    sa.Column("checkpoint_hash", sa.String, nullable=False),
    sa.Column("store_hash", sa.String, nullable=False),
    sa.Column("threshold_value", sa.Double),
    sa.Column("threshold_precision", sa.Double),
    sa.Column("threshold_pairs", sa.Integer),
)
CANDIDATES = sa.Table(
    "candidates",
    METADATA,
    sa.Column("round", sa.ForeignKey("rounds.round"), primary_key=True),
    sa.Column("clip_id", sa.String(32), primary_key=True),
    sa.Column("key", sa.String, nullable=False, index=True),
    sa.Column("seed_id", sa.String(32)),
    sa.Column("seed_key", sa.String),
    sa.Column("seed_kind", sa.String),
    sa.Column("task", sa.String),
    sa.Column("similarity", sa.Double),
    sa.Column("lookalike_threshold", sa.Double),
    sa.Column("rank", sa.Integer, nullable=False),
    sa.Column("reason", sa.String, nullable=False),
)
ANNOTATED = sa.Table(
    "annotations",
    METADATA,
    sa.Column("clip_id", sa.String(32), primary_key=True),
    sa.Column("task", sa.String, primary_key=True),
    sa.Column("labeller", sa.String, primary_key=True),
    sa.Column("round", sa.ForeignKey("rounds.round"), primary_key=True),
    sa.Column("key", sa.String, nullable=False, index=True),
    sa.Column("label", sa.SmallInteger, nullable=False),
    sa.Column("source", sa.String, nullable=False),
    sa.Column("labelled_at", sa.String(32), nullable=False),
    sa.CheckConstraint(sa.column("source").in_(SOURCES), name="known_source"),
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Round:
    """What was done in one round.

    Attributes:
        round: number; 0 for labels that were there before any model.
        arm: name of the acquisition and broadening preset.
        checkpoint_hash: of the model that scored the pool; "" for none.
        store_hash: of the store that was searched; "" for none.
        threshold_value: LT; None for none.
        threshold_precision: lower bound of lookalike precision at LT; None if LT was given.
        threshold_pairs: labelled pairs the calibration rests on.
    """

    round: int
    arm: str
    checkpoint_hash: str
    store_hash: str
    threshold_value: float | None = None
    threshold_precision: float | None = None
    threshold_pairs: int | None = None


class Ledger:
    """One experiment's ledger. Use it as a context manager, or call `close`."""

    def __init__(self, engine: sa.Engine):
        self.engine = engine

    @classmethod
    def open(cls, location: str | Path, *, create: bool = True) -> Ledger:
        """Open a ledger.

        Args:
            location: path of an SQLite file, or an SQLAlchemy URL.
            create: make it where it does not exist.

        Raises:
            ValueError: it does not exist and `create` is false, or it is not a ledger of this
                version.
        """
        url = sa.make_url(
            location if isinstance(location, str) and "://" in location else f"sqlite:///{location}"
        )
        if url.get_backend_name() == "sqlite" and url.database:
            path = Path(url.database)
            if not path.is_file() and not create:
                raise ValueError(f"{path} does not exist: give the path of a ledger with --ledger")
            path.parent.mkdir(parents=True, exist_ok=True)
        engine = sa.create_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _configure_sqlite)
            event.listen(engine, "begin", _begin_sqlite)
        ledger = cls(engine)
        try:
            ledger._require_version(create)
        except BaseException:
            ledger.close()
            raise
        return ledger

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def record_round(
        self,
        record: Round,
        candidates: pa.Table,
        annotations: pa.Table,
        *,
        labelled_at: datetime | None = None,
    ) -> bool:
        """Write one round in one transaction.

        Args:
            record: the round.
            candidates: schema `lsb.selection.CHOSEN`, unique in id.
            annotations: schema `lsb.annotate.ANNOTATIONS`, unique in (id, task, labeller).
            labelled_at: time of the labels, with a time zone; now by default.

        Returns:
            Whether it was written; False where the ledger holds the same round already. Nothing is
            changed then, nor is `labelled_at`.

        Raises:
            ValueError: the ledger holds this round with other content, or the tables are not as
                above. The message names the first difference.
        """
        moment = labelled_at or datetime.now(UTC)
        if moment.tzinfo is None:
            raise ValueError(f"labelled_at {moment} has no time zone: give one in UTC")
        time = moment.astimezone(UTC).isoformat(timespec="seconds")
        rounds = [vars(record)]
        chosen = _candidate_rows(record.round, candidates)
        labels = _annotation_rows(record.round, annotations)
        with self._writing() as connection:
            if self._holds(connection, record.round):
                _require_equal(connection, ROUNDS, record.round, rounds)
                _require_equal(connection, CANDIDATES, record.round, chosen)
                _require_equal(connection, ANNOTATED, record.round, labels)
                return False
            connection.execute(sa.insert(ROUNDS), rounds)
            if chosen:
                connection.execute(sa.insert(CANDIDATES), chosen)
            if labels:
                stamped = [{**row, "labelled_at": time} for row in labels]
                connection.execute(sa.insert(ANNOTATED), stamped)
        return True

    def training_set(
        self, through_round: int | None = None, sources: Sequence[str] = SOURCES
    ) -> pa.Table:
        """Labelled clips for training.

        Where a (clip, task) has several labels, the more trusted source wins (gold, then human,
        then oracle, then pseudo), then the later round, then the labeller first by name. Pass the
        sources you want: gold is often kept for evaluation.

        Args:
            through_round: leave out labels of later rounds; None takes all.
            sources: of labels to use.

        Returns:
            id, key, round, `label_<task>` (int8, null for none) for every task by name, source;
            ordered by id. `round` is the first round that gave one of the labels used, `source` the
            least trusted source of them.
        """
        unknown = [source for source in sources if source not in SOURCES]
        if unknown:
            raise ValueError(f"source {unknown[0]!r} is unknown: use {', '.join(SOURCES)}")
        query = sa.select(ANNOTATED).where(ANNOTATED.c.source.in_(list(sources)))
        if through_round is not None:
            query = query.where(ANNOTATED.c.round <= through_round)
        best: dict[tuple[str, str], Row] = {}
        for row in self._rows(query):
            place = (row["clip_id"], row["task"])
            if place not in best or _trust(row) < _trust(best[place]):
                best[place] = row
        tasks = sorted({task for _, task in best})
        clips: dict[str, Row] = {}
        for (clip, task), row in best.items():
            entry = clips.setdefault(clip, {**row, "labels": {}})
            entry["labels"][task] = row["label"]
            entry["round"] = min(entry["round"], row["round"])
            entry["source"] = max(entry["source"], row["source"], key=SOURCES.index)
        ordered = [clips[clip] for clip in sorted(clips)]
        fields: dict[str, pa.DataType] = {"id": ID_TYPE, "key": pa.string(), "round": pa.int32()}
        columns: list[Any] = [
            to_arrow(from_hex([row["clip_id"] for row in ordered])),
            [row["key"] for row in ordered],
            [row["round"] for row in ordered],
        ]
        for task in tasks:
            fields[LABEL + task] = pa.int8()
            columns.append([row["labels"].get(task) for row in ordered])
        fields["source"] = pa.string()
        columns.append([row["source"] for row in ordered])
        return pa.table(columns, schema=pa.schema(fields))

    def labelled_ids(self, through_round: int | None = None) -> IdArray:
        """Ids of clips with a label of any source, ascending, (N,) S16."""
        query = sa.select(ANNOTATED.c.clip_id).distinct().order_by(ANNOTATED.c.clip_id)
        if through_round is not None:
            query = query.where(ANNOTATED.c.round <= through_round)
        return from_hex([row["clip_id"] for row in self._rows(query)])

    def rounds(self) -> list[Round]:
        """All rounds, in order."""
        return [Round(**row) for row in self._rows(sa.select(ROUNDS).order_by(ROUNDS.c.round))]

    def candidacies(self, key: str) -> list[Row]:
        """Every time a clip was chosen: its candidate row joined with the round's, by round."""
        joined = sa.select(CANDIDATES, *(c for c in ROUNDS.c if c.name != "round")).join(ROUNDS)
        return self._rows(joined.where(CANDIDATES.c.key == key).order_by(CANDIDATES.c.round))

    def annotations(self, key: str) -> list[Row]:
        """Every label of a clip, by (round, task, labeller)."""
        order = (ANNOTATED.c.round, ANNOTATED.c.task, ANNOTATED.c.labeller)
        return self._rows(sa.select(ANNOTATED).where(ANNOTATED.c.key == key).order_by(*order))

    def keys(self) -> list[str]:
        """Keys of all clips that were chosen or labelled, ascending."""
        union = sa.union(sa.select(CANDIDATES.c.key), sa.select(ANNOTATED.c.key)).subquery()
        return [row["key"] for row in self._rows(sa.select(union.c.key).order_by(union.c.key))]

    def _rows(self, query: sa.Select[Any]) -> list[Row]:
        with self.engine.connect() as connection:
            return [dict(row) for row in connection.execute(query).mappings()]

    def _writing(self) -> AbstractContextManager[sa.Connection]:
        return self.engine.execution_options(writing=True).begin()

    def _holds(self, connection: sa.Connection, number: int) -> bool:
        query = sa.select(ROUNDS.c.round).where(ROUNDS.c.round == number)
        return connection.execute(query).first() is not None

    def _require_version(self, create: bool) -> None:
        try:
            tables = sa.inspect(self.engine).get_table_names()
            if not tables and create:
                with self._writing() as connection:
                    METADATA.create_all(connection)
                    if not connection.execute(sa.select(VERSIONS)).first():
                        connection.execute(sa.insert(VERSIONS), [{"version": SCHEMA_VERSION}])
                return
            versions = (
                [row["version"] for row in self._rows(sa.select(VERSIONS))]
                if VERSIONS.name in tables
                else []
            )
        except sa.exc.DatabaseError as error:
            raise ValueError(
                f"{self.engine.url} cannot be read as a ledger ({error.orig}): give another path"
            ) from error
        if versions != [SCHEMA_VERSION]:
            found = versions[0] if versions else "none"
            raise ValueError(
                f"{self.engine.url} has ledger schema version {found}, this release reads "
                f"{SCHEMA_VERSION}: open it with the release that wrote it, or give another path"
            )


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver must not begin transactions by itself: it would leave some statements outside.
    connection.isolation_level = None
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.execute("PRAGMA synchronous = FULL")
    cursor.execute("PRAGMA busy_timeout = 30000")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    # A writer takes its lock before it looks whether the round is there already.
    writing = connection.get_execution_options().get("writing", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writing else "BEGIN")


def _trust(row: Mapping[str, Any]) -> tuple[int, int, str]:
    return SOURCES.index(row["source"]), -row["round"], row["labeller"]


def _candidate_rows(number: int, candidates: pa.Table) -> list[Row]:
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


def _annotation_rows(number: int, annotations: pa.Table) -> list[Row]:
    if annotations.schema.names != ANNOTATIONS.names:
        raise ValueError(
            f"annotations have columns {annotations.schema.names}, expected {ANNOTATIONS.names}"
        )
    rows = []
    for row in annotations.to_pylist():
        if row["source"] not in SOURCES:
            raise ValueError(
                f"clip {row['key']!r} has source {row['source']!r}: use one of {', '.join(SOURCES)}"
            )
        clip = row.pop("id").hex()
        rows.append({"round": number, "clip_id": clip, **row})
    return _unique("annotations", rows, ("clip_id", "task", "labeller"))


def _unique(name: str, rows: list[Row], fields: Sequence[str]) -> list[Row]:
    """Rows ordered by `fields`; refuses two that are equal in all of them."""
    rows.sort(key=lambda row: tuple(row[field] for field in fields))
    for before, after in pairwise(rows):
        if all(before[field] == after[field] for field in fields):
            raise ValueError(
                f"{name} hold clip {after['key']!r} twice with the same {', '.join(fields)}: merge "
                "them before they are recorded"
            )
    return rows


def _require_equal(
    connection: sa.Connection, table: sa.Table, number: int, rows: list[Row]
) -> None:
    names = [column.name for column in table.c if column.name != "labelled_at"]
    order = [column for column in table.primary_key.columns if column.name != "round"]
    query = sa.select(*(table.c[name] for name in names)).where(table.c.round == number)
    held = [dict(row) for row in connection.execute(query.order_by(*order)).mappings()]
    for index in range(max(len(held), len(rows))):
        old = held[index] if index < len(held) else None
        new = rows[index] if index < len(rows) else None
        if old == new:
            continue
        if old is None or new is None:
            difference = f"{len(held)} {table.name} there, {len(rows)} now"
        else:
            name = next(name for name in names if old[name] != new[name])
            clip = f" of clip {old['key']!r}" if "key" in old else ""
            difference = f"{table.name}.{name}{clip} is {old[name]!r} there, {new[name]!r} now"
        raise ValueError(
            f"round {number} is in the ledger {connection.engine.url} with other content "
            f"({difference}): a recorded round is never rewritten; record a new round, or start a "
            "new ledger for a changed experiment"
        )
