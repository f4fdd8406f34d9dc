from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest

from lsb.acquisition.badge import badge, gradient_coefficients, gradient_length
from lsb.acquisition.plus_plus import plus_plus
from lsb.ids import sample_ids

Unit = Callable[..., np.ndarray]


def test_gradients_worked_by_hand() -> None:
    p = np.asarray([[0.9, 0.5], [0.25, 0.0], [0.5, 1.0]])
    coefficients = gradient_coefficients(p, np.asarray([1.0, 2.0]))
    assert coefficients == pytest.approx(np.asarray([[-0.1, -1.0], [0.25, 0.0], [-0.5, 0.0]]))
    assert gradient_length(coefficients) == pytest.approx([np.hypot(0.1, 1.0), 0.25, 0.5])
    with pytest.raises(ValueError, match="1 of 2 values"):
        gradient_coefficients(np.asarray([[0.5], [np.nan]]), np.ones(1))


def test_is_the_gradient_of_the_log_loss() -> None:
    torch = pytest.importorskip("torch")
    vector = torch.tensor([0.6, 0.8], dtype=torch.float64)
    weight = torch.tensor([1.0, -0.3], dtype=torch.float64, requires_grad=True)
    probability = torch.sigmoid(weight @ vector)
    (-torch.log(probability)).backward()  # the model says 1
    assert float(probability.detach()) >= 0.5
    ours = gradient_coefficients(np.asarray([[float(probability.detach())]]), np.ones(1))[0, 0]
    assert weight.grad.numpy() == pytest.approx(ours * vector.numpy())


def test_distances_are_those_of_outer_products(unit: Unit) -> None:
    """Frequencies of the second draw against the chances that the formed products give."""
    vectors = unit(6, 5)
    coefficients = np.random.default_rng(1).normal(size=(6, 2))
    products = np.einsum("nt,nd->ntd", coefficients, vectors).reshape(6, -1)
    chance = ((products - products[2]) ** 2).sum(axis=1)
    draws = [
        int(plus_plus(vectors, coefficients, 2, first=2, salt=("test", seed))[1])
        for seed in range(3000)
    ]
    counts = Counter(draws)
    found = np.asarray([counts[row] for row in range(6)]) / len(draws)
    assert found == pytest.approx(chance / chance.sum(), abs=0.03)
    assert counts[2] == 0


def test_duplicates_are_drawn_last(unit: Unit) -> None:
    vectors = np.repeat(unit(4, 8), 5, axis=0)
    coefficients = np.repeat(np.asarray([[1.0], [0.5], [-1.0], [0.25]]), 5, axis=0)
    rows = plus_plus(vectors, coefficients, 20, first=0, salt=("test",))
    assert sorted((rows[:4] // 5).tolist()) == [0, 1, 2, 3]
    assert sorted(rows.tolist()) == list(range(20))
    assert plus_plus(vectors, coefficients, 9, first=0, salt=("test",)).tolist() == (
        rows[:9].tolist()
    )


def test_the_longest_gradient_is_first_and_order_does_not_matter(unit: Unit) -> None:
    vectors = np.concatenate([unit(50, 8), unit(50, 8)[:10]])
    ids = sample_ids([f"clip-{row}" for row in range(60)])
    p = np.random.default_rng(0).random((60, 2))
    p[:, 0] = np.where(np.arange(60) == 17, 0.5, p[:, 0])
    p[:, 1] = np.where(np.arange(60) == 17, 0.5, p[:, 1])
    coefficients = gradient_coefficients(p, np.asarray([0.5, 0.5]))

    def chosen(order: np.ndarray, count: int, **chance: int) -> list[bytes]:
        rows = badge(ids[order], vectors[order], coefficients[order], count, **chance)
        return ids[order][rows].tolist()

    straight, shuffled = np.arange(60), np.random.default_rng(1).permutation(60)
    one = chosen(straight, 25, seed=0, round=1)
    assert one[0] == ids[17]
    assert one == chosen(shuffled, 25, seed=0, round=1)
    assert one[:8] == chosen(straight, 8, seed=0, round=1)
    assert one != chosen(straight, 25, seed=1, round=1)
    assert one != chosen(straight, 25, seed=0, round=2)
    assert len(set(chosen(straight, 99, seed=0, round=1))) == 60
    assert badge(ids[:0], vectors[:0], coefficients[:0], 3, seed=0, round=1).size == 0
