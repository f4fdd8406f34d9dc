"""What tests compare of a finished stage."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsb.artifact import Stage
from vlmae.data.prepare import read_index
from vlmae.data.ranges import RangeReader, tar_members


def digests(stage: Stage) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(stage.path.iterdir())
        if path.name != "timing.json"
    }


def rows(stage: Stage) -> dict[str, dict[str, Any]]:
    """Index rows by key."""
    return {row["key"]: row for row in read_index(stage).to_pylist()}


def members(stage: Stage, **options: Any) -> dict[str, dict[str, bytes]]:
    """Members of every clip by key, read by range."""
    index = read_index(stage)
    columns = [index[name].to_pylist() for name in ("shard", "offset", "size")]
    with RangeReader(stage.path, **options) as reader:
        records = reader.read(*columns)
    keys = index["key"].to_pylist()
    return {key: tar_members(record, key) for key, record in zip(keys, records, strict=True)}


def quarantine(stage: Stage) -> dict[str, tuple[str, str]]:
    """Key -> reason and detail of the clips that cannot be used."""
    tables = [pq.read_table(path) for path in sorted(stage.path.glob("*.quarantine.parquet"))]
    return {
        row["key"]: (row["reason"], row["detail"]) for row in pa.concat_tables(tables).to_pylist()
    }
