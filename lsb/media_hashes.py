"""Clips that are one and the same media file: a table of hashes, joined by id.

Stores hold vectors and places, no hash of the media; whoever has the bytes makes the table
(`vlmae.data.media_hashes` for a prepared data set, an upload service from its own records).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from lsb.ids import ID_TYPE, IdArray, from_arrow, require_unique
from lsb.order import IndexArray

MEDIA_HASHES_FIELDS: dict[str, pa.DataType] = {"id": ID_TYPE, "media_hash": pa.binary()}
MEDIA_HASHES = pa.schema(MEDIA_HASHES_FIELDS)
UNKNOWN = -1
"""Group of a clip without a hash, which is nobody's copy."""


class MediaHashes:
    """Groups of clips with equal media.

    Args:
        table: `id` and `media_hash`, binary of any one length; null where nobody could read the
            media. Rows in any order; clips of any split, also those that are in no pool.

    Raises:
        ValueError: an id occurs twice, or a column is missing.
    """

    def __init__(self, table: pa.Table):
        absent = [name for name in MEDIA_HASHES.names if name not in table.column_names]
        if absent:
            raise ValueError(
                f"media hashes have no column {absent[0]!r}, only {table.column_names}: give id "
                "and media_hash"
            )
        table = table.filter(table["media_hash"].is_valid())
        ids = from_arrow(table["id"])
        require_unique(ids)
        order = np.argsort(ids, kind="stable")
        hashes = table["media_hash"]
        self._ids = ids[order]
        self._group = np.asarray(pc.rank(hashes, tiebreaker="dense"), dtype=np.int64)[order]
        # Members of a group stand together here, by id.
        self._by_group = np.argsort(self._group, kind="stable")
        self._grouped = self._group[self._by_group]

    def groups(self, ids: IdArray) -> npt.NDArray[np.int64]:
        """Group of each clip, (N,) int64, `UNKNOWN` without a hash. Numbers mean nothing else."""
        groups: npt.NDArray[np.int64] = np.full(len(ids), UNKNOWN, dtype=np.int64)
        if len(self._ids):
            place = np.minimum(np.searchsorted(self._ids, ids), len(self._ids) - 1)
            known = self._ids[place] == ids
            groups[known] = self._group[place[known]]
        return groups

    def members(self, group: int) -> IdArray:
        """Ids of a group, ascending; none for `UNKNOWN`."""
        start, end = np.searchsorted(self._grouped, [group, group + 1])
        rows: IndexArray = self._by_group[start:end]
        return self._ids[rows]
