"""Core-set selection: every clip of the pool shall have a labelled clip nearby.

Source: Sener and Savarese 2018 (arXiv 1708.00489), the greedy 2-approximation of the k-centre
problem, without their mixed integer program. Distances are cosine distances of stored vectors.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lsb.acquisition.random import uniform
from lsb.ids import IdArray
from lsb.order import IndexArray
from lsb.search.exact import SearchConfig, nearest
from lsb.search.rescore import proposal_error, rescore

FloatArray = npt.NDArray[np.float32]


def k_centre(
    ids: IdArray,
    vectors_ND: FloatArray,
    count: int,
    *,
    covered_ids: IdArray,
    covered_MD: FloatArray,
    seed: int,
    round: int,
) -> IndexArray:
    """Greedy k-centre: again and again the clip that is farthest from all centres.

    The picks of a smaller `count` are the first picks of a larger one. The choice depends on the
    clips alone, not on the order in which they are given; of equally far clips the smaller id wins.

    Args:
        ids: (N,) S16, unique.
        vectors_ND: (N, D) float32 of norm 1.
        count: clips wanted; N are given where it is larger.
        covered_ids: (M,) S16, unique, of labelled clips, which are centres from the start.
        covered_MD: (M, D) float32 of norm 1, their vectors.
        seed: of chance, by which the first centre is drawn where no clip is labelled.
        round: of data growth; changes what chance draws.

    Returns:
        (min(count, N),) rows of `vectors_ND` in the order of choice.
    """
    order = FarthestFirst(
        ids,
        vectors_ND,
        covered_ids=covered_ids,
        covered_MD=covered_MD,
        seed=seed,
        round=round,
    )
    picks: list[int] = []
    while len(picks) < count and (row := order.next()) is not None:
        order.take(row)
        picks.append(row)
    return np.asarray(picks, dtype=np.intp)


class FarthestFirst:
    """Greedy k-centre clip by clip, for callers that may turn a clip down.

    Arguments are those of `k_centre`. Call `next`, then `take` or `leave` what it gave.
    """

    def __init__(
        self,
        ids: IdArray,
        vectors_ND: FloatArray,
        *,
        covered_ids: IdArray,
        covered_MD: FloatArray,
        seed: int,
        round: int,
    ):
        self._by_id = np.argsort(ids, kind="stable")
        self._vectors = vectors_ND[self._by_id]
        self._row = np.argsort(self._by_id, kind="stable")
        ids = ids[self._by_id]
        self._started = len(covered_ids) > 0
        if self._started:
            self._closest = _closest(ids, self._vectors, covered_ids, covered_MD)
        else:
            # Below every cosine, and in an order of chance.
            self._closest = -uniform(ids, "first centre", seed, round) - 2.0

    def next(self) -> int | None:
        """Row of the clip that is farthest from all centres, None if there is none left."""
        if not len(self._closest):
            return None
        pick = int(np.argmin(self._closest))
        return None if self._closest[pick] == np.inf else int(self._by_id[pick])

    def take(self, row: int) -> None:
        """Make a clip a centre."""
        pick = int(self._row[row])
        if not self._started:
            self._started = True
            self._closest = np.where(self._closest == np.inf, np.inf, -np.inf)
        _come_closer(self._closest, self._vectors, pick)
        self._closest[pick] = np.inf

    def leave(self, row: int) -> None:
        """Turn a clip down: it is no centre, and not offered again."""
        self._closest[int(self._row[row])] = np.inf


def _closest(
    ids: IdArray, vectors_ND: FloatArray, covered_ids: IdArray, covered_MD: FloatArray
) -> npt.NDArray[np.float64]:
    """Similarity to the most similar labelled clip, (N,), by the exact search."""
    order = np.argsort(covered_ids, kind="stable")
    hits = nearest(
        ids,
        vectors_ND,
        lambda: [(covered_ids[order], covered_MD[order])],
        SearchConfig(neighbours=1, max_neighbours=1),
        lookalike_threshold=None,
        exclude=ids[:0],
        rows=len(covered_ids),
    ).table
    # One hit a clip, ordered by the clip's id, as the clips are.
    return np.asarray(hits["similarity"].to_numpy(), dtype=np.float64)


def _come_closer(closest_N: npt.NDArray[np.float64], vectors_ND: FloatArray, centre: int) -> None:
    """Raise similarities to the nearest centre where the new one is nearer.

    The float32 product only says where that may be; the rescoring kernel decides.
    """
    proposed_N = vectors_ND @ vectors_ND[centre]
    rows = np.flatnonzero(proposed_N + proposal_error(vectors_ND.shape[1]) >= closest_N)
    exact = rescore(vectors_ND, vectors_ND, np.full(len(rows), centre), rows)
    closest_N[rows] = np.maximum(closest_N[rows], exact)
