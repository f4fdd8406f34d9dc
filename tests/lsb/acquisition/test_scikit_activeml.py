"""Our selectors against those of scikit-activeml on pools that it can hold.

It keeps a pool and its distances in memory and breaks ties by chance, so it is the oracle of these
tests and no dependency of lsb (docs/decisions.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from skactiveml.base import SkactivemlClassifier
from skactiveml.pool import Badge, CoreSet, TypiClust, batch_bald, uncertainty_scores
from sklearn.cluster import KMeans

from lsb.acquisition.badge import badge, gradient_coefficients, gradient_length
from lsb.acquisition.core_set import k_centre
from lsb.acquisition.scores import (
    least_confidence,
    margin,
    multiclass_entropy,
    multiclass_least_confidence,
    multiclass_margin,
)
from lsb.acquisition.stochastic import bald, multiclass_bald
from lsb.acquisition.typiclust import typicality, typiclust
from lsb.acquisition.uncertainty import binary_entropy
from lsb.ids import sample_ids

Unit = Callable[..., np.ndarray]
LOG_2 = np.log(2)


class Given(SkactivemlClassifier):
    """A classifier that gives the probabilities it was made with."""

    def __init__(self, given: np.ndarray) -> None:
        super().__init__(classes=[0, 1])
        self.given = given

    def fit(self, X: np.ndarray, y: np.ndarray, sample_weight: Any = None) -> Given:
        self._validate_data(X, y)
        return self

    def predict_proba(self, X: np.ndarray) -> np.ndarray:
        return np.stack([1 - self.given, self.given], axis=1)


def rows_of(classes: int) -> np.ndarray:
    return np.random.default_rng(classes).dirichlet(np.ones(classes), size=200)


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_uncertainties_are_its(classes: int) -> None:
    given = rows_of(classes)
    theirs = {
        name: uncertainty_scores(given, method=name)
        for name in ("least_confident", "margin_sampling", "entropy")
    }
    assert multiclass_least_confidence(given) == pytest.approx(theirs["least_confident"])
    assert multiclass_margin(given) == pytest.approx(theirs["margin_sampling"])
    assert multiclass_entropy(given) * LOG_2 == pytest.approx(theirs["entropy"])
    if classes == 2:
        assert least_confidence(given[:, 1]) == pytest.approx(theirs["least_confident"])
        assert margin(given[:, 1]) == pytest.approx(theirs["margin_sampling"])
        assert binary_entropy(given[:, 1]) * LOG_2 == pytest.approx(theirs["entropy"])


@pytest.mark.parametrize("classes", [2, 4])
def test_bald_is_its(classes: int) -> None:
    passes = np.random.default_rng(0).dirichlet(np.ones(classes), size=(6, 50))
    theirs = batch_bald(passes, batch_size=1)[0]
    assert multiclass_bald(passes) * LOG_2 == pytest.approx(theirs, abs=1e-9)
    if classes == 2:
        assert bald(passes[:, :, 1]) * LOG_2 == pytest.approx(theirs, abs=1e-9)


def test_core_set_is_its(unit: Unit) -> None:
    vectors, labelled = unit(120, 9), np.asarray([3, 50, 77])
    given = np.full(120, np.nan)
    given[labelled] = 1
    theirs = CoreSet(random_state=0).query(vectors, given, batch_size=30)
    ids, free = sample_ids([f"clip-{row}" for row in range(120)]), np.isnan(given)
    rows = k_centre(
        ids[free],
        vectors[free],
        30,
        covered_ids=ids[~free],
        covered_MD=vectors[~free],
        seed=0,
        round=1,
    )
    assert np.flatnonzero(free)[rows].tolist() == theirs.tolist()


def test_gradients_of_badge_are_its(unit: Unit) -> None:
    """Its later draws are not compared: it takes the origin for a centre, too, which neither
    k-means++ nor the code of the method's authors does."""
    vectors, probability = unit(12, 5), np.random.default_rng(1).random(12)
    first, chances = Badge(random_state=0).query(
        vectors, np.full(12, np.nan), Given(probability), return_utilities=True
    )
    coefficients = gradient_coefficients(probability[:, None], np.ones(1))
    squared = gradient_length(coefficients) ** 2
    assert squared / squared.sum() == pytest.approx(chances[0], rel=1e-5)
    ids = sample_ids([f"clip-{row:02}" for row in range(12)])
    assert badge(ids, vectors, coefficients, 1, seed=0, round=1).tolist() == [int(first[0])]


def test_typical_clips_of_clear_clusters_are_its() -> None:
    generator = np.random.default_rng(4)
    sizes, centres = (21, 27, 33, 45), np.eye(6)[:4]
    noise = [0.1 * generator.normal(size=(size, 6)) for size in sizes]
    vectors = np.concatenate([c + n for c, n in zip(centres, noise, strict=True)])
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    given = np.full(len(vectors), np.nan)
    given[40] = 1  # the second cluster has a label
    query = TypiClust(
        random_state=0, cluster_algo=KMeans, cluster_algo_dict={"n_init": 10, "random_state": 0}
    )
    query.k = 10  # of up to 20 neighbours ours takes half a cluster: 10 of the smallest
    theirs, utilities = query.query(vectors, given, batch_size=3, return_utilities=True)
    smallest = np.arange(sizes[0])
    assert typicality(vectors[smallest]) == pytest.approx(utilities[2][smallest], rel=1e-3)
    ids, free = sample_ids([f"clip-{row}" for row in range(len(vectors))]), np.isnan(given)
    rows = typiclust(
        ids[free],
        vectors[free],
        3,
        covered_ids=ids[~free],
        covered_MD=vectors[~free],
        seed=0,
        round=1,
    )
    cluster = np.repeat(np.arange(4), sizes)
    ours = np.flatnonzero(free)[rows[:3]]
    assert cluster[ours].tolist() == cluster[theirs].tolist() == [3, 2, 0]
    assert ours[2] == theirs[2]
