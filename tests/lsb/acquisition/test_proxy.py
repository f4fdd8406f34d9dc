from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lsb.acquisition.proxy import Proxy, fit_proxy, rank_by_proxy
from lsb.acquisition.scores import top_score
from lsb.acquisition.uncertainty import binary_entropy
from lsb.ids import sample_ids
from lsb.order import descending
from lsb.store import Store

Make = Callable[..., Store]
Unit = Callable[..., np.ndarray]
NONE = sample_ids([])


def test_probabilities_worked_by_hand() -> None:
    proxy = Proxy(np.asarray([2.0, 0.0], np.float32), -1.0)
    vectors = np.asarray([[1, 0], [0.5, 0], [0, 1]], np.float32)
    assert proxy.probabilities(vectors) == pytest.approx(1 / (1 + np.exp([-1.0, 0.0, 1.0])))


def test_the_fit_is_the_minimum_of_its_loss(unit: Unit) -> None:
    """At the minimum the gradient is zero: sum of (p - y) v + penalty * w, and sum of (p - y)."""
    vectors, ids = unit(200, 6), sample_ids([f"clip-{row}" for row in range(200)])
    noise = np.random.default_rng(0).normal(size=200)
    label = (vectors[:, 0] + 0.3 * noise > 0.1).astype(np.int8)
    proxy = fit_proxy(ids, vectors, label, penalty=0.7)
    apart = proxy.probabilities(vectors) - label
    assert vectors.T @ apart + 0.7 * proxy.weight == pytest.approx(np.zeros(6), abs=1e-3)
    assert apart.sum() == pytest.approx(0, abs=1e-3)
    hidden = label.copy()
    hidden[::3] = -1
    seen = hidden != -1
    alone = fit_proxy(ids[seen], vectors[seen], label[seen], penalty=0.7)
    same = fit_proxy(ids, vectors, hidden, penalty=0.7)
    assert (same.weight == alone.weight).all()
    shuffled = np.random.default_rng(1).permutation(200)
    again = fit_proxy(ids[shuffled], vectors[shuffled], label[shuffled], penalty=0.7)
    assert (again.weight.tobytes(), again.bias) == (proxy.weight.tobytes(), proxy.bias)


def test_more_penalty_gives_smaller_weights(unit: Unit) -> None:
    vectors, ids = unit(100, 6), sample_ids([f"clip-{row}" for row in range(100)])
    label = (vectors[:, 0] > 0).astype(np.int8)
    norms = [
        float(np.linalg.norm(fit_proxy(ids, vectors, label, penalty=penalty).weight))
        for penalty in (0.01, 1.0, 100.0)
    ]
    assert norms == sorted(norms, reverse=True)


def test_ranking_is_that_of_all_vectors_at_once(make_store: Make, unit: Unit) -> None:
    keys, vectors = [f"clip-{row}" for row in range(300)], unit(300, 12)
    ids = sample_ids(keys)
    random = np.random.default_rng(0)
    proxies = {
        task: Proxy(5 * random.normal(size=12).astype(np.float32), 0.1) for task in ("a", "b")
    }
    weights, exclude = {"a": 1.0, "b": 1.0}, ids[:20]
    free = np.arange(20, 300)
    for score in (binary_entropy, top_score):
        mean = 0.5 * sum(score(proxies[task].probabilities(vectors)) for task in ("a", "b"))
        expected = free[descending(mean[free], ids[free])][:50]
        for parts in (1, 2, 7):
            store = make_store(vectors, keys, parts=parts, shuffle=parts, kind="pooled")
            found = rank_by_proxy(store, proxies, weights, 50, exclude=exclude, score=score)
            assert (found.best.ids == ids[expected]).all()
            assert len(found.excluded) == 20


def test_what_does_not_fit_is_refused(make_store: Make, unit: Unit) -> None:
    vectors, ids = unit(4, 3), sample_ids(["a", "b", "c", "d"])
    with pytest.raises(ValueError, match="2 of 2 labelled clips are positive"):
        fit_proxy(ids, vectors, np.asarray([1, 1, -1, -1], np.int8))
    with pytest.raises(ValueError, match="penalty of a proxy is 0"):
        fit_proxy(ids, vectors, np.asarray([1, 0, 1, 0], np.int8), penalty=0)
    store = make_store(vectors, ["a", "b", "c", "d"], kind="pooled")
    proxies = {"x": Proxy(np.ones(2, np.float32), 0.0)}
    with pytest.raises(ValueError, match=r"'x' has 2 weights, store .* has dimension 3"):
        rank_by_proxy(store, proxies, {"x": 1}, 2, exclude=NONE)
    with pytest.raises(ValueError, match=r"'y' has a weight but no proxy, only \['x'\]"):
        rank_by_proxy(store, proxies, {"y": 1}, 2, exclude=NONE)
