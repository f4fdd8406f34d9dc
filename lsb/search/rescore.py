"""The one kernel by which a similarity is made before it is compared with anything.

The similarity of two stored vectors is their inner product, computed so that its bits depend on the
two vectors alone: products of float32 numbers are exact in float64; they are padded with zeros to a
power of two and summed by halving, upper half onto lower half; the sum is rounded to float32. Only
element-wise IEEE operations occur, so neither blocking, threads, BLAS nor the instruction set can
change a bit, and any other language can reproduce it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lsb.store import NORM_TOLERANCE

EPSILON = 2.0**-24
"""Largest distance of a similarity from the exact inner product of the stored vectors (6.0e-8)."""

TERMS_PER_CHUNK = 1 << 21


def proposal_error(dimension: int) -> float:
    """Largest error of a float32 inner product of two stored vectors, whatever the order of sums.

    The bound is gamma_D |x| |q| (Higham, Accuracy and Stability of Numerical Algorithms, 3.1).
    """
    unit = 2.0**-24
    gamma = dimension * unit / (1 - dimension * unit)
    return gamma * (1 + NORM_TOLERANCE) ** 2 + EPSILON


def similarity(
    left_PD: npt.NDArray[np.floating[Any]], right_PD: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float32]:
    """Similarity of each pair of rows.

    Args:
        left_PD: (P, D) float32 or float16.
        right_PD: (P, D), or (1, D) to compare one vector with all.

    Returns:
        (P,) float32, within `EPSILON` of the exact inner product for vectors of norm 1.
    """
    terms = np.multiply(left_PD, right_PD, dtype=np.float64)
    while terms.shape[1] > 1:
        half = 1 << ((terms.shape[1] - 1).bit_length() - 1)
        upper = terms[:, half:]
        terms = terms[:, :half]
        terms[:, : upper.shape[1]] += upper
    # Adding zero turns -0.0 into 0.0, so that equal similarities have equal bytes.
    return np.asarray(terms[:, 0] + 0.0, dtype=np.float32)


def rescore(
    queries_QD: npt.NDArray[np.floating[Any]],
    vectors_ND: npt.NDArray[np.floating[Any]],
    query_P: npt.NDArray[np.integer[Any]],
    row_P: npt.NDArray[np.integer[Any]],
) -> npt.NDArray[np.float32]:
    """Similarity of `queries_QD[query_P]` and `vectors_ND[row_P]`, (P,) float32, by chunks."""
    score_P = np.empty(len(query_P), dtype=np.float32)
    step = max(1, TERMS_PER_CHUNK // queries_QD.shape[1])
    for start in range(0, len(query_P), step):
        chunk = slice(start, start + step)
        score_P[chunk] = similarity(queries_QD[query_P[chunk]], vectors_ND[row_P[chunk]])
    return score_P
