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
        group_N: (N,) optional leading key, ascending, not below 0.
    """
    if score_N.dtype == np.float32 and (group_N is None or _small(group_N)):
        return _descending_words(score_N, ids, group_N)
    high, low = id_words(ids)
    keys = (low, high, -score_N)
    return np.lexsort(keys if group_N is None else (*keys, group_N))


def _small(group_N: npt.NDArray[np.integer[Any]]) -> bool:
    return group_N.size == 0 or (int(group_N.min()) >= 0 and int(group_N.max()) < 1 << 32)


def _descending_words(
    score_N: npt.NDArray[np.floating[Any]],
    ids: IdArray,
    group_N: npt.NDArray[np.integer[Any]] | None,
) -> IndexArray:
    """The same by one sort of 64-bit words; ids are looked at only where group and score tie.

    A word has the group in its high half, and in the low one the bits of the score turned so that
    larger scores have smaller ones (negative floats order against their bits, others with them).
    """
    bits = (score_N + np.float32(0)).view(np.uint32)  # -0.0 becomes 0.0
    turned = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))
    word = turned.astype(np.uint64)
    if group_N is not None:
        word |= group_N.astype(np.uint64) << np.uint64(32)
    order = np.argsort(word)
    ordered = word[order]
    equal = ordered[1:] == ordered[:-1]
    if equal.any():
        tied = np.append(equal, False) | np.append(False, equal)
        rows = order[tied]
        high, low = id_words(ids[rows])
        order[tied] = rows[np.lexsort((rows, low, high, ordered[tied]))]
    return order


def member(ids: IdArray, sorted_ids: IdArray) -> npt.NDArray[np.bool_]:
    """Which of `ids` (N,) occur in the ascending `sorted_ids` (M,): (N,) bool."""
    if sorted_ids.size == 0 or ids.size == 0:
        return np.zeros(ids.shape, dtype=np.bool_)
    place = np.minimum(np.searchsorted(sorted_ids, ids), sorted_ids.size - 1)
    return np.asarray(sorted_ids[place] == ids, dtype=np.bool_)
