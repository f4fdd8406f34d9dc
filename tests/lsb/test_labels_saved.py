"""Labels saved against random sampling: read off a monotone curve, never extrapolated."""

from __future__ import annotations

import numpy as np
import pytest

from lsb.labels_saved import labels_needed, labels_saved, monotone

LABELS = np.array([100, 200, 300])


def curves(*rows: list[float]) -> np.ndarray:
    return np.asarray(rows, dtype=np.float64)


def test_the_curve_is_linear_between_rounds_and_ends_where_it_ends() -> None:
    values = np.array([0.1, 0.3, 0.4])
    assert labels_needed(LABELS, values, 0.2) == pytest.approx(150)
    assert labels_needed(LABELS, values, 0.4) == 300
    assert labels_needed(LABELS, values, 0.05) == 100
    assert labels_needed(LABELS, values, 0.41) == float("inf")


def test_a_lucky_round_is_averaged_with_the_unlucky_one_behind_it() -> None:
    assert monotone(np.array([0.1, 0.5, 0.3])).tolist() == pytest.approx([0.1, 0.4, 0.4])
    # 0.5 was measured once, but nothing says that 200 labels give it.
    assert labels_needed(LABELS, np.array([0.1, 0.5, 0.3]), 0.45) == float("inf")
    assert labels_needed(LABELS, np.array([0.1, 0.5, 0.3]), 0.4) == pytest.approx(200)


def test_saved_is_what_random_needs_less_what_the_arm_had() -> None:
    arm = np.full(201, 0.35)
    found = labels_saved(200, arm, LABELS, curves(*[[0.1, 0.3, 0.4]] * 201))
    assert found.random_labels == pytest.approx(250)
    assert found.saved == pytest.approx(50)
    assert found.interval == (pytest.approx(50), pytest.approx(50))
    assert found.reached == 1
    assert (found.least_asked, found.most_asked) == (100, 300)
    worse = labels_saved(200, np.full(1, 0.1), LABELS, curves([0.1, 0.3, 0.4]))
    assert worse.saved == -100


def test_not_reached_is_told_as_such_and_opens_the_interval() -> None:
    draws = [[0.1, 0.3, 0.4]] * 50 + [[0.1, 0.2, 0.3]] * 51
    found = labels_saved(200, np.full(101, 0.35), LABELS, curves(*draws))
    assert found.saved == pytest.approx(50)
    assert found.low == pytest.approx(250)
    assert found.high is None
    assert found.reached == pytest.approx(49 / 100)
    never = labels_saved(200, np.full(11, 0.9), LABELS, curves(*[[0.1, 0.2, 0.3]] * 11))
    assert (never.saved, never.interval, never.reached) == (None, (None, None), 0)
    told = never.as_dict()
    assert told["saved"] is None
    assert told["most_asked"] == 300


def test_the_interval_is_of_the_resamples_not_of_the_sample() -> None:
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 0.02, 2001)
    curve = np.array([0.1, 0.3, 0.5])
    drawn = np.stack([curve] * 2001)
    values = 0.3 + noise
    values[0] = 0.3
    found = labels_saved(150, values, LABELS, drawn)
    assert found.saved == pytest.approx(50)
    low, high = found.interval
    assert low is not None
    assert high is not None
    # A label is worth 0.002: 1.96 deviations of 0.02 are about 20 labels.
    assert low == pytest.approx(50 - 19.6, abs=3)
    assert high == pytest.approx(50 + 19.6, abs=3)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="one value for each number of labels, ascending"):
        labels_needed(np.array([100, 100]), np.array([0.1, 0.2]), 0.1)
    with pytest.raises(ValueError, match="resample both alike"):
        labels_saved(100, np.zeros(3), LABELS, np.zeros((4, 3)))
    with pytest.raises(ValueError, match="undefined on a resample"):
        labels_saved(100, np.full(2, np.nan), LABELS, np.zeros((2, 3)))
