"""Exact scan by `faiss.knn`: the fallback that is always there, and the oracle of the others.

faiss proposes, the rescoring kernel disposes. For each block `faiss.knn` returns the `width` best
rows by float32 inner product, which is off by at most `proposal_error(D)`. A row that was not
returned is therefore no better than the last returned score plus that error. Only when this is
below what a row must beat (LT, or the k-th rescored similarity so far) is the block finished for a
seed; otherwise the seed asks again, four times wider. This is what makes exact duplicates and ties
at the cut come out by id, whatever the blocks: a plain merge of top-k lists does not.
"""

from __future__ import annotations

import numpy as np

from lsb.ids import IdArray
from lsb.order import IndexArray
from lsb.search import _faiss
from lsb.search.lists import FloatArray, NeighbourLists, RowArray
from lsb.search.rescore import proposal_error, rescore
from lsb.search.scan import Block, Seeds

faiss = _faiss.load()

WIDENING = 4
MARGIN = 16
PROPOSALS_PER_CALL = 1 << 22


class KnnScan:
    """See `lsb.search.scan.Scan`.

    Args:
        seeds: what is searched for.
        limit: most neighbours of a seed.
        floor: smallest score of a neighbour, -inf for none.
    """

    def __init__(self, seeds: Seeds, limit: int, floor: float):
        self.seeds = seeds
        self.floor = floor
        self.error = proposal_error(seeds.vectors.shape[1])
        self._best = NeighbourLists(len(seeds), limit)

    @property
    def bound(self) -> FloatArray:
        """(Q,) see `Scan`."""
        return self._best.bound

    def raise_bound(self, bound_Q: FloatArray) -> None:
        """See `Scan`."""
        self._best.bound = np.maximum(self._best.bound, bound_Q)

    def lists(self) -> NeighbourLists:
        """See `Scan`."""
        return self._best

    def add(self, block: Block) -> None:
        """See `Scan`."""
        row = np.arange(block.first_row, block.first_row + len(block))
        ids, vectors = block.ids, block.vectors
        if block.excluded is not None and block.excluded.any():
            keep = np.flatnonzero(~block.excluded)
            ids, vectors, row = ids[keep], vectors[keep], row[keep]
        if len(ids):
            self._add(ids, np.ascontiguousarray(vectors, dtype=np.float32), row)

    def _add(self, ids: IdArray, block_ND: FloatArray, row_N: RowArray) -> None:
        """Merge a block's neighbours of all seeds into the lists."""
        best, seeds_QD = self._best, self.seeds.vectors
        pending: IndexArray = np.arange(len(self.seeds))
        width = min(best.limit + MARGIN, len(ids))
        while pending.size:
            left: list[IndexArray] = []
            found: list[tuple[IndexArray, FloatArray, IndexArray]] = []
            step = max(1, PROPOSALS_PER_CALL // width)
            for start in range(0, len(pending), step):
                query = pending[start : start + step]
                proposed_QK, row_QK = faiss.knn(
                    seeds_QD[query], block_ND, width, metric=faiss.METRIC_INNER_PRODUCT
                )
                bound_Q = np.maximum(best.bound[query], self.floor)
                place_P, column_P = np.nonzero(proposed_QK >= (bound_Q - self.error)[:, None])
                row_P = row_QK[place_P, column_P]
                other = ids[row_P] != self.seeds.ids[query[place_P]]
                place_P, column_P, row_P = place_P[other], column_P[other], row_P[other]
                score_P = rescore(seeds_QD, block_ND, query[place_P], row_P)

                score_QK = np.full(proposed_QK.shape, -np.inf, dtype=np.float32)
                score_QK[place_P, column_P] = score_P
                if width >= best.limit:
                    kth = width - best.limit
                    bound_Q = np.maximum(bound_Q, np.partition(score_QK, kth, axis=1)[:, kth])
                done = (proposed_QK[:, -1] + self.error < bound_Q) | (width == len(ids))
                left.append(query[~done])
                passed = done[place_P] & (score_P.astype(np.float64) >= self.floor)
                found.append((query[place_P[passed]], score_P[passed], row_P[passed]))
            row_P = np.concatenate([rows for _, _, rows in found])
            best.merge(
                np.concatenate([queries for queries, _, _ in found]),
                np.concatenate([scores for _, scores, _ in found]),
                ids[row_P],
                row_N[row_P],
            )
            pending = np.concatenate(left)
            width = min(width * WIDENING, len(ids))
