"""Groups of near duplicates: connected components of clips whose similarity is at least a bound."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from lsb.ids import IdArray, from_arrow
from lsb.order import IndexArray, member
from lsb.search.ask import ask, seeds_of
from lsb.search.config import SearchConfig
from lsb.search.exact import gather_blocks
from lsb.search.lists import FloatArray
from lsb.search.scan import Block

NEIGHBOURS = 64
MAX_NEIGHBOURS = 1024


def near_duplicate_groups(
    ids: IdArray,
    vectors_ND: FloatArray,
    near_duplicate: float,
    config: SearchConfig,
    *,
    most: int = MAX_NEIGHBOURS,
) -> IdArray:
    """The representative of each clip's group: the smallest id in it, its own if it is alone.

    Memory is bounded by `most` neighbours of each clip, also where far more are equal.

    Args:
        ids: (N,) S16, ascending and unique.
        vectors_ND: (N, D) float32 of norm 1.
        near_duplicate: smallest similarity of two clips that are joined.
        config: backend and block size; its widths are not used.
        most: neighbours of a clip that are looked at together; changes no result.

    Returns:
        (N,) S16.
    """

    def joined(among: IndexArray, outside: IdArray) -> tuple[IndexArray, IndexArray, IndexArray]:
        """Pairs of near duplicates (clip, other), and the clips that have more than are told."""

        def blocks() -> Iterator[Block]:
            for start in range(0, len(ids), config.rows_per_block):
                rows = slice(start, start + config.rows_per_block)
                yield Block(ids[rows], vectors_ND[rows], start, member(ids[rows], outside))

        hits = ask(
            seeds_of(ids[among], vectors_ND[among]),
            gather_blocks(blocks, config, len(ids)),
            neighbours=min(NEIGHBOURS, most),
            max_neighbours=most,
            lookalike_threshold=near_duplicate,
        )
        left = np.searchsorted(ids, from_arrow(hits.table["seed_id"]))
        cut = hits.table["saturated"].to_numpy(zero_copy_only=False)
        return left, hits.row, np.unique(left[cut])

    left, right, cut = joined(np.arange(len(ids)), ids[:0])
    group = _components(left, right, len(ids))
    # All that a cut list tells lies in one group; what is cut off matters only if it lies outside.
    while cut.size:
        number = int(group[cut[0]])
        members = np.flatnonzero(group == number)
        among = cut[group[cut] == number]
        new_left, new_right, still = joined(among, ids[members])
        if len(new_left):
            _, first = np.unique(group, return_index=True)
            left, right = np.r_[first[group], new_left], np.r_[np.arange(len(ids)), new_right]
            group = _components(left, right, len(ids))
            cut = np.union1d(cut[~np.isin(cut, among)], still)
        else:
            cut = cut[~np.isin(cut, among)]
    _, first = np.unique(group, return_index=True)
    return ids[first[group]]


def _components(
    left: npt.NDArray[np.integer], right: npt.NDArray[np.integer], count: int
) -> npt.NDArray[np.int32]:
    edges = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
    return np.asarray(connected_components(edges, directed=False)[1])
