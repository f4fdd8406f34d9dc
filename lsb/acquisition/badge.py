"""BADGE: clips whose gradients are long and point in different directions.

Source: Ash et al. 2020 (arXiv 1906.03671): gradients of the last layer for the label that the model
would give, and k-means++ seeding among them. For a binary task the gradient is (p - y) v with y = 1
where p >= 0.5; over tasks it is the outer product of the weighted (p - y) and v. As in the authors'
code the first clip is the one with the longest gradient.

What differs here: v is the stored vector, the fused embedding at norm 1, not at its own norm.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lsb.acquisition.plus_plus import plus_plus
from lsb.acquisition.scores import FloatArray, Probabilities, in_turn, require_probabilities
from lsb.ids import IdArray
from lsb.order import IndexArray


def gradient_coefficients(probability_NT: Probabilities, weight_T: FloatArray) -> FloatArray:
    """What multiplies the vector in the gradient of each task's head: w_t (p_t - y_t).

    Args:
        probability_NT: (N, T) in [0, 1].
        weight_T: (T,) of the tasks' losses.

    Returns:
        (N, T) float64.

    Raises:
        ValueError: a probability is NaN or outside [0, 1].
    """
    values = require_probabilities(probability_NT)
    return (values - (values >= 0.5)) * np.asarray(weight_T, dtype=np.float64)


def gradient_length(coefficients_NT: FloatArray) -> FloatArray:
    """Length of each clip's gradient for a vector of norm 1, (N,) float64."""
    return np.sqrt(in_turn(np.ascontiguousarray(coefficients_NT.T) ** 2))


def badge(
    ids: IdArray,
    vectors_ND: npt.NDArray[np.float32],
    coefficients_NT: FloatArray,
    count: int,
    *,
    seed: int,
    round: int,
) -> IndexArray:
    """Choose clips by k-means++ over gradients.

    The choice depends on the clips alone, not on the order in which they are given, and the picks
    of a smaller `count` are the first picks of a larger one.

    Args:
        ids: (N,) S16, unique.
        vectors_ND: (N, D) float32 of norm 1.
        coefficients_NT: (N, T), see `gradient_coefficients`.
        count: clips wanted; N are given where it is larger.
        seed: of chance.
        round: of data growth; changes what chance draws.

    Returns:
        (min(count, N),) rows in the order of choice.
    """
    if not len(ids):
        return np.empty(0, dtype=np.intp)
    by_id = np.argsort(ids, kind="stable")
    coefficients_NT = coefficients_NT[by_id]
    longest = int(np.argmax(gradient_length(coefficients_NT)))
    rows = plus_plus(
        vectors_ND[by_id],
        coefficients_NT,
        count,
        first=longest,
        salt=("badge", seed, round),
    )
    return by_id[rows]
