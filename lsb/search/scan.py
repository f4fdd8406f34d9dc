"""The seam between a search and what compares vectors: seeds are fixed, blocks of a pool go by.

A scan keeps the best neighbours of every seed. Implementations differ in speed, never in a bit of
their lists: each proposes pairs by a bound that it can prove and lets the rescoring kernel decide.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from lsb.ids import IdArray
from lsb.search.codes import BlockCodes
from lsb.search.lists import FloatArray, NeighbourLists
from lsb.store import VectorArray


@dataclass(frozen=True)
class Seeds:
    """What is searched for.

    Attributes:
        ids: (Q,) S16, unique. A seed is never its own neighbour.
        vectors: (Q, D) float32 of norm 1, contiguous.
    """

    ids: IdArray
    vectors: FloatArray

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: npt.NDArray[np.intp]) -> Seeds:
        """Some of the seeds."""
        return Seeds(self.ids[rows], np.ascontiguousarray(self.vectors[rows]))


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a pool.

    Attributes:
        ids: (n,) S16.
        vectors: (n, D) float32 or float16 of norm 1; may be memory-mapped.
        first_row: number of the first row, counted over all blocks.
        excluded: (n,) bool, rows that must not be found; None for none.
        codes: reads int8 codes of the rows, if they were kept; a scan may use them, make its own,
            or do without.
    """

    ids: IdArray
    vectors: VectorArray
    first_row: int
    excluded: npt.NDArray[np.bool_] | None = None
    codes: Callable[[], BlockCodes] | None = None

    def __len__(self) -> int:
        return len(self.ids)


class Scan(Protocol):
    """Neighbours of fixed seeds, gathered block by block."""

    def add(self, block: Block) -> None:
        """Compare the rows of a block, which no other block holds, with all seeds."""

    @property
    def bound(self) -> FloatArray:
        """(Q,) score that a row must reach to enter a seed's list, -inf while it is not full."""

    def raise_bound(self, bound_Q: FloatArray) -> None:
        """Also leave out what is below the bound of other lists for the same seeds."""

    def lists(self) -> NeighbourLists:
        """The lists so far."""
