"""Multi-task binary cross-entropy against sums done by hand."""

from __future__ import annotations

import math

import pytest
import torch

from vlmae.objectives import MultiTaskBinary


def bce(logit: float, label: int) -> float:
    probability = 1 / (1 + math.exp(-logit))
    return -math.log(probability if label else 1 - probability)


def test_missing_labels_have_no_term_and_tasks_their_weights() -> None:
    objective = MultiTaskBinary(["a", "b"], {"b": 3.0})
    logits = torch.tensor([[0.5, -1.0], [2.0, 4.0], [-0.3, 0.1]], requires_grad=True)
    labels = torch.tensor([[1, 0], [-1, 1], [0, -1]])
    loss = objective(logits, labels)
    terms = bce(0.5, 1) + 3 * bce(-1.0, 0) + 3 * bce(4.0, 1) + bce(-0.3, 0)
    assert float(loss.detach()) == pytest.approx(terms / 4, rel=1e-6)
    loss.backward()
    assert logits.grad is not None
    assert (logits.grad == 0).tolist() == (labels == -1).tolist()


def test_no_label_at_all_is_zero_with_zero_gradient() -> None:
    logits = torch.randn(3, 2, requires_grad=True)
    loss = MultiTaskBinary(["a", "b"], {})(logits, torch.full((3, 2), -1))
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_extreme_logits_stay_finite() -> None:
    loss = MultiTaskBinary(["a"], {})(torch.tensor([[200.0], [-200.0]]), torch.tensor([[0], [1]]))
    assert float(loss) == pytest.approx(200.0)


def test_weight_of_an_unknown_task_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\['c'\].*\['a', 'b'\]"):
        MultiTaskBinary(["a", "b"], {"c": 2.0})
