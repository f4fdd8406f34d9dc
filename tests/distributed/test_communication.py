"""Gradients sent in bfloat16, and ZeRO-3 with a second copy of the weights within a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from communication_cases import FOUR, MIXED, TWO
from torch import Tensor
from torchrun import ended, start_script

# bfloat16 keeps 8 binary digits: a rounding moves a number by 2 ** -9 of it at most.
ROUNDING = 2.0**-9


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Case -> what its first rank left."""
    folder: Path = tmp_path_factory.mktemp("communication")
    for ranks in (2, 4):
        ended(start_script("communication_cases.py", folder, ranks))
    return {path.stem: torch.load(path, weights_only=False) for path in folder.glob("*.pt")}


def difference(ours: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Largest of all tensors."""
    assert list(ours) == list(other)
    return max(float((a - other[name]).abs().max()) for name, a in ours.items())


def is_bf16(tensor: Tensor) -> bool:
    """Whether every number of a float32 tensor is one of bfloat16."""
    assert tensor.dtype == torch.float32
    return torch.equal(tensor, tensor.bfloat16().float())


@pytest.mark.parametrize("name", TWO)
def test_bf16_is_what_gradients_are_sent_in(results: dict[str, dict[str, Any]], name: str) -> None:
    whole, rounded = results[name]["gradients"], results[f"{name}, sent in bf16"]["gradients"]
    assert all(is_bf16(gradient) for gradient in rounded.values())
    moving = [gradient for gradient in whole.values() if gradient.any()]
    assert len(moving) > 20
    # Under autocast some gradients are computed in bfloat16 and stay so where one rank has them.
    assert sum(is_bf16(gradient) for gradient in moving) <= (len(moving) // 2) * (name == MIXED)
    for key, gradient in whole.items():
        # Each rank's part is rounded and so is their sum; parts may be larger than the sum.
        bound = 16 * ROUNDING * float(gradient.abs().max()) + 1e-7
        assert float((rounded[key] - gradient).abs().max()) <= bound, key


@pytest.mark.parametrize("name", TWO)
def test_weights_differ_by_roundings_only(results: dict[str, dict[str, Any]], name: str) -> None:
    whole, rounded = results[name]["state"], results[f"{name}, sent in bf16"]["state"]
    assert all(tensor.dtype == whole[key].dtype for key, tensor in rounded.items())
    assert 1e-5 < difference(rounded, whole) < ROUNDING


def test_all_strategies_send_the_same(results: dict[str, dict[str, Any]]) -> None:
    sent = [results[f"{name}, sent in bf16"]["state"] for name in TWO if name != MIXED]
    assert max(difference(state, sent[0]) for state in sent) < ROUNDING


def test_a_second_copy_lies_on_the_ranks_of_a_machine(
    results: dict[str, dict[str, Any]],
) -> None:
    plain, second = (results[name] for name in FOUR)
    assert not plain["copies"]
    assert len(second["copies"]) > 40
    # Halves on pairs of ranks beside quarters on all four.
    assert all(half == 2 * quarter for half, quarter in second["copies"].values())
    assert difference(second["state"], plain["state"]) < 1e-6
