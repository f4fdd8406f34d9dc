"""The chance that a neighbour is a lookalike, as a function of its similarity that never falls.

Fitted on the labelled pairs that LT is calibrated on, by isotonic regression (scipy's
pool-adjacent-violators). One imagined failure above all pairs and one imagined lookalike below them
keep a few lucky pairs at either end from meaning certainty. Ours; nothing of it is in Sun et al.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

FloatArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class LookalikeChance:
    """A curve through K points, straight between them and flat beyond the first and the last.

    Attributes:
        similarity: (K,) float64, ascending.
        chance: (K,) float64 in (0, 1), ascending.
    """

    similarity: npt.NDArray[np.float64]
    chance: npt.NDArray[np.float64]

    def __call__(self, similarity_P: FloatArray) -> npt.NDArray[np.float64]:
        """Chance of each neighbour, (P,) float64."""
        values = np.asarray(similarity_P, dtype=np.float64)
        return np.asarray(np.interp(values, self.similarity, self.chance), dtype=np.float64)


def fit_chance(
    similarity_P: FloatArray, lookalike_P: npt.NDArray[np.bool_], *, minimum_pairs: int
) -> LookalikeChance:
    """Fit the curve.

    Args:
        similarity_P: (P,) of labelled pairs, see `lsb.threshold.labelled_pairs`; scaled where LT
            is (`lsb.local_scaling`).
        lookalike_P: (P,) whether each is a lookalike.
        minimum_pairs: fewest it may rest on.

    Raises:
        ValueError: there are fewer pairs.
    """
    if len(similarity_P) < max(minimum_pairs, 1):
        raise ValueError(
            f"{len(similarity_P)} labelled pairs, threshold.minimum_pairs is {minimum_pairs}: too "
            "few to tell the chance of a lookalike; label more clips, or set "
            "selection.rank=similarity"
        )
    knots, place = np.unique(np.asarray(similarity_P, dtype=np.float64), return_inverse=True)
    pairs = np.bincount(place).astype(np.float64)
    lookalikes = np.bincount(place, weights=lookalike_P.astype(np.float64))
    weight = np.r_[1.0, pairs, 1.0]
    rate = np.r_[1.0, lookalikes / pairs, 0.0]
    fitted = np.asarray(isotonic_regression(rate, weights=weight).x)
    return LookalikeChance(knots, fitted[1:-1])


def any_lookalike(
    chance_H: npt.NDArray[np.float64], clip_H: npt.NDArray[np.integer[Any]], clips: int
) -> npt.NDArray[np.float64]:
    """Chance that a clip is a lookalike of at least one of the seeds that reach it.

    1 - product of (1 - chance), as if seeds were independent: too high where they are near each
    other, but in the right order.

    Args:
        chance_H: (H,) of each hit, below 1.
        clip_H: (H,) number of the hit's clip; hits in an order that depends on ids alone, since
            sums of floats do.
        clips: number of clips.

    Returns:
        (clips,) float64.
    """
    log_none = np.bincount(clip_H, weights=np.log1p(-chance_H), minlength=clips)
    return np.asarray(-np.expm1(log_none), dtype=np.float64)
