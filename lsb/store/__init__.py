"""Embedding store: unit vectors of clips (.npy, memory-mapped) and their rows (.parquet).

A store is a finished stage directory (`lsb.artifact`) with one part for each pool shard, on a local
disk or behind any URL that fsspec reaches:

    <runs>/embed-3f2a.../
        manifest.json
        part-00000.npy                 (n, D) float32 or float16, every row of norm 1
        part-00000.parquet             n rows: id, key, shard, offset, size, then any float columns
        part-00000.codes.safetensors   int8 codes of the vectors, where they were written

`offset` and `size` are the clip's byte range in `shard`, so that a chosen clip is read without a
scan of the pool. A store is "pooled" (frozen backbones, once for each clip) or "fused" (of one
checkpoint). Vectors are never all in memory: they are read block by block or gathered by row.
Commands: `python -m lsb.store verify|stat|merge|drop`.
"""

from lsb.store.fault import Fault
from lsb.store.format import (
    CODES_ENDING,
    DTYPES,
    FORMAT,
    KINDS,
    METADATA_KEY,
    ROW_FIELDS,
    ROWS_PER_GROUP,
    VERSION,
    VectorArray,
    part_files,
)
from lsb.store.norms import CHECK_ROWS, NORM_TOLERANCE, require_unit
from lsb.store.part import StorePart
from lsb.store.store import Store
from lsb.store.write import write_part

__all__ = [
    "CHECK_ROWS",
    "CODES_ENDING",
    "DTYPES",
    "FORMAT",
    "KINDS",
    "METADATA_KEY",
    "NORM_TOLERANCE",
    "ROWS_PER_GROUP",
    "ROW_FIELDS",
    "VERSION",
    "Fault",
    "Store",
    "StorePart",
    "VectorArray",
    "part_files",
    "require_unit",
    "write_part",
]
