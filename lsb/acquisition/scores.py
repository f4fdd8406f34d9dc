"""Scores of single clips from probabilities: how unsure a model is, how positive, how divided.

Larger is asked first. A function named without a prefix takes binary probabilities of any shape and
scores each of them; `multiclass_...` takes rows that sum to 1; `multilabel` makes one score of
several independent binary ones. Binary entropy is in `lsb.acquisition.uncertainty`.

Sources: least confidence, margin and entropy as in Settles 2009 (Active Learning Literature
Survey); disagreement is the Jensen-Shannon divergence of a committee (McCallum and Nigam 1998) of
two, the audio and the vision-language head, which is our choice.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from lsb.acquisition.uncertainty import binary_entropy
from lsb.ids import IdArray, to_hex

FloatArray = npt.NDArray[np.float64]
Probabilities = npt.NDArray[np.floating[Any]]
SUM_TOLERANCE = 1e-3
"""Largest distance of a row of class probabilities from a sum of 1; float16 rows are within it."""


def require_probabilities(
    probability: Probabilities, what: str = "probability", ids: IdArray | None = None
) -> FloatArray:
    """The same numbers in float64 and C order, refused unless all lie in [0, 1].

    Args:
        probability: any shape.
        what: they are, for the message.
        ids: (N,) of the clips along the first axis, for the message.

    Raises:
        ValueError: some are NaN or outside [0, 1]; says how many and the id, or else the row
            number, of the first.
    """
    values = np.ascontiguousarray(probability, dtype=np.float64)
    bad = np.flatnonzero(~((values >= 0) & (values <= 1)).ravel())
    if bad.size:
        row = int(bad[0]) // max(1, values[:1].size)
        first = f"row {row}" if ids is None else f"clip {to_hex(ids[row : row + 1])[0]}"
        raise ValueError(
            f"{bad.size} of {values.size} values of {what} are NaN or outside [0, 1], the first "
            f"of {first}: embed the pool again with a checkpoint that did not diverge"
        )
    return values


def least_confidence(probability: Probabilities) -> FloatArray:
    """1 - probability of the likelier class: 0.5 at 0.5, 0 at 0 and 1. Same shape, float64.

    Raises:
        ValueError: a probability is NaN or outside [0, 1].
    """
    values = require_probabilities(probability)
    return np.minimum(values, 1.0 - values)


def margin(probability: Probabilities) -> FloatArray:
    """1 - the distance between both classes' probabilities: 1 at 0.5, 0 at 0 and 1. Same shape.

    Raises:
        ValueError: a probability is NaN or outside [0, 1].
    """
    return 1.0 - np.abs(2.0 * require_probabilities(probability) - 1.0)


def top_score(probability: Probabilities) -> FloatArray:
    """The probability itself: the likeliest positives first. Same shape, float64.

    Raises:
        ValueError: a probability is NaN or outside [0, 1].
    """
    return require_probabilities(probability)


def disagreement(vl: Probabilities, audio: Probabilities) -> FloatArray:
    """How far the vision-language head and the audio head are apart.

    Args:
        vl: probabilities without audio, any shape.
        audio: probabilities of audio alone, same shape.

    Returns:
        Jensen-Shannon divergence in bits, same shape, float64 in [0, 1]: 0 where they are equal, 1
        where one says 0 and the other 1. It is symmetric.

    Raises:
        ValueError: shapes differ, or a probability is NaN or outside [0, 1].
    """
    if vl.shape != audio.shape:
        raise ValueError(
            f"probabilities without audio have shape {vl.shape}, of audio alone {audio.shape}: "
            "give both for the same clips"
        )
    left, right = require_probabilities(vl), require_probabilities(audio)
    apart = binary_entropy(0.5 * (left + right)) - 0.5 * (
        binary_entropy(left) + binary_entropy(right)
    )
    return np.maximum(apart, 0.0)


def multiclass_least_confidence(probability_NC: Probabilities) -> FloatArray:
    """1 - probability of the likeliest class, (N,) float64 in [0, 1 - 1 / C].

    Args:
        probability_NC: (N, C) with C >= 2, rows that sum to 1.

    Raises:
        ValueError: another shape, a NaN, or a row that does not sum to 1.
    """
    values = _class_probabilities(probability_NC)
    return np.asarray(1.0 - values.max(axis=1))


def multiclass_margin(probability_NC: Probabilities) -> FloatArray:
    """1 - the lead of the likeliest class over the second, (N,) float64 in [0, 1].

    Args and errors: as `multiclass_least_confidence`.
    """
    values = _class_probabilities(probability_NC)
    top = np.partition(values, values.shape[1] - 2, axis=1)[:, -2:]
    return 1.0 - (top[:, 1] - top[:, 0])


def multiclass_entropy(probability_NC: Probabilities) -> FloatArray:
    """Entropy over classes in bits, (N,) float64 in [0, log2 C].

    Args and errors: as `multiclass_least_confidence`.
    """
    return class_entropy(_class_probabilities(probability_NC))


def class_entropy(probability: FloatArray) -> FloatArray:
    """Entropy in bits over the last axis of checked probabilities, shape without that axis."""
    logarithm = np.log2(probability, out=np.zeros_like(probability), where=probability > 0)
    return in_turn(np.moveaxis(-(probability * logarithm), -1, 0)) + 0.0


def multilabel(score_NT: npt.NDArray[np.floating[Any]], weight_T: FloatArray) -> FloatArray:
    """Weighted mean over labels of their binary scores, (N,) float64.

    Args:
        score_NT: (N, T) of any binary function of this package.
        weight_T: (T,) weights >= 0, not all 0; normalised to sum 1.

    Raises:
        ValueError: the shapes do not fit, or weights are negative, not finite or all 0.
    """
    weights = np.asarray(weight_T, dtype=np.float64)
    if score_NT.ndim != 2 or weights.shape != score_NT.shape[1:]:
        raise ValueError(
            f"scores have shape {score_NT.shape}, weights {weights.shape}: give (N, T) and (T,)"
        )
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise ValueError(f"weights are {weights.tolist()}: give numbers >= 0, one of them positive")
    shares = weights / weights.sum()
    return in_turn(shares[:, None] * np.asarray(score_NT, dtype=np.float64).T)


def in_turn(terms: FloatArray) -> FloatArray:
    """Sum over the first axis, one term after the other.

    numpy sums in an order that depends on the whole shape; this one gives a clip the same bits
    however many clips stand beside it.
    """
    total = np.zeros(terms.shape[1:], dtype=np.float64)
    for term in terms:
        total = total + term
    return total


def _class_probabilities(probability_NC: Probabilities) -> FloatArray:
    if probability_NC.ndim != 2 or probability_NC.shape[1] < 2:
        raise ValueError(
            f"class probabilities have shape {probability_NC.shape}: give (N, C) with C >= 2; one "
            "probability a clip is binary"
        )
    values = require_probabilities(probability_NC)
    require_sum(values)
    return values


def require_sum(probability: FloatArray) -> None:
    """Refuse class probabilities whose last axis does not sum to 1.

    Raises:
        ValueError: says how many and the first sum.
    """
    total = in_turn(np.moveaxis(probability, -1, 0)).ravel()
    bad = np.flatnonzero(np.abs(total - 1.0) > SUM_TOLERANCE)
    if bad.size:
        raise ValueError(
            f"{bad.size} of {total.size} rows of class probabilities do not sum to 1, the first "
            f"to {total[bad[0]]:g}: give softmax outputs; independent labels are binary"
        )
