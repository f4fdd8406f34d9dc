"""Labels that a way of asking saves against asking at random, at an equal measure.

The labels that random sampling needs for a value are read off its own curve of measure against
labels: made monotone by isotonic regression (one training more or less lucky than its neighbours
is noise), and linear between rounds. Nothing is extrapolated: a value that the curve never reaches
is "not reached", and the saving is then at least what the curve's end shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LabelsSaved:
    """At one round of an arm.

    Attributes:
        labels: that the arm had.
        value: of its measure.
        random_labels: that random sampling needs for the same; None where it never gets there.
        low: 2.5 % quantile of `random_labels` over resamples; None for not reached.
        high: 97.5 % quantile; None for not reached.
        reached: share of resamples in which random sampling gets there.
        least_asked: the fewest labels that random sampling was tried with: where it reaches the
            value with these, it might have with fewer, and the saving is at most what is told.
        most_asked: the most.
    """

    labels: int
    value: float
    random_labels: float | None
    low: float | None
    high: float | None
    reached: float
    least_asked: int
    most_asked: int

    @property
    def saved(self) -> float | None:
        """Labels saved; negative where random sampling is better, None for not reached."""
        return None if self.random_labels is None else self.random_labels - self.labels

    @property
    def interval(self) -> tuple[float | None, float | None]:
        """Of `saved`, 95 %; an end is None where random sampling does not get there."""
        low, high = (None if end is None else end - self.labels for end in (self.low, self.high))
        return low, high

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        return {**vars(self), "saved": self.saved, "saved_interval": list(self.interval)}


def monotone(values_Q: FloatArray) -> FloatArray:
    """The non-decreasing curve nearest to (Q,) values, by least squares."""
    return np.asarray(isotonic_regression(values_Q).x, dtype=np.float64)


def labels_needed(labels_Q: npt.NDArray[Any], values_Q: FloatArray, wanted: float) -> float:
    """Fewest labels at which a curve reaches a value.

    Args:
        labels_Q: (Q,) ascending.
        values_Q: (Q,) the measure there, as it was measured.
        wanted: the value.

    Returns:
        Labels, not below the first of the curve; inf where it is never reached.
    """
    if len(labels_Q) != len(values_Q) or len(labels_Q) == 0 or (np.diff(labels_Q) <= 0).any():
        raise ValueError(
            f"a curve over labels {list(labels_Q)} with {len(values_Q)} values: give one value for "
            "each number of labels, ascending"
        )
    curve = monotone(values_Q)
    # Isotonic means are off by rounding: a value that equals the curve is reached.
    reached = np.flatnonzero(curve >= wanted - 1e-12)
    if not reached.size:
        return float("inf")
    at = int(reached[0])
    if at == 0:
        return float(labels_Q[0])
    share = (wanted - curve[at - 1]) / (curve[at] - curve[at - 1])
    return float(labels_Q[at - 1] + share * (labels_Q[at] - labels_Q[at - 1]))


def labels_saved(
    labels: int,
    values_R: FloatArray,
    random_labels_Q: npt.NDArray[Any],
    random_values_RQ: FloatArray,
) -> LabelsSaved:
    """Compare one round of an arm with the curve of random sampling.

    Args:
        labels: of the arm.
        values_R: (1 + R,) its measure: on the test clips, then on R resamples of them.
        random_labels_Q: (Q,) labels of random sampling, ascending.
        random_values_RQ: (1 + R, Q) its measure on the same clips and the same resamples.

    Raises:
        ValueError: the two were not resampled alike, or a value is NaN.
    """
    if values_R.shape != random_values_RQ.shape[:1]:
        raise ValueError(
            f"{len(values_R)} values of the arm but {len(random_values_RQ)} of random sampling: "
            "resample both alike"
        )
    if np.isnan(values_R).any() or np.isnan(random_values_RQ).any():
        raise ValueError("the measure is undefined on a resample: leave out those without positive")
    needed = np.asarray(
        [
            labels_needed(random_labels_Q, curve, value)
            for curve, value in zip(random_values_RQ, values_R, strict=True)
        ]
    )
    drawn = needed[1:] if len(needed) > 1 else needed
    # Of values that occurred, not between them: between a number and infinity there is nothing.
    low, high = np.quantile(drawn, [0.025, 0.975], method="inverted_cdf")
    return LabelsSaved(
        labels=labels,
        value=float(values_R[0]),
        random_labels=_finite(needed[0]),
        low=_finite(low),
        high=_finite(high),
        reached=float(np.isfinite(drawn).mean()),
        least_asked=int(random_labels_Q[0]),
        most_asked=int(random_labels_Q[-1]),
    )


def _finite(labels: float) -> float | None:
    return float(labels) if np.isfinite(labels) else None
