"""Recall at a precision and average precision, exact, with bootstrap intervals; calibration error.

R@P80 is the headline metric of Sun et al. 2025: the largest recall over thresholds whose precision
is at least 80 %, 0 if there is none. Equal scores share a threshold: a cut cannot separate them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import binary_calibration_error

FloatArray = npt.NDArray[np.floating]
BoolArray = npt.NDArray[np.bool_]
IndexArray = npt.NDArray[np.integer]
Weights = npt.NDArray[np.int32]
BINS = 15


@dataclass(frozen=True)
class Interval:
    """A value with a percentile bootstrap interval over clips; both NaN where undefined."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float | None]:
        """JSON has no NaN: undefined values are null."""
        pairs = {"value": self.value, "low": self.low, "high": self.high}
        return {name: None if np.isnan(number) else number for name, number in pairs.items()}


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold, and the precision and recall that `score >= threshold` has on some data."""

    threshold: float
    precision: float
    recall: float


def percentage(value: float | None) -> str:
    """A share in percent with one decimal; a dash where it is undefined."""
    return "-" if value is None else f"{100 * value:.1f}"


def percentage_interval(metric: Mapping[str, float | None] | None) -> str:
    """`Interval.as_dict` in percent, the bounds without decimals; a dash where it is undefined."""
    value, low, high = (metric[name] if metric else None for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-"
    return f"{percentage(value)} [{100 * low:.0f},{100 * high:.0f}]"


def recall_at_precision(scores: FloatArray, labels: BoolArray, target: float) -> float:
    """Largest recall over thresholds whose precision is at least `target`; 0.0 if none has it.

    Args:
        scores: (N,) higher means more positive.
        labels: (N,) bool.
        target: precision in (0, 1].

    Returns:
        NaN if there is no positive.
    """
    return _of_sample("recall_at_precision", scores, labels, target)


def average_precision(scores: FloatArray, labels: BoolArray) -> float:
    """Sum over thresholds of precision times the gain in recall; NaN if there is no positive."""
    return _of_sample("average_precision", scores, labels)


def bootstrap(
    metric: str,
    scores: FloatArray,
    labels: BoolArray,
    *,
    target: float,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """A metric on the sample and its percentile interval over resampled clips.

    Args:
        metric: "recall_at_precision" or "average_precision".
        scores: (N,) float.
        labels: (N,) bool.
        target: precision, for "recall_at_precision".
        resamples: how often N clips are drawn with replacement.
        seed: of the draws.
        level: mass inside the interval.
    """
    return bootstrap_metrics(
        [metric], scores, labels, target=target, resamples=resamples, seed=seed, level=level
    )[metric]


def bootstrap_metrics(
    metrics: Sequence[str],
    scores: FloatArray,
    labels: BoolArray,
    *,
    target: float,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> dict[str, Interval]:
    """Metric -> what `bootstrap` gives for it; clips are drawn, and sorted, once for all."""
    _check(scores, labels)
    means = metric_means(
        metrics, scores[None], labels, target=target, resamples=resamples, seed=seed
    )
    return {metric: percentile_interval(values, level) for metric, values in means.items()}


def bootstrap_seeds(
    metric: str,
    scores_SN: FloatArray,
    labels: BoolArray,
    *,
    target: float,
    resamples: int,
    seed: int,
    level: float = 0.95,
) -> Interval:
    """Mean of a metric over seeds, and its percentile interval over clips and seeds together.

    A resample draws N clips, the same for all seeds, and S seeds, and averages over these.

    Args:
        metric: "recall_at_precision" or "average_precision".
        scores_SN: (S, N) scores of S trainings on the same clips.
        labels: (N,) bool.
        target: precision, for "recall_at_precision".
        resamples: how often clips and seeds are drawn with replacement.
        seed: of the draws.
        level: mass inside the interval.
    """
    means = seed_means(metric, scores_SN, labels, target=target, resamples=resamples, seed=seed)
    return percentile_interval(means, level)


def seed_means(
    metric: str,
    scores_SN: FloatArray,
    labels: BoolArray,
    *,
    target: float,
    resamples: int,
    seed: int,
) -> FloatArray:
    """A metric's mean over seeds on the sample, then on each resample: (1 + resamples,) float64.

    The draws depend on `seed` and the numbers of clips and seeds alone, so that two models on the
    same clips are resampled alike and may be subtracted. See `bootstrap_seeds`.
    """
    means = metric_means([metric], scores_SN, labels, target=target, resamples=resamples, seed=seed)
    return means[metric]


def metric_means(
    metrics: Sequence[str],
    scores_SN: FloatArray,
    labels: BoolArray,
    *,
    target: float,
    resamples: int,
    seed: int,
) -> dict[str, FloatArray]:
    """Metric -> `seed_means`; clips are drawn, and sorted, once for all."""
    seeds, count = scores_SN.shape
    weights, drawn = _draws(seeds, count, resamples, seed)
    by_seed = [_weighted(metrics, row, labels, weights, target) for row in scores_SN]
    found = {}
    for metric in metrics:
        values = np.stack([one[metric] for one in by_seed])
        means = values[drawn, np.arange(1, resamples + 1)[:, None]].mean(axis=1)
        found[metric] = np.append(values[:, 0].mean(), means)
    return found


@lru_cache(maxsize=1)
def _draws(seeds: int, count: int, resamples: int, seed: int) -> tuple[Weights, IndexArray]:
    """How often the sample, then each resample, has each clip, and which seeds each resample has.

    Drawn once for the tasks and models that are resampled alike.

    Returns:
        (1 + resamples, count) int32, the first row all ones, and (resamples, seeds); not to be
        written to.
    """
    generator = np.random.default_rng(seed)
    weights = np.ones((resamples + 1, count), np.int32)
    if count:
        weights[1:] = generator.multinomial(count, np.full(count, 1.0 / count), size=resamples)
    return weights, generator.integers(seeds, size=(resamples, seeds))


def percentile_interval(means: FloatArray, level: float = 0.95) -> Interval:
    """The first of some values, and the percentile interval of the others; NaN are left out."""
    value, drawn = float(means[0]), means[1:][~np.isnan(means[1:])]
    if np.isnan(value) or drawn.size == 0:
        return Interval(float("nan"), float("nan"), float("nan"))
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high))


def mean_over_seeds(values_S: Sequence[float], resamples: int, seed: int) -> Interval:
    """Mean of one number a seed, e.g. a count, and its percentile interval over seeds alone.

    Args:
        values_S: (S,) of each seed.
        resamples: how often S seeds are drawn with replacement.
        seed: of the draws.

    Returns:
        Bounds that are NaN where there is one seed, which says nothing of others.
    """
    values = np.asarray(values_S, dtype=np.float64)
    if len(values) == 1:
        return Interval(float(values[0]), float("nan"), float("nan"))
    drawn = np.random.default_rng(seed).integers(len(values), size=(resamples, len(values)))
    return percentile_interval(np.append(values.mean(), values[drawn].mean(axis=1)))


def choose_threshold(scores: FloatArray, labels: BoolArray, target: float) -> float:
    """The score cut of most recall among those of precision `target` on validation data.

    Among cuts of equal recall the highest. Where no cut reaches the target, the cut of highest
    precision, so that a model is never without an operating point; what it gives is reported beside
    it. 0.5 where there is no positive.
    """
    _check(scores, labels)
    if not labels.any():
        return 0.5
    cuts, precision, recall = _curve(scores, labels, np.ones((1, len(scores)), np.int32))
    reached = precision[0] >= target
    if reached.any():
        best = int(np.flatnonzero(reached)[np.argmax(recall[0][reached])])
    else:
        best = int(np.argmax(precision[0]))
    return float(cuts[best])


def operating_point(scores: FloatArray, labels: BoolArray, threshold: float) -> OperatingPoint:
    """Precision and recall of `scores >= threshold`; precision is NaN if nothing is called."""
    _check(scores, labels)
    called = scores >= threshold
    hits = int((called & labels).sum())
    return OperatingPoint(
        threshold,
        hits / int(called.sum()) if called.any() else float("nan"),
        hits / int(labels.sum()) if labels.any() else float("nan"),
    )


def calibration_error(scores: FloatArray, labels: BoolArray) -> float:
    """Expected calibration error of the positive class, in 15 bins of equal width.

    The mean over clips of how far the mean probability of a bin is from its share of positives.
    Source: Guo et al. 2017 (arXiv 1706.04599), there of the predicted class.

    Args:
        scores: (N,) probabilities in [0, 1].
        labels: (N,) bool.

    Returns:
        NaN if there is no clip.
    """
    _check(scores, labels)
    if scores.size == 0:
        return float("nan")
    if scores.min() < 0 or scores.max() > 1:
        raise ValueError(
            f"scores are from {scores.min():.3g} to {scores.max():.3g}: give probabilities"
        )
    values = torch.from_numpy(np.ascontiguousarray(scores, np.float32))
    truth = torch.from_numpy(labels.astype(np.int64))
    return float(binary_calibration_error(values, truth, n_bins=BINS, norm="l1"))


def _of_sample(metric: str, scores: FloatArray, labels: BoolArray, target: float = 1.0) -> float:
    weights = np.ones((1, len(scores)), np.int32)
    return float(_weighted([metric], scores, labels, weights, target)[metric][0])


def _weighted(
    metrics: Sequence[str],
    scores: FloatArray,
    labels: BoolArray,
    weights_RN: Weights,
    target: float,
) -> dict[str, FloatArray]:
    """Metric -> (R,) its value under each row of clip weights; NaN without clips or positives."""
    _check(scores, labels)
    for metric in metrics:
        if metric not in METRICS:
            raise ValueError(f"metric must be {' or '.join(map(repr, METRICS))}, got {metric!r}")
    if not 0 < target <= 1:
        raise ValueError(f"the target precision must be in (0, 1], got {target}")
    if scores.size == 0:
        return {metric: np.full(len(weights_RN), np.nan) for metric in metrics}
    _, precision, recall = _curve(scores, labels, weights_RN)
    return {metric: METRICS[metric](precision, recall, target) for metric in metrics}


def _check(scores: FloatArray, labels: BoolArray) -> None:
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(f"scores {scores.shape} and labels {labels.shape} must be (N,) each")
    if np.isnan(scores).any():
        raise ValueError(f"{int(np.isnan(scores).sum())} of {scores.size} scores are NaN")


def _curve(
    scores: FloatArray, labels: BoolArray, weights_RN: Weights
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Distinct scores descending (T,), precision (R, T) and recall (R, T) of `score >= cut`."""
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last_of_cut = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    weights = weights_RN[:, order]
    called = np.cumsum(weights, axis=1, dtype=np.int32)[:, last_of_cut]
    hits = np.cumsum(weights * labels[order], axis=1, dtype=np.int32)[:, last_of_cut]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(called > 0, hits / called, 0.0)
        recall = hits / hits[:, -1:]
    return ordered[last_of_cut], precision, recall


def _recall_at_precision(
    precision_RT: FloatArray, recall_RT: FloatArray, target: float
) -> FloatArray:
    best: FloatArray = np.where(precision_RT >= target, recall_RT, 0.0).max(axis=1)
    return np.where(np.isnan(recall_RT[:, -1]), np.nan, best)


def _average_precision(
    precision_RT: FloatArray, recall_RT: FloatArray, target: float
) -> FloatArray:
    gains = np.diff(recall_RT, axis=1, prepend=0.0)
    total: FloatArray = (precision_RT * gains).sum(axis=1)
    return total


METRICS = {"recall_at_precision": _recall_at_precision, "average_precision": _average_precision}
