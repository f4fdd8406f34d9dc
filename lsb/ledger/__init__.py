"""Ledger: every label, and why its clip was asked for (design, contract 5; docs/ledger.md).

Rounds, candidates (clips that were chosen, with seed, similarity and LT), annotations, what was
adjudicated from them, gold labels and costs. Nothing recorded is ever rewritten: a round is written
in one transaction or not at all, and writing or importing anything again changes nothing. The
database is an SQLite file or a PostgreSQL server.
"""

from lsb.ledger.adjudications import QUEUE, Adjudicated
from lsb.ledger.ledger import Ledger, Round
from lsb.ledger.location import LOCATION_FILE, kept_location, require_no_password
from lsb.ledger.merge import MergeConfig
from lsb.ledger.quality import AnnotatorQuality
from lsb.ledger.rows import GOLD_LABELS
from lsb.ledger.tables import ANNOTATED, HOURS, SCHEMA_VERSION, Row
from lsb.ledger.task_threshold import TaskThreshold

__all__ = [
    "ANNOTATED",
    "GOLD_LABELS",
    "HOURS",
    "LOCATION_FILE",
    "QUEUE",
    "SCHEMA_VERSION",
    "Adjudicated",
    "AnnotatorQuality",
    "Ledger",
    "MergeConfig",
    "Round",
    "Row",
    "TaskThreshold",
    "kept_location",
    "require_no_password",
]
