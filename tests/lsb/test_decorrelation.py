from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lsb.decorrelation import fit_decorrelation
from lsb.store import Store

Make = Callable[..., Store]
KEYS = [f"clip-{row}" for row in range(600)]


def nuisance_world() -> tuple[np.ndarray, np.ndarray]:
    """Clips whose first 20 coordinates, large, mean nothing; the sign of the last, small, is what
    they show."""
    random = np.random.default_rng(0)
    shown = random.random(600) < 0.5
    vectors = random.normal(size=(600, 24)) * np.asarray([2.0] * 20 + [0.3] * 3 + [0.1])
    vectors[:, 23] += np.where(shown, 1.0, -1.0)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), shown


def alike(seeds: np.ndarray, vectors: np.ndarray, shown: np.ndarray) -> float:
    """Share of the ten best hits of the first 50 clips that show the same."""
    similarity = seeds @ vectors.T
    similarity[np.arange(50), np.arange(50)] = -np.inf
    best = np.argsort(-similarity, axis=1)[:, :10]
    return float((shown[best] == shown[:50, None]).mean())


def test_seeds_find_what_is_unusual_about_them_and_not_what_all_clips_vary_in(
    make_store: Make,
) -> None:
    vectors, shown = nuisance_world()
    fitted = fit_decorrelation(make_store(vectors, KEYS), shrinkage=0.01)
    seeds = fitted.seeds(vectors[:50])
    assert np.linalg.norm(seeds, axis=1) == pytest.approx(1.0, abs=1e-6)
    plain, decorrelated = alike(vectors[:50], vectors, shown), alike(seeds, vectors, shown)
    assert plain < 0.65  # chance is a half
    assert decorrelated > 0.75


def test_it_is_the_linear_discriminant_of_one_example(make_store: Make) -> None:
    """S^-1 (q - mean), S the covariance with the shrinkage's share of its mean variance."""
    vectors, _ = nuisance_world()
    wide = vectors.astype(np.float64)
    covariance = np.cov(wide, rowvar=False)
    covariance += 0.1 * np.trace(covariance) / 24 * np.eye(24)
    expected = np.linalg.solve(covariance, (wide[:5] - wide.mean(axis=0)).T).T
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    found = fit_decorrelation(make_store(vectors, KEYS), shrinkage=0.1).seeds(vectors[:5])
    assert found == pytest.approx(expected, abs=1e-5)


def test_it_depends_on_the_clips_and_not_on_parts(make_store: Make) -> None:
    vectors, _ = nuisance_world()
    found = [
        fit_decorrelation(
            make_store(vectors, KEYS, parts=parts, shuffle=shuffle), shrinkage=0.1, sample=200
        ).seeds(vectors[:5])
        for parts, shuffle in ((1, None), (3, 1), (7, 2))
    ]
    assert found[0].tobytes() == found[1].tobytes() == found[2].tobytes()


@pytest.mark.parametrize("shrinkage", [0.0, -0.1, 1.5])
def test_a_shrinkage_out_of_range_is_refused(make_store: Make, shrinkage: float) -> None:
    vectors, _ = nuisance_world()
    with pytest.raises(ValueError, match="the shrinkage of a covariance is"):
        fit_decorrelation(make_store(vectors, KEYS), shrinkage=shrinkage)


def test_a_store_of_one_clip_has_no_covariance(make_store: Make) -> None:
    vectors, _ = nuisance_world()
    with pytest.raises(ValueError, match="has 1 clips: a covariance needs two"):
        fit_decorrelation(make_store(vectors[:1], KEYS[:1]), shrinkage=0.1)
