"""Temperatures against a model whose true temperature is known, and what is kept of them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from vlmae.calibration import HOTTEST, Calibration, calibrate
from vlmae.metrics import BINS, calibration_error
from vlmae.objectives import GroupedSoftmax, MultiTaskBinary, MultiTaskFocal, Objective

TASKS = ["a", "b", "c", "d"]
SOFTMAX: dict[str, Any] = {
    "_target_": "vlmae.objectives.GroupedSoftmax",
    "weights": {},
    "groups": {"topic": ["d", "b", "c"]},
}


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def overconfident(
    temperatures: list[float], clips: int = 6000
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Logits that are too sure by known factors, labels, and the true probabilities."""
    rng = np.random.default_rng(3)
    honest = 1.5 * rng.normal(size=(clips, len(temperatures)))
    labels = (rng.random(honest.shape) < sigmoid(honest)).astype(np.int8)
    return (honest * temperatures).astype(np.float32), labels, sigmoid(honest)


def total_nll(
    objective: Objective, logits: np.ndarray, labels: np.ndarray, temperatures: dict[str, float]
) -> float:
    scaled = logits.astype(np.float64) / [temperatures[task] for task in objective.tasks]
    truth = torch.from_numpy(labels).long()
    return float((objective.nll(torch.from_numpy(scaled), truth) * objective.terms(truth)).sum())


def test_the_temperature_that_was_put_in_is_found() -> None:
    logits, labels, truth = overconfident([3.0, 1.0, 0.5, 2.0])
    labels[::3, 1] = -1
    objective = MultiTaskBinary(TASKS, {"a": 5.0}, {"d": 9.0})
    found = calibrate(logits, labels, objective)
    assert list(found) == TASKS
    assert list(found.values()) == pytest.approx([3.0, 1.0, 0.5, 2.0], rel=0.08)
    for task in TASKS:
        for factor in (0.99, 1.01):
            moved = {**found, task: found[task] * factor}
            assert total_nll(objective, logits, labels, moved) > total_nll(
                objective, logits, labels, found
            )
    calibrated = Calibration(tuple(TASKS), None, found).probabilities(logits)
    np.testing.assert_allclose(calibrated, truth, atol=0.03)
    before = calibration_error(sigmoid(logits[:, 0].astype(np.float64)), labels[:, 0] == 1)
    after = calibration_error(calibrated[:, 0], labels[:, 0] == 1)
    assert before > 0.1
    assert after < 0.03


def test_tasks_of_a_softmax_share_a_temperature() -> None:
    rng = np.random.default_rng(0)
    honest = 1.5 * rng.normal(size=(5000, 4))
    odds = np.exp(honest[:, 1:])
    shares = odds / odds.sum(axis=1, keepdims=True)
    chosen = (rng.random((5000, 1)) > shares.cumsum(axis=1)).sum(axis=1)
    labels = np.zeros((5000, 4), np.int8)
    labels[:, 0] = rng.random(5000) < sigmoid(honest[:, 0])
    labels[np.arange(5000), 1 + chosen] = 1
    labels[:1500, 2] = -1
    labels[1000:2000, 3] = -1
    logits = (honest * [0.8, 2.5, 2.5, 2.5]).astype(np.float32)
    found = calibrate(logits, labels, GroupedSoftmax(TASKS, {}, {"topic": ["d", "b", "c"]}))
    assert found["b"] == found["c"] == found["d"] == pytest.approx(2.5, rel=0.06)
    assert found["a"] == pytest.approx(0.8, rel=0.06)
    values = Calibration(tuple(TASKS), SOFTMAX, found).probabilities(logits)
    assert values.dtype == np.float32
    np.testing.assert_allclose(values[:, 1:].sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(values[:, 1:], shares, atol=0.04)


def test_focal_loss_is_calibrated_on_the_likelihood() -> None:
    logits, labels, _ = overconfident([0.5], clips=2000)
    ours = calibrate(logits, labels, MultiTaskFocal(["a"], {}, gamma=3.0, alpha=0.9))
    assert ours == calibrate(logits, labels, MultiTaskBinary(["a"], {}))


def test_what_cannot_be_fitted_stays_at_one() -> None:
    logits, labels, _ = overconfident([3.0] * 4, clips=60)
    labels[9:, 0] = -1
    labels[:, 1] = 0
    labels[:, 2] = -1
    found = calibrate(logits, labels, MultiTaskBinary(TASKS, {}))
    assert [found[task] for task in "abc"] == [1.0, 1.0, 1.0]
    assert found["d"] > 1.5
    empty = calibrate(logits[:0], labels[:0], MultiTaskBinary(TASKS, {}))
    assert empty == dict.fromkeys(TASKS, 1.0)
    one_class = np.tile(np.array([[1, 1, 0, 0]], np.int8), (60, 1))
    grouped = GroupedSoftmax(TASKS, {}, {"topic": ["d", "b", "c"]})
    assert calibrate(logits, one_class, grouped) == dict.fromkeys(TASKS, 1.0)


def test_labels_that_are_separated_do_not_freeze_the_temperature() -> None:
    # The likelihood alone would take the coldest there is.
    labels = np.tile(np.array([[0], [1]], np.int8), (20, 1))
    objective = MultiTaskBinary(["a"], {})
    for margin, lowest in ((2.0, 0.3), (8.0, 0.85)):
        separated = np.where(labels == 1, margin, -margin).astype(np.float32)
        found = calibrate(separated, labels, objective)
        assert lowest < found["a"] < 1
        # The prior never makes the likelihood worse than no temperature at all.
        assert total_nll(objective, separated, labels, found) < total_nll(
            objective, separated, labels, {"a": 1.0}
        )
        # Where the minimum is: the derivative by log T of 40 log(1 + exp(-m / T)) + log(T)^2 / 2.
        scaled = margin / found["a"]
        slope = 40 * scaled / (1 + math.exp(scaled)) + math.log(found["a"])
        assert slope == pytest.approx(0, abs=1e-5)
        surest = np.array([[2 * margin], [1.99 * margin]], np.float32)
        first, second = Calibration(("a",), None, found).probabilities(surest)[:, 0]
        assert first > second or margin > 4, "clips are still told apart"


def test_scores_that_are_worse_than_none_stop_at_the_bound() -> None:
    labels = np.tile(np.array([[0], [1]], np.int8), (200, 1))
    reversed_scores = np.where(labels == 1, -9.0, 9.0).astype(np.float32)
    found = calibrate(reversed_scores, labels, MultiTaskBinary(["a"], {}))
    assert found["a"] == pytest.approx(HOTTEST, rel=1e-6)


def test_without_anything_it_is_a_sigmoid_to_the_bit() -> None:
    logits = np.random.default_rng(0).normal(0, 20, (200, 3)).astype(np.float32)
    expected = torch.from_numpy(logits).sigmoid().numpy()
    binary = {"_target_": "vlmae.objectives.MultiTaskBinary", "weights": {}}
    for calibration in (
        Calibration(),
        Calibration(("a", "b", "c"), None, dict.fromkeys("abc", 1.0)),
        Calibration(("a", "b", "c"), binary, {"b": 1.0}),
        Calibration(("a", "b", "c"), binary, {"b": 3.0}).uncalibrated,
    ):
        assert (calibration.probabilities(logits) == expected).all()


def test_ranks_of_a_binary_task_stay() -> None:
    logits = np.random.default_rng(0).normal(0, 2, (100, 1)).astype(np.float32)
    warm = Calibration(("a",), None, {"a": 2.5}).probabilities(logits)
    assert (np.argsort(warm[:, 0]) == np.argsort(logits[:, 0])).all()


def test_temperatures_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match=r"temperatures are for \['b'\], the tasks are \['a'\]"):
        Calibration(("a",), None, {"b": 2.0})
    for value in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"temperature of 'a' is .*: give a positive"):
            Calibration(("a",), None, {"a": value})


def test_calibration_error_by_hand() -> None:
    # Two bins of 15: 0.05 and 0.06 with no positive, 0.9 three times with two.
    scores = np.array([0.05, 0.06, 0.9, 0.9, 0.9])
    labels = np.array([0, 0, 1, 1, 0], bool)
    expected = 0.4 * 0.055 + 0.6 * (0.9 - 2 / 3)
    assert calibration_error(scores, labels) == pytest.approx(expected, rel=1e-5)
    assert calibration_error(np.array([0.0, 1.0]), np.array([False, True])) == 0.0
    assert math.isnan(calibration_error(np.zeros(0), np.zeros(0, bool)))
    with pytest.raises(ValueError, match="from -1 to 2: give probabilities"):
        calibration_error(np.array([-1.0, 2.0]), np.array([False, True]))


def test_calibration_error_is_the_mean_over_bins() -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(500)
    labels = rng.random(500) < scores**2
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    expected = sum(
        (bins == number).mean() * abs(scores[bins == number].mean() - labels[bins == number].mean())
        for number in set(bins.tolist())
    )
    assert calibration_error(scores, labels) == pytest.approx(expected, rel=1e-4)
