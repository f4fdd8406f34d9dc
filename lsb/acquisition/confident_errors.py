"""Labelled clips on which the model is wrong: what uncertainty sampling cannot see.

Source: Sun et al. 2025 name overconfident misclassifications as the reason for broadening; the
rules below are our reconstruction (docs/methods.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lsb.labelled import UNLABELLED

BoolArray = npt.NDArray[np.bool_]
Probabilities = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int8]


def prediction_confidence(probability_N: Probabilities, threshold: float) -> Probabilities:
    """Probability of the predicted class: p where p >= threshold, else 1 - p. (N,)."""
    return np.where(probability_N >= threshold, probability_N, 1.0 - probability_N)


def errors(probability_N: Probabilities, label_N: Labels, threshold: float) -> BoolArray:
    """Labelled clips whose prediction at the operating threshold differs from the label. (N,)."""
    wrong = (probability_N >= threshold) != (label_N == 1)
    return np.asarray((label_N != UNLABELLED) & wrong)


def confident_errors(
    probability_N: Probabilities, label_N: Labels, threshold: float, confidence: float
) -> BoolArray:
    """Errors that the model makes with confidence.

    Args:
        probability_N: (N,) out-of-sample probability of the positive class.
        label_N: (N,) int8: 0, 1, or `UNLABELLED`.
        threshold: operating threshold of the task.
        confidence: smallest probability of the (wrong) predicted class, in [0, 1].

    Returns:
        (N,) bool.
    """
    sure = np.asarray(prediction_confidence(probability_N, threshold) >= confidence)
    return errors(probability_N, label_N, threshold) & sure


def hard(probability_N: Probabilities, label_N: Labels, threshold: float, band: float) -> BoolArray:
    """Labelled clips that are errors, or unsure: within `band` of the operating threshold. (N,)."""
    unsure = (label_N != UNLABELLED) & (np.abs(probability_N - threshold) <= band)
    return np.asarray(errors(probability_N, label_N, threshold) | unsure)
