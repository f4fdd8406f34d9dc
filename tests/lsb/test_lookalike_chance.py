from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.isotonic import IsotonicRegression

from lsb.lookalike_chance import LookalikeChance, any_lookalike, fit_chance


def pairs(count: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    similarity = random.random(count).astype(np.float32).round(2)
    return similarity, random.random(count) < similarity


def test_it_is_the_isotonic_regression_of_scikit_learn() -> None:
    similarity, lookalike = pairs(300)
    found = fit_chance(similarity, lookalike, minimum_pairs=30)
    # The imagined pairs, as the docstring says: a failure above all, a lookalike below.
    x = np.r_[-1.0, similarity.astype(np.float64), 2.0]
    oracle = IsotonicRegression().fit(x, np.r_[1.0, lookalike, 0.0])
    np.testing.assert_allclose(found.chance, oracle.predict(found.similarity), atol=1e-12)
    grid = np.linspace(0.2, 0.8, 50)
    assert (np.diff(found(grid)) >= 0).all()
    np.testing.assert_allclose(found(grid), grid, atol=0.2)  # it was drawn so


@given(st.integers(0, 500), st.integers(30, 80))
def test_chances_never_fall_and_are_never_certain(seed: int, count: int) -> None:
    similarity, lookalike = pairs(count, seed)
    found = fit_chance(similarity, lookalike, minimum_pairs=30)
    assert (np.diff(found.chance) >= -1e-12).all()
    assert (found.chance > 0).all()
    assert (found.chance < 1).all()
    order = np.random.default_rng(seed).permutation(count)
    again = fit_chance(similarity[order], lookalike[order], minimum_pairs=30)
    np.testing.assert_array_equal(found.chance, again.chance)


def test_it_is_flat_beyond_what_was_seen() -> None:
    curve = LookalikeChance(np.asarray([0.2, 0.6]), np.asarray([0.1, 0.5]))
    assert curve(np.asarray([0.0, 0.2, 0.4, 0.6, 1.0])) == pytest.approx([0.1, 0.1, 0.3, 0.5, 0.5])


def test_seeds_that_reach_a_clip_add_up() -> None:
    chance = np.asarray([0.5, 0.5, 0.2, 0.9])
    together = any_lookalike(chance, np.asarray([0, 0, 1, 0]), 3)
    assert together == pytest.approx([1 - 0.5 * 0.5 * 0.1, 0.2, 0.0])


def test_too_few_pairs_are_refused() -> None:
    similarity, lookalike = pairs(29)
    message = r"29 labelled pairs, threshold\.minimum_pairs is 30: too few .* selection\.rank"
    with pytest.raises(ValueError, match=message):
        fit_chance(similarity, lookalike, minimum_pairs=30)
