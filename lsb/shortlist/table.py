"""The table of a shortlist."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from lsb.ids import ID_TYPE, IdArray, from_arrow, to_arrow
from lsb.order import IndexArray
from lsb.shortlist.known import Known
from lsb.store import Store

SHORTLIST_FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "key": pa.string(),
    "seed_id": ID_TYPE,
    "seed_key": pa.string(),
    "kind": pa.string(),
    "task": pa.string(),
    "similarity": pa.float32(),
    "lookalike_threshold": pa.float64(),
    "reason": pa.string(),
}
SHORTLIST = pa.schema(SHORTLIST_FIELDS)
"""Clips to score, first those that came first: what brought each, how near that is, and LT."""


def unbrought(store: Store, ids: IdArray, reason: str) -> pa.Table:
    """Schema `SHORTLIST` of clips that no other clip brought."""
    nothing = {
        name: pa.array([None] * len(ids), SHORTLIST_FIELDS[name]) for name in SHORTLIST.names[2:-1]
    }
    return pa.table(
        {
            "id": to_arrow(ids),
            "key": pa.array(store.keys(ids), pa.string()),
            **nothing,
            "reason": pa.array([reason] * len(ids), pa.string()),
        },
        schema=SHORTLIST,
    )


def brought(store: Store, hits: pa.Table, rows: IndexArray, known: Known, reason: str) -> pa.Table:
    """Schema `SHORTLIST` of rows of a table of hits (`lsb.search.exact.HITS`) of known clips."""
    taken = hits.take(np.asarray(rows, dtype=np.int64))
    ids = from_arrow(taken["id"])
    return pa.table(
        {
            "id": taken["id"].combine_chunks(),
            "key": pa.array(store.keys(ids), pa.string()),
            "seed_id": taken["seed_id"].combine_chunks(),
            "seed_key": pa.array(known.keys_of(from_arrow(taken["seed_id"])), pa.string()),
            "kind": pa.array([reason] * len(ids), pa.string()),
            "task": pa.nulls(len(ids), pa.string()),
            "similarity": taken["similarity"].combine_chunks(),
            "lookalike_threshold": pa.nulls(len(ids), pa.float64()),
            "reason": pa.array([reason] * len(ids), pa.string()),
        },
        schema=SHORTLIST,
    )
