from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import entropy

from lsb.acquisition.uncertainty import binary_entropy, combined_entropy, normalised_weights
from lsb.ids import sample_ids


def test_worked_by_hand() -> None:
    # H(1/4) = 1/4 * 2 + 3/4 * log2(4/3) = 0.5 + 0.75 * 0.41504
    expected = [0.0, 0.8112781244591328, 1.0, 0.8112781244591328, 0.0]
    assert binary_entropy(np.asarray([0, 0.25, 0.5, 0.75, 1])) == pytest.approx(expected, abs=1e-15)


def test_agrees_with_scipy_and_stays_finite_near_the_ends() -> None:
    p = np.concatenate([np.linspace(0, 1, 101), [1e-300, 1 - 1e-16, 5e-324]])
    reference = [entropy([value, 1 - value], base=2) for value in p]
    assert binary_entropy(p) == pytest.approx(reference, abs=1e-12)
    assert binary_entropy(p.astype(np.float32)).dtype == np.float64


def test_nan_and_out_of_range_are_counted_and_named() -> None:
    with pytest.raises(ValueError, match="2 of 4 probabilities are NaN or outside"):
        binary_entropy(np.asarray([0.1, np.nan, 1.5, 0.2]))
    ids = sample_ids(["a", "b"])
    with pytest.raises(ValueError, match=rf"task 'x', first clip {ids[1].hex()}: 1 of 2"):
        combined_entropy({"x": np.asarray([0.5, np.nan])}, {"x": 1.0}, ids)


def test_tasks_are_combined_by_weight() -> None:
    ids = sample_ids(["a", "b", "c"])
    probabilities = {
        "x": np.asarray([0.5, 0.0, 0.25]),
        "y": np.asarray([0.0, 0.5, 0.25]),
        "unused": np.asarray([np.nan] * 3),
    }
    score, top, tasks = combined_entropy(probabilities, {"y": 1, "x": 3, "unused": 0}, ids)
    assert tasks == ("x", "y")
    assert score == pytest.approx([0.75, 0.25, 0.8112781244591328])
    assert [tasks[index] for index in top] == ["x", "y", "x"]


def test_weights_are_checked() -> None:
    assert normalised_weights({"b": 1, "a": 3, "c": 0}) == {"a": 0.75, "b": 0.25}
    with pytest.raises(ValueError, match="at least one task a positive weight"):
        normalised_weights({"a": 0})
    with pytest.raises(ValueError, match="weight of task 'a' is -1"):
        normalised_weights({"a": -1})
    with pytest.raises(ValueError, match=r"no probabilities of task 'z', only of \['x'\]"):
        combined_entropy({"x": np.zeros(1)}, {"z": 1}, sample_ids(["a"]))
