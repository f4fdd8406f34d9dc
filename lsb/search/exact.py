"""Exact threshold search: every neighbour of a seed with similarity >= LT, up to a cap.

faiss proposes, the rescoring kernel disposes. For each block of the store `faiss.knn` returns the
`width` best rows by float32 inner product, which is off by at most `proposal_error(D)`. A row that
was not returned is therefore no better than the last returned score plus that error. Only when this
is below what a row must beat (LT, or the k-th rescored similarity so far) is the block finished for
a seed; otherwise the seed asks again, four times wider. This is what makes exact duplicates and
ties at the cut come out by id, whatever the blocks: a plain merge of top-k lists does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.ids import ID_TYPE, IdArray, require_unique, to_arrow
from lsb.order import IndexArray, descending, member
from lsb.search import _faiss
from lsb.search.rescore import proposal_error, rescore
from lsb.store import Store, VectorArray, require_unit

faiss = _faiss.load()

HITS_FIELDS: dict[str, pa.DataType] = {
    "seed_id": ID_TYPE,
    "id": ID_TYPE,
    "similarity": pa.float32(),
    "rank": pa.int32(),
    "saturated": pa.bool_(),
}
HITS = pa.schema(HITS_FIELDS)
WIDENING = 4
MARGIN = 16
PROPOSALS_PER_CALL = 1 << 22

FloatArray = npt.NDArray[np.float32]
Blocks = Callable[[], Iterable[tuple[IdArray, VectorArray]]]


@dataclass(frozen=True)
class SearchConfig:
    """How wide to search.

    Attributes:
        neighbours: neighbours a seed asks for at first. It changes the cost, not the result.
        max_neighbours: most neighbours a seed may get; seeds that have more are saturated.
        rows_per_block: rows of the store that are compared at a time; bounds memory.
    """

    neighbours: int = 64
    max_neighbours: int = 1024
    rows_per_block: int = 131_072

    def __post_init__(self) -> None:
        if not 1 <= self.neighbours <= self.max_neighbours:
            raise ValueError(
                f"search.neighbours is {self.neighbours} and search.max_neighbours "
                f"{self.max_neighbours}: need 1 <= neighbours <= max_neighbours"
            )


@dataclass(frozen=True)
class Hits:
    """Neighbours of all seeds.

    Attributes:
        table: schema `HITS`, ordered by (seed_id, rank). `similarity` comes from the rescoring
            kernel, `rank` starts at 1. `saturated` marks every hit of a seed that has more than
            `max_neighbours` clips at or above LT; false where there is no LT.
        asked_again: seeds whose first ask was too narrow.
        saturated: seeds that were still saturated at `max_neighbours`; 0 where there is no LT.
    """

    table: pa.Table
    asked_again: int
    saturated: int


def search(
    seed_ids: IdArray,
    seeds_QD: FloatArray,
    store: Store,
    config: SearchConfig,
    *,
    lookalike_threshold: float | None,
    exclude: IdArray,
) -> Hits:
    """Neighbours of seeds in a store.

    The table's bytes do not depend on the number, size or order of parts, nor on the order of
    seeds. Memory beyond the result is bounded by one block.

    Args:
        seed_ids: (Q,) S16, unique. A seed that is in the store is never its own neighbour.
        seeds_QD: (Q, D) float32 of norm 1.
        store: what to search.
        config: widths.
        lookalike_threshold: smallest similarity of a hit; None takes the nearest `max_neighbours`.
        exclude: ids that must not be found (labelled clips); removed before the cut at k.

    Raises:
        ValueError: dimensions differ, a seed occurs twice or is not of norm 1.
    """
    if seeds_QD.ndim != 2 or seeds_QD.shape[1] != store.dimension:
        raise ValueError(
            f"seeds have shape {seeds_QD.shape} but store {store.path} has dimension "
            f"{store.dimension}: embed the seeds with the checkpoint of the store"
        )

    def blocks() -> Iterable[tuple[IdArray, VectorArray]]:
        name, ids = "", np.empty(0, dtype="S16")
        for part, start, vectors_ND in store.blocks(config.rows_per_block):
            if part.name != name:
                name, ids = part.name, part.ids()
            yield ids[start : start + len(vectors_ND)], vectors_ND

    return nearest(
        seed_ids,
        seeds_QD,
        blocks,
        config,
        lookalike_threshold=lookalike_threshold,
        exclude=exclude,
    )


def nearest(
    seed_ids: IdArray,
    seeds_QD: FloatArray,
    blocks: Blocks,
    config: SearchConfig,
    *,
    lookalike_threshold: float | None,
    exclude: IdArray,
) -> Hits:
    """As `search`, over anything that yields (ids (n,), vectors (n, D)) each time it is called."""
    require_unique(seed_ids)
    seeds_QD = np.ascontiguousarray(seeds_QD, dtype=np.float32)
    require_unit(seeds_QD, "seeds")
    floor = -np.inf if lookalike_threshold is None else lookalike_threshold
    excluded = np.unique(exclude)
    order = np.argsort(seed_ids)
    seed_ids, seeds_QD = seed_ids[order], seeds_QD[order]

    pending: IndexArray = np.arange(len(seed_ids))
    # Without LT every seed wants all it may get, so asking for fewer first is of no use.
    first = config.max_neighbours if lookalike_threshold is None else config.neighbours
    width = first
    pieces: list[_Best] = []
    asked_again, saturated = 0, pending[:0]
    while pending.size:
        # One more than wanted: whether it exists says whether the list was cut.
        best = _Best(len(pending), width + 1)
        for ids, vectors_ND in blocks():
            keep = np.flatnonzero(~member(ids, excluded))
            if keep.size == 0:
                continue
            block_ND = vectors_ND if keep.size == len(ids) else vectors_ND[keep]
            _scan(
                best,
                seed_ids[pending],
                seeds_QD[pending],
                ids[keep],
                np.ascontiguousarray(block_ND, dtype=np.float32),
                floor,
            )
        cut = best.is_full()
        finished = ~cut
        if width == config.max_neighbours:
            finished[:] = True
            if lookalike_threshold is not None:
                saturated = pending[cut]
        pieces.append(best.finished(finished, width, pending))
        pending = pending[~finished]
        if width == first:
            asked_again = len(pending)
        width = min(width * WIDENING, config.max_neighbours)
    return Hits(_table(pieces, seed_ids, saturated), asked_again, len(saturated))


@dataclass
class _Best:
    """The best pairs so far: at most `limit` of each query, ordered by (query, -score, id).

    `bound` (queries,) is the worst score in each full list, -inf for the others.
    """

    queries: int
    limit: int
    query: IndexArray = field(default_factory=lambda: np.empty(0, dtype=np.intp))
    score: FloatArray = field(default_factory=lambda: np.empty(0, dtype=np.float32))
    id: IdArray = field(default_factory=lambda: np.empty(0, dtype="S16"))
    bound: FloatArray = field(init=False)

    def __post_init__(self) -> None:
        self.bound = np.full(self.queries, -np.inf, dtype=np.float32)

    def merge(self, query_P: IndexArray, score_P: FloatArray, id_P: IdArray) -> None:
        """Add pairs that are not in the lists yet and cut each list to `limit`."""
        if query_P.size == 0:
            return
        query = np.concatenate([self.query, query_P])
        score = np.concatenate([self.score, score_P])
        ids = np.concatenate([self.id, id_P])
        order = descending(score, ids, query)
        order = order[_rank(query[order]) < self.limit]
        self.query, self.score, self.id = query[order], score[order], ids[order]
        full = self.is_full()
        ends = np.cumsum(np.bincount(self.query, minlength=self.queries)) - 1
        self.bound[full] = self.score[ends[full]]

    def is_full(self) -> npt.NDArray[np.bool_]:
        """(queries,) which lists have `limit` entries."""
        return np.asarray(np.bincount(self.query, minlength=self.queries) == self.limit)

    def finished(
        self, finished_Q: npt.NDArray[np.bool_], limit: int, number_Q: IndexArray
    ) -> _Best:
        """Lists of finished queries, cut to `limit`, queries renumbered by `number_Q`."""
        keep = finished_Q[self.query] & (_rank(self.query) < limit)
        return _Best(
            self.queries, limit, number_Q[self.query[keep]], self.score[keep], self.id[keep]
        )


def _rank(query_R: IndexArray) -> IndexArray:
    """Position of each entry within its run of equal, ascending queries, from 0."""
    starts = np.flatnonzero(np.r_[True, query_R[1:] != query_R[:-1]])[: len(query_R)]
    lengths = np.diff(np.r_[starts, len(query_R)])
    return np.arange(len(query_R)) - np.repeat(starts, lengths)


def _scan(
    best: _Best,
    seed_ids: IdArray,
    seeds_QD: FloatArray,
    ids: IdArray,
    block_ND: FloatArray,
    floor: float,
) -> None:
    """Merge one block's neighbours of all queries into `best`."""
    error = proposal_error(seeds_QD.shape[1])
    pending: IndexArray = np.arange(len(seed_ids))
    width = min(best.limit + MARGIN, len(ids))
    while pending.size:
        left: list[IndexArray] = []
        found: list[tuple[IndexArray, FloatArray, IdArray]] = []
        step = max(1, PROPOSALS_PER_CALL // width)
        for start in range(0, len(pending), step):
            query = pending[start : start + step]
            proposed_QK, row_QK = faiss.knn(
                seeds_QD[query], block_ND, width, metric=faiss.METRIC_INNER_PRODUCT
            )
            bound_Q = np.maximum(best.bound[query], floor)
            place_P, column_P = np.nonzero(proposed_QK >= (bound_Q - error)[:, None])
            row_P = row_QK[place_P, column_P]
            other = ids[row_P] != seed_ids[query[place_P]]
            place_P, column_P, row_P = place_P[other], column_P[other], row_P[other]
            score_P = rescore(seeds_QD, block_ND, query[place_P], row_P)

            score_QK = np.full(proposed_QK.shape, -np.inf, dtype=np.float32)
            score_QK[place_P, column_P] = score_P
            if width >= best.limit:
                kth_Q = np.partition(score_QK, width - best.limit, axis=1)[:, width - best.limit]
                bound_Q = np.maximum(bound_Q, kth_Q)
            done = (proposed_QK[:, -1] + error < bound_Q) | (width == len(ids))
            left.append(query[~done])
            passed = done[place_P] & (score_P.astype(np.float64) >= floor)
            found.append((query[place_P[passed]], score_P[passed], ids[row_P[passed]]))
        best.merge(
            np.concatenate([queries for queries, _, _ in found]),
            np.concatenate([scores for _, scores, _ in found]),
            np.concatenate([names for _, _, names in found]),
        )
        pending = np.concatenate(left)
        width = min(width * WIDENING, len(ids))


def _table(pieces: list[_Best], seed_ids: IdArray, saturated: IndexArray) -> pa.Table:
    if not pieces:
        return HITS.empty_table()
    query = np.concatenate([piece.query for piece in pieces])
    score = np.concatenate([piece.score for piece in pieces])
    ids = np.concatenate([piece.id for piece in pieces])
    order = np.argsort(query, kind="stable")  # a query is in one piece, in order already
    query, score, ids = query[order], score[order], ids[order]
    columns = [
        to_arrow(seed_ids[query]),
        to_arrow(ids),
        pa.array(score),
        pa.array((_rank(query) + 1).astype(np.int32)),
        pa.array(np.isin(query, saturated)),
    ]
    return pa.table(columns, schema=HITS)
