"""R@P and average precision against hand-worked cases, torchmetrics and actual resampling."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torchmetrics.classification import BinaryAveragePrecision, BinaryRecallAtFixedPrecision

from vlmae.metrics import (
    Interval,
    average_precision,
    bootstrap,
    bootstrap_metrics,
    choose_threshold,
    operating_point,
    recall_at_precision,
)


def arrays(scores: list[float], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
    return np.array(scores), np.array(labels, bool)


def random_case(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.random(60) < 0.4
    scores = np.clip(0.25 * labels + 0.75 * rng.random(60), 0, 1)
    return (np.round(scores, 1) if ties else scores), labels


def naive_curve(scores: np.ndarray, labels: np.ndarray) -> list[tuple[float, float]]:
    """(precision, recall) of every cut, by counting."""
    points = []
    for cut in sorted(set(scores.tolist()), reverse=True):
        hits = sum(1 for s, y in zip(scores, labels, strict=True) if s >= cut and y)
        called = sum(1 for s in scores if s >= cut)
        points.append((hits / called, hits / sum(labels)))
    return points


def naive_recall(scores: np.ndarray, labels: np.ndarray, target: float) -> float:
    if not labels.any():
        return math.nan
    return max([0.0, *(r for p, r in naive_curve(scores, labels) if p >= target)])


def naive_average(scores: np.ndarray, labels: np.ndarray) -> float:
    if not labels.any():
        return math.nan
    total, before = 0.0, 0.0
    for precision, recall in naive_curve(scores, labels):
        total, before = total + precision * (recall - before), recall
    return total


def test_recall_is_that_of_the_lowest_cut_with_the_precision() -> None:
    # Cuts: 1/1, 2/3, 3/4, 4/5 = 0.8, 4/6, 5/7: precision recovers, and exactly 80 % counts.
    scores, labels = arrays([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 1, 0, 1, 1, 0, 1])
    assert recall_at_precision(scores, labels, 0.8) == 4 / 5
    assert recall_at_precision(scores, labels, 0.81) == 1 / 5
    assert recall_at_precision(scores, labels, 0.7) == 1.0


def test_a_cut_does_not_separate_equal_scores() -> None:
    # Were the tie broken in favour of the positive, recall would be 1.
    for scores, labels in (([0.9, 0.5, 0.5], [1, 1, 0]), ([0.9, 0.5, 0.5], [1, 0, 1])):
        assert recall_at_precision(*arrays(scores, labels), 0.8) == 0.5
        assert average_precision(*arrays(scores, labels)) == pytest.approx(0.5 + 0.5 * 2 / 3)


def test_no_cut_with_the_precision_is_zero_and_no_positive_is_undefined() -> None:
    assert recall_at_precision(*arrays([0.9, 0.8, 0.1], [0, 1, 1]), 0.8) == 0.0
    for scores in ([0.9, 0.1], []):
        none = arrays(scores, [0] * len(scores))
        assert math.isnan(recall_at_precision(*none, 0.8))
        assert math.isnan(average_precision(*none))


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_equals_torchmetrics(seed: int, ties: bool) -> None:
    scores, labels = random_case(seed, ties)
    preds, target = torch.from_numpy(scores), torch.from_numpy(labels.astype(int))
    expected = float(BinaryAveragePrecision()(preds, target))
    assert average_precision(scores, labels) == pytest.approx(expected, abs=1e-6)
    for precision in (0.5, 0.7, 0.8, 0.95):
        recall, _ = BinaryRecallAtFixedPrecision(min_precision=precision)(preds, target)
        ours = recall_at_precision(scores, labels, precision)
        assert ours == pytest.approx(float(recall), abs=1e-6)


@pytest.mark.parametrize(
    ("metric", "naive"),
    [
        ("recall_at_precision", lambda s, y: naive_recall(s, y, 0.8)),
        ("average_precision", naive_average),
    ],
)
def test_bootstrap_equals_metrics_of_clips_actually_drawn(
    metric: str, naive: Callable[[np.ndarray, np.ndarray], float]
) -> None:
    scores, labels = random_case(0, ties=True)
    count = len(scores)
    draws = np.random.default_rng(5).multinomial(count, np.full(count, 1 / count), size=60)
    values = [naive(np.repeat(scores, times), np.repeat(labels, times)) for times in draws]
    for level in (0.2, 0.5, 0.9):
        interval = bootstrap(metric, scores, labels, target=0.8, resamples=60, seed=5, level=level)
        assert interval.value == pytest.approx(naive(scores, labels))
        assert interval.low == pytest.approx(np.quantile(values, (1 - level) / 2))
        assert interval.high == pytest.approx(np.quantile(values, (1 + level) / 2))


def test_several_metrics_of_the_same_draws_are_those_of_each_alone() -> None:
    scores, labels = random_case(0, ties=True)
    options = {"target": 0.8, "resamples": 60, "seed": 5, "level": 0.9}
    metrics = ["recall_at_precision", "average_precision"]
    assert bootstrap_metrics(metrics, scores, labels, **options) == {
        metric: bootstrap(metric, scores, labels, **options) for metric in metrics
    }


def test_draws_without_a_positive_are_left_out() -> None:
    scores, labels = random_case(0, ties=True)
    scores, labels = scores[:12], np.arange(12) % 6 == 0
    draws = np.random.default_rng(5).multinomial(12, np.full(12, 1 / 12), size=60)
    values = [naive_average(np.repeat(scores, n), np.repeat(labels, n)) for n in draws]
    kept = [value for value in values if not math.isnan(value)]
    assert 0 < len(kept) < 60
    interval = bootstrap("average_precision", scores, labels, target=0.8, resamples=60, seed=5)
    assert interval.low == pytest.approx(np.quantile(kept, 0.025))
    assert interval.high == pytest.approx(np.quantile(kept, 0.975))


def test_bootstrap_is_deterministic_and_usually_holds_the_value() -> None:
    holds = 0
    for seed in range(20):
        scores, labels = random_case(seed, ties=False)
        options = {"target": 0.8, "resamples": 200}
        interval = bootstrap("average_precision", scores, labels, seed=1, **options)
        assert interval == bootstrap("average_precision", scores, labels, seed=1, **options)
        assert interval != bootstrap("average_precision", scores, labels, seed=2, **options)
        assert interval.low < interval.high
        holds += interval.low <= interval.value <= interval.high
    assert holds >= 18


@pytest.mark.parametrize("scores", [[0.9, 0.1], []])
def test_bootstrap_without_positives_is_undefined(scores: list[float]) -> None:
    for metric in ("recall_at_precision", "average_precision"):
        none = arrays(scores, [0] * len(scores))
        interval = bootstrap(metric, *none, target=0.8, resamples=10, seed=0)
        assert interval.as_dict() == {"value": None, "low": None, "high": None}
    assert Interval(0.5, 0.25, 1.0).as_dict() == {"value": 0.5, "low": 0.25, "high": 1.0}


def test_threshold_with_most_recall_at_the_precision() -> None:
    scores, labels = arrays([0.9, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4], [1, 1, 0, 1, 1, 0, 1])
    assert choose_threshold(scores, labels, 0.8) == 0.6
    assert choose_threshold(scores, labels, 0.9) == 0.9
    point = operating_point(scores, labels, 0.6)
    assert (point.precision, point.recall) == (4 / 5, 4 / 5)


def test_threshold_where_the_precision_is_out_of_reach() -> None:
    # Precisions by cut: 0, 1/2, 2/3, 1/2.
    scores, labels = arrays([0.9, 0.8, 0.7, 0.6], [0, 1, 1, 0])
    assert choose_threshold(scores, labels, 0.8) == 0.7
    assert choose_threshold(*arrays([0.9, 0.8], [0, 0]), 0.8) == 0.5
    assert choose_threshold(*arrays([], []), 0.8) == 0.5


def test_operating_point_is_undefined_where_nothing_is_called_or_positive() -> None:
    scores, labels = arrays([0.3, 0.2], [1, 0])
    point = operating_point(scores, labels, 0.9)
    assert math.isnan(point.precision)
    assert point.recall == 0.0
    point = operating_point(scores, np.zeros(2, bool), 0.25)
    assert point.precision == 0.0
    assert math.isnan(point.recall)
    assert operating_point(scores, labels, 0.3).recall == 1.0, "the threshold itself is called"


def test_errors_name_the_value() -> None:
    scores, labels = arrays([0.3, 0.2], [1, 0])
    with pytest.raises(ValueError, match=r"scores \(2,\) and labels \(1,\)"):
        average_precision(scores, labels[:1])
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        recall_at_precision(np.array([0.1, np.nan]), labels, 0.8)
    with pytest.raises(ValueError, match=r"in \(0, 1\], got 0"):
        recall_at_precision(scores, labels, 0.0)
    with pytest.raises(ValueError, match="'accuracy'"):
        bootstrap("accuracy", scores, labels, target=0.8, resamples=2, seed=0)
