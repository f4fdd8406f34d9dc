"""Bring an older ledger to this release's tables.

Each step is frozen: it builds what its version had, whatever `lsb.ledger.tables` says today. Steps
are Alembic operations, run inside the caller's transaction, so a ledger is migrated whole or not
at all. Only the bookkeeping is ours (docs/decisions.md says why).
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from alembic.migration import MigrationContext
from alembic.operations import Operations

from lsb.ledger.tables import SCHEMA_VERSION, VERSIONS


def migrate(connection: sa.Connection, found: int) -> None:
    """Run the steps from version `found` to `SCHEMA_VERSION`.

    Args:
        connection: in a transaction that holds the write lock.
        found: version of the ledger, one of `1 ... SCHEMA_VERSION`.
    """
    operations = Operations(MigrationContext.configure(connection))
    for version in range(found + 1, SCHEMA_VERSION + 1):
        _STEPS[version](operations)
    connection.execute(sa.update(VERSIONS).values(version=SCHEMA_VERSION))


def _to_2(operations: Operations) -> None:
    """Adjudications with their evidence, gold labels, costs."""
    operations.create_table(
        "adjudications",
        sa.Column("clip_id", sa.String(32), primary_key=True),
        sa.Column("task", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("label", sa.SmallInteger),
        sa.Column("confidence", sa.Double, nullable=False),
        sa.Column("policy", sa.String, nullable=False),
        sa.Column("round", sa.Integer, sa.ForeignKey("rounds.round"), nullable=False),
        sa.Column("adjudicated_at", sa.String(32), nullable=False),
    )
    operations.create_index("ix_adjudications_key", "adjudications", ["key"])
    operations.create_table(
        "adjudicated_from",
        sa.Column("clip_id", sa.String(32), primary_key=True),
        sa.Column("task", sa.String, primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("labeller", sa.String, primary_key=True),
        sa.Column("round", sa.Integer, nullable=False),
        sa.ForeignKeyConstraint(
            ["clip_id", "task", "number"],
            ["adjudications.clip_id", "adjudications.task", "adjudications.number"],
            name="of_adjudication",
        ),
        sa.ForeignKeyConstraint(
            ["clip_id", "task", "labeller", "round"],
            [f"annotations.{name}" for name in ("clip_id", "task", "labeller", "round")],
            name="of_annotation",
        ),
    )
    operations.create_table(
        "gold",
        sa.Column("clip_id", sa.String(32), primary_key=True),
        sa.Column("task", sa.String, primary_key=True),
        sa.Column("key", sa.String, nullable=False),
        sa.Column("label", sa.SmallInteger, nullable=False),
    )
    operations.create_table(
        "costs",
        sa.Column("round", sa.Integer, sa.ForeignKey("rounds.round"), primary_key=True),
        sa.Column("payee", sa.String, primary_key=True),
        sa.Column("entry", sa.String, primary_key=True),
        sa.Column("unit_price", sa.Double, nullable=False),
        sa.Column("count", sa.Integer, nullable=False),
    )


def _to_3(operations: Operations) -> None:
    """LT of each task, where a round has one for each."""
    operations.create_table(
        "task_thresholds",
        sa.Column("round", sa.Integer, sa.ForeignKey("rounds.round"), primary_key=True),
        sa.Column("task", sa.String, primary_key=True),
        sa.Column("view", sa.String, nullable=False),
        sa.Column("mode", sa.String, nullable=False),
        sa.Column("value", sa.Double),
        sa.Column("precision", sa.Double),
        sa.Column("pairs", sa.Integer),
        sa.Column("seeds", sa.Integer),
        sa.Column("refusal", sa.String),
    )


_STEPS: dict[int, Callable[[Operations], None]] = {2: _to_2, 3: _to_3}
