"""The training set in pooled space, which shortlists start from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lsb.ids import IdArray, require_unique


@dataclass(frozen=True)
class Known:
    """M labelled clips of the training set, in pooled space.

    Attributes:
        ids: (M,) S16, unique.
        keys: M clip keys.
        vectors: (M, D) float32 of norm 1.
        labels: task -> (M,) int8: 0, 1, or -1 for none.
    """

    ids: IdArray
    keys: Sequence[str]
    vectors: npt.NDArray[np.float32]
    labels: Mapping[str, npt.NDArray[np.int8]]

    def __post_init__(self) -> None:
        require_unique(self.ids, self.keys)

    def keys_of(self, ids: IdArray) -> list[str]:
        """Keys of some of the clips."""
        order = np.argsort(self.ids)
        rows = order[np.searchsorted(self.ids[order], ids)]
        return [self.keys[row] for row in rows]
