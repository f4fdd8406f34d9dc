"""Tables of a ledger (docs/ledger.md lists their columns)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from lsb.annotate import SOURCES

HOURS = "hours"
"""A cost whose entry ends so counts hours of work; any other counts money."""
SCHEMA_VERSION = 3
"""Of the tables below; `lsb.ledger.migrations` brings older ledgers to it."""

Row = dict[str, Any]

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
TASK_THRESHOLDS = sa.Table(
    "task_thresholds",
    METADATA,
    sa.Column("round", sa.ForeignKey("rounds.round"), primary_key=True),
    sa.Column("task", sa.String, primary_key=True),
    sa.Column("view", sa.String, nullable=False),
    sa.Column("mode", sa.String, nullable=False),
    sa.Column("value", sa.Double),
    sa.Column("precision", sa.Double),
    sa.Column("pairs", sa.Integer),
    sa.Column("seeds", sa.Integer),
    sa.Column("refusal", sa.String),
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
ADJUDICATIONS = sa.Table(
    "adjudications",
    METADATA,
    sa.Column("clip_id", sa.String(32), primary_key=True),
    sa.Column("task", sa.String, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key", sa.String, nullable=False, index=True),
    sa.Column("label", sa.SmallInteger),
    sa.Column("confidence", sa.Double, nullable=False),
    sa.Column("policy", sa.String, nullable=False),
    sa.Column("round", sa.ForeignKey("rounds.round"), nullable=False),
    sa.Column("adjudicated_at", sa.String(32), nullable=False),
)
EVIDENCE = sa.Table(
    "adjudicated_from",
    METADATA,
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
        ["annotations.clip_id", "annotations.task", "annotations.labeller", "annotations.round"],
        name="of_annotation",
    ),
)
GOLD = sa.Table(
    "gold",
    METADATA,
    sa.Column("clip_id", sa.String(32), primary_key=True),
    sa.Column("task", sa.String, primary_key=True),
    sa.Column("key", sa.String, nullable=False),
    sa.Column("label", sa.SmallInteger, nullable=False),
)
COSTS = sa.Table(
    "costs",
    METADATA,
    sa.Column("round", sa.ForeignKey("rounds.round"), primary_key=True),
    sa.Column("payee", sa.String, primary_key=True),
    sa.Column("entry", sa.String, primary_key=True),
    sa.Column("unit_price", sa.Double, nullable=False),
    sa.Column("count", sa.Integer, nullable=False),
)
