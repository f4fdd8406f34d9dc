from __future__ import annotations

import numpy as np
import pytest

from lsb.acquisition.scores import disagreement
from lsb.acquisition.stochastic import (
    bald,
    dropout_variance,
    multiclass_bald,
    multiclass_variance,
)

FUNCTIONS = (dropout_variance, bald)


def test_worked_by_hand() -> None:
    #                 sure of both   same doubt   same answer
    passes = np.asarray([[0.0, 0.5, 1.0], [1.0, 0.5, 1.0]])
    assert dropout_variance(passes).tolist() == [0.25, 0.0, 0.0]
    assert bald(passes).tolist() == [1.0, 0.0, 0.0]
    # H(1/4) = 0.8112781..., between passes that say 0 and 1/2: H(1/4) - (H(0) + H(1/2)) / 2
    assert bald(np.asarray([[0.0], [0.5]])) == pytest.approx([0.8112781244591328 - 0.5])
    assert dropout_variance(np.asarray([[0.2], [0.4], [0.9]])) == pytest.approx([0.26 / 3])


def test_agrees_with_the_definitions() -> None:
    passes = np.random.default_rng(0).random((7, 40))
    assert dropout_variance(passes) == pytest.approx(passes.var(axis=0))

    def h(p: np.ndarray) -> np.ndarray:
        return -p * np.log2(p) - (1 - p) * np.log2(1 - p)

    assert bald(passes) == pytest.approx(h(passes.mean(axis=0)) - h(passes).mean(axis=0))
    assert bald(passes[:2]) == pytest.approx(disagreement(passes[0], passes[1]))


def test_labels_are_kept_apart() -> None:
    passes = np.random.default_rng(1).random((3, 5, 2))
    for score in FUNCTIONS:
        both = score(passes)
        assert both.shape == (5, 2)
        assert (both[:, 1] == score(passes[:, :, 1])).all()


def test_of_two_classes_both_forms_agree() -> None:
    passes = np.random.default_rng(2).random((4, 30))
    both = np.stack([passes, 1 - passes], axis=2)
    assert multiclass_bald(both) == pytest.approx(bald(passes))
    assert multiclass_variance(both) == pytest.approx(dropout_variance(passes))


def test_multiclass_worked_by_hand() -> None:
    # Two passes that are sure of two of four classes: one bit.
    passes = np.zeros((2, 1, 4))
    passes[0, 0, 0] = passes[1, 0, 3] = 1.0
    assert multiclass_bald(passes).tolist() == [1.0]
    assert multiclass_variance(passes).tolist() == [0.125]


def test_a_clip_has_the_same_bits_whatever_stands_beside_it() -> None:
    """numpy's own sums fail this from eight passes on."""
    passes = np.random.default_rng(3).random((33, 50))
    for score in FUNCTIONS:
        alone = np.concatenate([score(passes[:, index : index + 1]) for index in range(50)])
        assert alone.tobytes() == score(passes).tobytes()


def test_what_does_not_fit_is_refused() -> None:
    for score in FUNCTIONS:
        with pytest.raises(ValueError, match="at least 2 passes"):
            score(np.full((1, 3), 0.5))
        with pytest.raises(ValueError, match="1 of 4 values"):
            score(np.asarray([[0.5, np.nan], [0.5, 0.5]]))
    with pytest.raises(ValueError, match=r"give \(S, N, C\)"):
        multiclass_bald(np.full((2, 3), 0.5))
    with pytest.raises(ValueError, match="do not sum to 1"):
        multiclass_variance(np.full((2, 3, 2), 0.6))
