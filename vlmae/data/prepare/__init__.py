"""Data sets as webdataset shards: composed of two banks of recordings, or of media that exist.

`generated` needs nothing but installed packages and is SYNTHETIC; `avt_compose` is real media with
composed labels. `ingest` takes a folder, a manifest or other shards. All give the same files; see
`vlmae.data.index` for their index.
"""

from vlmae.data.index import INDEX_SCHEMA, read_index
from vlmae.data.prepare.compose import BROKEN_KINDS, TASKS
from vlmae.data.prepare.config import SPLITS, PrepareConfig
from vlmae.data.prepare.ingest import IngestConfig
from vlmae.data.prepare.stage import data_config, prepare, read_truth

__all__ = [
    "BROKEN_KINDS",
    "INDEX_SCHEMA",
    "SPLITS",
    "TASKS",
    "IngestConfig",
    "PrepareConfig",
    "data_config",
    "prepare",
    "read_index",
    "read_truth",
]
