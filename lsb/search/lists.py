"""The best neighbours of every seed so far: what blocks, parts and ranks are merged into.

Lists are ordered by (-score, id) and cut at a limit, so a merge does not depend on what was merged
first: any number of parts, in any order, ends in the same lists.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lsb.ids import IdArray
from lsb.order import IndexArray, descending

FloatArray = npt.NDArray[np.float32]
RowArray = npt.NDArray[np.int64]


@dataclass
class NeighbourLists:
    """At most `limit` neighbours of each query, ordered by (query, -score, id).

    Attributes:
        queries: number of queries, Q.
        limit: most neighbours of one query.
        query: (P,) which query each pair belongs to, ascending.
        score: (P,) similarity, from the rescoring kernel.
        id: (P,) S16 of the neighbour.
        row: (P,) where the neighbour stands, counted over all blocks.
        bound: (Q,) float32, the worst score in each full list, -inf for the others. A pair below
            it cannot enter. It may be raised to the bound of other lists for the same queries.
    """

    queries: int
    limit: int
    query: IndexArray = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    score: FloatArray = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    id: IdArray = field(default_factory=lambda: np.empty(0, dtype="S16"))
    row: RowArray = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    bound: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.bound = np.full(self.queries, -np.inf, dtype=np.float32)

    def merge(
        self, query_P: IndexArray, score_P: FloatArray, id_P: IdArray, row_P: RowArray
    ) -> None:
        """Add pairs that are not in the lists yet and cut each list to `limit`."""
        if query_P.size == 0:
            return
        query = np.concatenate([self.query, query_P])
        score = np.concatenate([self.score, score_P])
        ids = np.concatenate([self.id, id_P])
        row = np.concatenate([self.row, row_P])
        order = descending(score, ids, query)
        order = order[rank_in_run(query[order]) < self.limit]
        self.query, self.score, self.id, self.row = (
            query[order],
            score[order],
            ids[order],
            row[order],
        )
        full = self.is_full()
        ends = np.cumsum(np.bincount(self.query, minlength=self.queries)) - 1
        self.bound[full] = np.maximum(self.bound[full], self.score[ends[full]])

    def merge_lists(self, other: NeighbourLists) -> None:
        """Add the pairs of other lists for the same queries, none of which is in these."""
        self.merge(other.query, other.score, other.id, other.row)

    def is_full(self) -> npt.NDArray[np.bool_]:
        """(Q,) which lists have `limit` entries."""
        return np.asarray(np.bincount(self.query, minlength=self.queries) == self.limit)

    def finished(
        self, finished_Q: npt.NDArray[np.bool_], limit: int, number_Q: IndexArray, queries: int
    ) -> NeighbourLists:
        """Lists of finished queries, cut to `limit`, renumbered by `number_Q` out of `queries`."""
        keep = finished_Q[self.query] & (rank_in_run(self.query) < limit)
        return NeighbourLists(
            queries,
            limit,
            number_Q[self.query[keep]],
            self.score[keep],
            self.id[keep],
            self.row[keep],
        )


def rank_in_run(query_R: IndexArray) -> IndexArray:
    """Position of each entry within its run of equal, ascending queries, from 0."""
    starts = np.flatnonzero(np.r_[True, query_R[1:] != query_R[:-1]])[: len(query_R)]
    lengths = np.diff(np.r_[starts, len(query_R)])
    return np.arange(len(query_R)) - np.repeat(starts, lengths)
