"""The result of a search: one row for each hit, with all that a later stage asks of it.

    result.parquet   seed_id, id, key, shard, similarity, rank, saturated, group_id, kept

`shard` is the shard of the clip's media; which part of a store a row came from is in no result.
Nothing but the clips' ids, vectors and rows shapes the table: its `digest` is the same however the
store is cut and whoever searched it. The file's metadata also name the store.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lsb.files import StageError, write_bytes
from lsb.ids import ID_TYPE, IdArray, from_arrow, to_arrow
from lsb.search.ask import Hits
from lsb.search.config import SearchConfig
from lsb.search.lists import rank_in_run
from lsb.search.near_duplicates import near_duplicate_groups
from lsb.store import Store

FORMAT = "vlmae-search"
VERSION = 1
METADATA_KEY = b"vlmae_search"
RESULT_FIELDS: dict[str, pa.DataType] = {
    "seed_id": ID_TYPE,
    "id": ID_TYPE,
    "key": pa.string(),
    "shard": pa.string(),
    "similarity": pa.float32(),
    "rank": pa.int32(),
    "saturated": pa.bool_(),
    "group_id": ID_TYPE,
    "kept": pa.bool_(),
}
RESULT = pa.schema(RESULT_FIELDS)


@dataclass(frozen=True)
class KeepConfig:
    """Which hits are kept.

    Attributes:
        near_duplicate: hits at least this similar, and whatever they chain to, are one group, of
            which each seed keeps its best; None makes each hit its own group.
        per_seed_cap: most hits kept of a seed; None keeps all.
    """

    near_duplicate: float | None = 0.98
    per_seed_cap: int | None = 8

    def __post_init__(self) -> None:
        if self.near_duplicate is not None and not 0 < self.near_duplicate <= 1:
            raise ValueError(
                f"near_duplicate is {self.near_duplicate}: give a cosine similarity in (0, 1]"
            )
        if self.per_seed_cap is not None and self.per_seed_cap < 1:
            raise ValueError(f"per_seed_cap is {self.per_seed_cap}: give at least 1")


@dataclass(frozen=True)
class Source:
    """What a result was made from; goes into the file's metadata.

    Attributes:
        store: hash of the store.
        seeds: hash of the seeds, see `lsb.search.partial.seeds_hash`.
        lookalike_threshold: LT, None for none.
        max_neighbours: most hits of a seed.
    """

    store: str
    seeds: str
    lookalike_threshold: float | None
    max_neighbours: int


def result_table(hits: Hits, store: Store, keep: KeepConfig, config: SearchConfig) -> pa.Table:
    """Hits with key, shard, near-duplicate group, and whether they are kept.

    Args:
        hits: of a search in `store`.
        store: that was searched.
        keep: groups and cap.
        config: backend of the search for near duplicates.

    Returns:
        Schema `RESULT`, ordered by (seed_id, rank). `group_id` is the smallest id of the near
        duplicates among all hits, the clip's own if it has none. `kept`: the first hit of its
        group in its seed's list, and among the first `per_seed_cap` such.
    """
    hit_ids = from_arrow(hits.table["id"])
    ids, first, place = np.unique(hit_ids, return_index=True, return_inverse=True)
    row_N = hits.row[first]
    clips, vectors_ND = store.take_rows(row_N, ["key", "shard"]), store.take_vectors(row_N)
    group = ids
    if keep.near_duplicate is not None and len(ids):
        group = near_duplicate_groups(ids, vectors_ND, keep.near_duplicate, config)
    group_P = group[place]
    columns: dict[str, Any] = {name: hits.table[name] for name in ("seed_id", "id")}
    columns |= {name: clips[name].take(place) for name in ("key", "shard")}
    columns |= {name: hits.table[name] for name in ("similarity", "rank", "saturated")}
    columns["group_id"] = to_arrow(group_P)
    columns["kept"] = pa.array(_kept(from_arrow(hits.table["seed_id"]), group_P, keep.per_seed_cap))
    return pa.table(columns).cast(RESULT).combine_chunks()


def _kept(seed_P: IdArray, group_P: IdArray, per_seed_cap: int | None) -> npt.NDArray[np.bool_]:
    """Which hits are the first of their group in their seed's list, and within the cap."""
    if not len(seed_P):
        return np.zeros(0, dtype=np.bool_)
    _, query = np.unique(seed_P, return_inverse=True)
    _, group = np.unique(group_P, return_inverse=True)
    kept = np.zeros(len(seed_P), dtype=np.bool_)
    _, first = np.unique(query * (group.max() + 1) + group, return_index=True)
    first = np.sort(first)
    if per_seed_cap is not None:
        first = first[rank_in_run(query[first]) < per_seed_cap]
    kept[first] = True
    return kept


def digest(table: pa.Table) -> str:
    """sha256 of a table's schema and values, without metadata."""
    sink = pa.BufferOutputStream()
    table = table.replace_schema_metadata(None).combine_chunks()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return hashlib.sha256(sink.getvalue()).hexdigest()


def write_result(path: Path, table: pa.Table, source: Source, keep: KeepConfig) -> None:
    """Write a result whole or not at all; equal results have equal bytes."""
    header = {"format": FORMAT, "version": VERSION, **asdict(source), **asdict(keep)}
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(header).encode()})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(path, sink.getvalue().to_pybytes())


def read_result(path: Path) -> tuple[pa.Table, dict[str, Any]]:
    """A result, and what it was made from.

    Raises:
        StageError: the file is absent or not ours.
    """
    if not path.is_file():
        raise StageError(f"{path} is missing: run python -m lsb.search")
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise StageError(f"{path} is not a parquet file ({error}): search again") from error
    header = json.loads((table.schema.metadata or {}).get(METADATA_KEY, b"{}"))
    found = header.get("format"), header.get("version")
    if found != (FORMAT, VERSION) or table.schema.remove_metadata() != RESULT:
        raise StageError(
            f"{path} has format {found[0]!r} version {found[1]!r}, this release reads {FORMAT!r} "
            f"version {VERSION}: search again"
        )
    return table.replace_schema_metadata(None), header
