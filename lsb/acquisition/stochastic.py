"""Scores from S stochastic passes of one model over the same clips.

Sources: Monte Carlo dropout, Gal and Ghahramani 2016 (arXiv 1506.02142); BALD, Houlsby et al. 2011
(arXiv 1112.5745), over dropout passes as in Gal et al. 2017 (arXiv 1703.02910).
"""

from __future__ import annotations

import numpy as np

from lsb.acquisition.scores import (
    FloatArray,
    Probabilities,
    class_entropy,
    in_turn,
    require_probabilities,
    require_sum,
)
from lsb.acquisition.uncertainty import binary_entropy


def dropout_variance(probability_SN: Probabilities) -> FloatArray:
    """Variance of binary probabilities over passes.

    Args:
        probability_SN: (S, N, ...) with S >= 2; further axes, such as labels, are kept.

    Returns:
        (N, ...) float64 in [0, 0.25], the mean squared distance from the mean.

    Raises:
        ValueError: fewer than two passes, or a probability is NaN or outside [0, 1].
    """
    values = _passes(probability_SN)
    mean = in_turn(values) / len(values)
    return in_turn((values - mean) ** 2) / len(values)


def bald(probability_SN: Probabilities) -> FloatArray:
    """Mutual information of a binary answer and the dropout mask: what passes disagree about.

    Args:
        probability_SN: (S, N, ...) with S >= 2; further axes, such as labels, are kept.

    Returns:
        (N, ...) float64 bits in [0, 1]: entropy of the mean less mean entropy. 0 where all passes
        say the same, also if all say 0.5.

    Raises:
        ValueError: fewer than two passes, or a probability is NaN or outside [0, 1].
    """
    values = _passes(probability_SN)
    mean = np.minimum(in_turn(values) / len(values), 1.0)
    expected = in_turn(binary_entropy(values)) / len(values)
    return np.maximum(binary_entropy(mean) - expected, 0.0)


def multiclass_variance(probability_SNC: Probabilities) -> FloatArray:
    """Variance over passes, mean over classes: (N,) float64.

    Args:
        probability_SNC: (S, N, C) with S >= 2, rows that sum to 1.

    Raises:
        ValueError: another shape, a NaN, or a row that does not sum to 1.
    """
    variance_NC = dropout_variance(_class_passes(probability_SNC))
    return np.asarray(in_turn(variance_NC.T) / variance_NC.shape[1])


def multiclass_bald(probability_SNC: Probabilities) -> FloatArray:
    """Mutual information of the class and the dropout mask: (N,) float64 bits.

    Args:
        probability_SNC: (S, N, C) with S >= 2, rows that sum to 1.

    Raises:
        ValueError: another shape, a NaN, or a row that does not sum to 1.
    """
    values = _class_passes(probability_SNC)
    expected = in_turn(class_entropy(values)) / len(values)
    return np.maximum(class_entropy(in_turn(values) / len(values)) - expected, 0.0)


def _passes(probability_SN: Probabilities) -> FloatArray:
    if probability_SN.ndim < 2 or len(probability_SN) < 2:
        raise ValueError(
            f"passes have shape {probability_SN.shape}: give (S, N, ...) with at least 2 passes"
        )
    return require_probabilities(probability_SN)


def _class_passes(probability_SNC: Probabilities) -> FloatArray:
    if probability_SNC.ndim != 3 or probability_SNC.shape[2] < 2:
        raise ValueError(
            f"passes over classes have shape {probability_SNC.shape}: give (S, N, C) with C >= 2"
        )
    values = _passes(probability_SNC)
    require_sum(values)
    return values
