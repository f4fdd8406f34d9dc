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
    probability_N: Probabilities,
    label_N: Labels,
    threshold: float,
    confidence: float,
    *,
    of: str = "probability",
) -> BoolArray:
    """Errors that the model makes with confidence.

    Args:
        probability_N: (N,) out-of-sample probability of the positive class.
        label_N: (N,) int8: 0, 1, or `UNLABELLED`.
        threshold: operating threshold of the task.
        confidence: least confidence, in [0, 1].
        of: see `confidence_in`.

    Returns:
        (N,) bool.
    """
    sure = confidence_in(probability_N, label_N, threshold, of) >= confidence
    return np.asarray(errors(probability_N, label_N, threshold) & sure)


def confidence_in(
    probability_N: Probabilities, label_N: Labels, threshold: float, of: str
) -> npt.NDArray[np.float64]:
    """How sure the model is of what it predicts, (N,) float64.

    Args:
        probability_N: see `confident_errors`.
        label_N: see `confident_errors`.
        threshold: see `confident_errors`.
        of: "probability" of the predicted class, or its "rank", see `confidence_rank`.
    """
    if of == "rank":
        return confidence_rank(probability_N, label_N, threshold)
    return prediction_confidence(probability_N, threshold).astype(np.float64)


def confidence_rank(
    probability_N: Probabilities, label_N: Labels, threshold: float
) -> npt.NDArray[np.float64]:
    """How sure the model is of a clip among those it predicts alike.

    Any strictly increasing map of probabilities and threshold, such as a temperature, leaves it as
    it is.

    Args:
        probability_N: see `confident_errors`.
        label_N: see `confident_errors`; clips without a label are compared with nobody.
        threshold: see `confident_errors`.

    Returns:
        (N,) float64 in [0, 1]: of the other labelled clips predicted the same class, the share that
        the model is less sure of. 0 for one without others and for clips without a label.
    """
    rank_N = np.zeros(len(label_N))
    predicted_N = probability_N >= threshold
    # Not 1 - p: rounding could tie two clips whose probabilities differ.
    for rows, sure in ((predicted_N, probability_N), (~predicted_N, -probability_N)):
        alike = np.flatnonzero(rows & (label_N != UNLABELLED))
        less_sure = np.searchsorted(np.sort(sure[alike]), sure[alike], side="left")
        rank_N[alike] = less_sure / max(len(alike) - 1, 1)
    return rank_N


def unsure(
    probability_N: Probabilities, label_N: Labels, threshold: float, band: float
) -> BoolArray:
    """Labelled clips within `band` of the operating threshold. (N,)."""
    return np.asarray((label_N != UNLABELLED) & (np.abs(probability_N - threshold) <= band))


def hard(probability_N: Probabilities, label_N: Labels, threshold: float, band: float) -> BoolArray:
    """Labelled clips that are errors, or unsure: within `band` of the operating threshold. (N,)."""
    wrong = errors(probability_N, label_N, threshold)
    return np.asarray(wrong | unsure(probability_N, label_N, threshold, band))
