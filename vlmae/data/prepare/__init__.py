"""Data sets as webdataset shards: one composer over two banks of recordings.

`generated` needs nothing but installed packages and is SYNTHETIC; `avt_compose` is real media with
composed labels. Both give the same files; see `shards` for their layout.
"""

from vlmae.data.prepare.compose import BROKEN_KINDS, TASKS
from vlmae.data.prepare.config import SPLITS, PrepareConfig
from vlmae.data.prepare.stage import prepare, read_index, read_truth

__all__ = [
    "BROKEN_KINDS",
    "SPLITS",
    "TASKS",
    "PrepareConfig",
    "prepare",
    "read_index",
    "read_truth",
]
