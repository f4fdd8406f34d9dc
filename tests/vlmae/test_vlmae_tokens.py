"""Padded token sequences: what is under the mask never counts."""

from __future__ import annotations

import pytest
import torch

from vlmae.tokens import Tokens, concatenate, pad


def test_pad_keeps_values_and_marks_what_is_real() -> None:
    sequences = [torch.randn(2, 3), torch.randn(0, 3), torch.randn(4, 3)]
    tokens = pad(sequences, 3)
    assert tokens.values.shape == (3, 4, 3)
    assert tokens.mask.sum(dim=1).tolist() == [2, 0, 4]
    assert tokens.present.tolist() == [True, False, True]
    for row, sequence in enumerate(sequences):
        assert torch.equal(tokens.values[row][tokens.mask[row]], sequence)
    assert tokens.values[0, 2:].abs().sum() == 0


def test_pad_of_nothing_is_one_masked_token() -> None:
    tokens = pad([torch.zeros(0, 5), torch.zeros(0, 5)], 5)
    assert tokens.values.shape == (2, 1, 5)
    assert not tokens.mask.any()


@pytest.mark.parametrize("garbage", [1e9, float("inf"), float("nan")])
def test_mean_is_over_real_tokens(garbage: float) -> None:
    values = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [garbage] * 2], [[garbage] * 2] * 3])
    mask = torch.tensor([[True, True, False], [False] * 3])
    assert torch.equal(Tokens(values, mask).mean(), torch.tensor([[2.0, 4.0], [0.0, 0.0]]))
    mask[0, 1] = False
    assert torch.equal(Tokens(values, mask).mean(), torch.tensor([[1.0, 2.0], [0.0, 0.0]]))


def test_keep_masks_whole_samples() -> None:
    tokens = pad([torch.ones(2, 1), torch.ones(1, 1)], 1)
    kept = tokens.keep(torch.tensor([False, True]))
    assert kept.mask.tolist() == [[False, False], [True, False]]
    assert tokens.mask.tolist() == [[True, True], [True, False]]


def test_concatenate_joins_along_time() -> None:
    a, b = (
        pad([torch.ones(2, 3), torch.ones(1, 3)], 3),
        pad([torch.zeros(0, 3), 2 * torch.ones(1, 3)], 3),
    )
    joined = concatenate([a, b])
    assert joined.values.shape == (2, 3, 3)
    assert joined.mask.tolist() == [[True, True, False], [True, False, True]]
    assert joined.mean()[:, 0].tolist() == [1.0, 1.5]


@pytest.mark.parametrize(
    ("values", "mask"), [((2, 3), (2, 3)), ((2, 3, 4), (2, 4)), ((2, 3, 4), (2, 3, 4))]
)
def test_shapes_that_do_not_fit_are_refused(values: tuple[int, ...], mask: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"values \(B, T, D\) and a mask \(B, T\)"):
        Tokens(torch.zeros(values), torch.zeros(mask, dtype=torch.bool))
