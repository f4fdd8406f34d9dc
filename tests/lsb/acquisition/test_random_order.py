from __future__ import annotations

import numpy as np
from scipy.stats import kstest

from lsb.acquisition.random import random_order, uniform
from lsb.ids import sample_ids, to_bytes

IDS = sample_ids([f"clip-{index}" for index in range(5000)])


def test_is_uniform_and_independent_between_rounds() -> None:
    one, two = uniform(IDS, 1, 0), uniform(IDS, 1, 1)
    assert kstest(one, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(one, two)[0, 1]) < 0.06
    assert one.min() >= 0
    assert one.max() < 1


def test_order_does_not_depend_on_the_order_of_rows() -> None:
    shuffled = np.random.default_rng(0).permutation(IDS)
    order = random_order(IDS, seed=3, round=2)
    assert to_bytes(random_order(shuffled, 3, 2)) == to_bytes(order)
    assert sorted(to_bytes(order)) == sorted(to_bytes(IDS))
    # Dropping clips keeps the order of the others.
    half = set(to_bytes(IDS[::2]))
    kept = [name for name in to_bytes(order) if name in half]
    assert to_bytes(random_order(IDS[::2], 3, 2)) == kept


def test_order_depends_on_seed_and_round() -> None:
    orders = {
        tuple(to_bytes(random_order(IDS, s, r))) for s, r in [(0, 0), (0, 1), (1, 0), (0, 11)]
    }
    assert len(orders) == 4
