"""The one order of the project: larger scores first, ties by id (design, contract 3).

Nothing here looks at a row's position, so no result depends on how rows are spread over parts.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lsb.ids import IdArray

IndexArray = npt.NDArray[np.intp]


def id_words(ids: IdArray) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """High and low 64 bits of each id: integers that sort as the ids do."""
    words = np.ascontiguousarray(ids, dtype="S16").view(">u8").reshape(-1, 2).astype(np.uint64)
    return words[:, 0], words[:, 1]


def descending(
    score_N: npt.NDArray[np.floating[Any]],
    ids: IdArray,
    group_N: npt.NDArray[np.integer[Any]] | None = None,
) -> IndexArray:
    """Positions ordered by (group, -score, id).

    Args:
        score_N: (N,) larger is better, no NaN.
        ids: (N,) S16.
        group_N: (N,) optional leading key, ascending.
    """
    high, low = id_words(ids)
    keys = (low, high, -score_N)
    return np.lexsort(keys if group_N is None else (*keys, group_N))


def member(ids: IdArray, sorted_ids: IdArray) -> npt.NDArray[np.bool_]:
    """Which of `ids` (N,) occur in the ascending `sorted_ids` (M,): (N,) bool."""
    if sorted_ids.size == 0 or ids.size == 0:
        return np.zeros(ids.shape, dtype=np.bool_)
    place = np.minimum(np.searchsorted(sorted_ids, ids), sorted_ids.size - 1)
    return np.asarray(sorted_ids[place] == ids, dtype=np.bool_)
