"""Data sets of media that exist already, from a folder, a manifest or other shards."""

from vlmae.data.prepare.ingest.config import SOURCES, IngestConfig
from vlmae.data.prepare.ingest.maker import QUARANTINE_ENDING, QUARANTINE_SCHEMA
from vlmae.data.prepare.ingest.stage import ingest

__all__ = ["QUARANTINE_ENDING", "QUARANTINE_SCHEMA", "SOURCES", "IngestConfig", "ingest"]
