"""k-means++ seeding (Arthur and Vassilvitskii 2007) over outer products that are never formed.

A point is c_i (x) v_i, the outer product of a few coefficients and a stored vector: the gradient
embedding of BADGE, or the vector itself where the one coefficient is 1. Squared distances follow
from inner products: |c_i|^2 |v_i|^2 + |c_j|^2 |v_j|^2 - 2 (c_i . c_j) (v_i . v_j).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from lsb.acquisition.random import uniform
from lsb.acquisition.scores import in_turn
from lsb.ids import sample_ids
from lsb.order import IndexArray
from lsb.search.rescore import proposal_error, rescore

FloatArray = npt.NDArray[np.float32]
DoubleArray = npt.NDArray[np.float64]


def plus_plus(
    vectors_ND: FloatArray,
    coefficients_NT: DoubleArray,
    count: int,
    *,
    first: int,
    salt: tuple[str | int, ...],
) -> IndexArray:
    """Draw points one by one, each with a chance in proportion to its squared distance from those
    drawn before.

    Args:
        vectors_ND: (N, D) float32 of norm 1, in the order of the clips' ids.
        coefficients_NT: (N, T) float64.
        count: points wanted; N are given where it is larger.
        first: row of the first point.
        salt: of chance, one number for each draw.

    Returns:
        (min(count, N),) rows in the order of the draws. Where all points left are at distance 0
        they follow in their order. The draws of a smaller `count` are the first of a larger one.
    """
    points = _Points(vectors_ND, coefficients_NT)
    wanted = min(count, len(vectors_ND))
    rows, free_N = [first], np.ones(len(vectors_ND), dtype=np.bool_)
    nearest_N = np.full(len(vectors_ND), np.inf)
    steps = sample_ids(str(step) for step in range(wanted))
    chance = uniform(steps, "k-means++", *salt)
    while len(rows) < wanted:
        points.come_closer(nearest_N, rows[-1])
        free_N[rows[-1]] = False
        nearest_N[rows[-1]] = 0.0
        total_N = np.cumsum(nearest_N)
        if not total_N[-1] > 0:
            rows += np.flatnonzero(free_N)[: wanted - len(rows)].tolist()
            break
        drawn = int(np.searchsorted(total_N, chance[len(rows)] * total_N[-1], side="right"))
        # Rounding may make the product the total itself; the last point that has a chance is meant.
        rows.append(min(drawn, int(np.flatnonzero(nearest_N)[-1])))
    return np.asarray(rows[:wanted], dtype=np.intp)


class _Points:
    """N outer products and their squared distances."""

    def __init__(self, vectors_ND: FloatArray, coefficients_NT: DoubleArray) -> None:
        self.vectors_ND = vectors_ND
        self.coefficients_TN = np.ascontiguousarray(coefficients_NT.T, dtype=np.float64)
        every = np.arange(len(vectors_ND))
        self.length_N = in_turn(self.coefficients_TN**2) * self._similarity(every, every)

    def come_closer(self, nearest_N: DoubleArray, row: int) -> None:
        """Lower squared distances to the nearest drawn point where `row` is nearer.

        The float32 product only says where that may be; the rescoring kernel decides.
        """
        coefficient_T = self.coefficients_TN[:, row]
        twice_N = 2.0 * in_turn(self.coefficients_TN * coefficient_T[:, None])
        sum_N = self.length_N + self.length_N[row]
        product_N = (self.vectors_ND @ self.vectors_ND[row]).astype(np.float64)
        error_N = np.abs(twice_N) * proposal_error(self.vectors_ND.shape[1])
        near = np.flatnonzero(sum_N - twice_N * product_N - error_N <= nearest_N)
        exact = self._similarity(np.full(len(near), row), near)
        distance = np.maximum(sum_N[near] - twice_N[near] * exact, 0.0)
        nearest_N[near] = np.minimum(nearest_N[near], distance)

    def _similarity(self, left_P: IndexArray, right_P: IndexArray) -> DoubleArray:
        return rescore(self.vectors_ND, self.vectors_ND, left_P, right_P).astype(np.float64)
