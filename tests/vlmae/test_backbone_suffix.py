"""Masks, pooling, names and refusals of suffix modules, on made-up weights."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_suffix import TransformerSuffix
from torch import nn
from torch.nn import functional
from transformers import BertConfig
from transformers.models.bert.modeling_bert import BertLayer

from vlmae.backbones.efficientnet_lite import EfficientNetLite0
from vlmae.backbones.suffix import (
    FeatureMapSuffix,
    StreamSuffix,
    Suffix,
    mean_of_groups,
    split_last,
)
from vlmae.tokens import Tokens, pad

WIDTH, SIDE, CHANNELS = 8, 4, 3


def transformer(pool: int | None = 4) -> TransformerSuffix:
    config = BertConfig(
        hidden_size=WIDTH,
        num_attention_heads=2,
        intermediate_size=16,
        attn_implementation="sdpa",
    )
    layers = nn.ModuleDict({str(number): BertLayer(config) for number in (3, 4)})
    return TransformerSuffix(layers, nn.LayerNorm(WIDTH), pool, WIDTH)


def feature_map(grid: int = 2) -> FeatureMapSuffix:
    network = nn.Sequential(nn.Conv2d(CHANNELS, 5, 3, padding=1), nn.ReLU6(), nn.Conv2d(5, 6, 1))
    return FeatureMapSuffix(network, SIDE, grid, CHANNELS, blocks=2)


@pytest.fixture(params=["pieces", "groups", "all", "frames"])
def suffix(request: pytest.FixtureRequest) -> Iterator[StreamSuffix]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made: dict[str, StreamSuffix] = {
            "pieces": transformer(1),
            "groups": transformer(4),
            "all": transformer(None),
            "frames": feature_map(),
        }
        yield made[request.param].eval()


def sequences(suffix: StreamSuffix, *lengths: int) -> list[torch.Tensor]:
    unit = SIDE**2 if isinstance(suffix, FeatureMapSuffix) else 1
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(length * unit, suffix.width, generator=generator) for length in lengths]


def real(tokens: Tokens, row: int) -> torch.Tensor:
    return tokens.values[row][tokens.mask[row]]


def test_clips_of_other_lengths_in_the_batch_change_nothing(suffix: StreamSuffix) -> None:
    clips = sequences(suffix, 3, 9, 0, 1, 4)
    together = suffix(pad(clips, suffix.width))
    for row, clip in enumerate(clips):
        alone = suffix(pad([clip], suffix.width))
        torch.testing.assert_close(real(together, row), real(alone, 0), atol=1e-6, rtol=1e-5)
    assert together.present.tolist() == [True, True, False, True, True]


@pytest.mark.parametrize("more", [1, 7, 16, 33])
def test_padding_of_any_length_and_content_has_no_influence(
    suffix: StreamSuffix, more: int
) -> None:
    tokens = pad(sequences(suffix, 5, 2), suffix.width)
    expected = suffix(tokens)
    values = torch.where(tokens.mask[..., None], tokens.values, math.nan)
    values = functional.pad(values, (0, 0, 0, more), value=math.inf)
    result = suffix(Tokens(values, functional.pad(tokens.mask, (0, more))))
    assert result.values.isfinite().all(), "a mean over all tokens must not meet a NaN"
    for row in range(2):
        torch.testing.assert_close(real(result, row), real(expected, row), atol=1e-6, rtol=1e-5)


def test_what_is_masked_gives_and_gets_no_gradient(suffix: StreamSuffix) -> None:
    tokens = pad(sequences(suffix, 5, 0, 2), suffix.width)
    values = torch.where(tokens.mask[..., None], tokens.values, math.nan).requires_grad_()
    result = suffix(Tokens(values, tokens.mask))
    result.mean().square().sum().backward()
    assert values.grad is not None
    assert values.grad.isfinite().all()
    assert (values.grad[~tokens.mask] == 0).all()
    assert (values.grad[tokens.mask] != 0).any()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in suffix.parameters())


def test_batch_without_any_real_token_still_has_gradients(suffix: StreamSuffix) -> None:
    # One rank of several whose clips all lack the stream must still take part in the reduction.
    result = suffix(pad([torch.zeros(0, suffix.width)] * 2, suffix.width))
    assert not result.present.any()
    result.mean().sum().backward()
    assert all(p.grad is not None and (p.grad == 0).all() for p in suffix.parameters())


def test_half_precision_with_a_masked_row_is_finite(suffix: StreamSuffix) -> None:
    tokens = pad(sequences(suffix, 0, 3), suffix.width)
    exact = suffix(tokens)
    with torch.autocast("cpu", torch.bfloat16):
        result = suffix(tokens)
    assert result.values.isfinite().all()
    torch.testing.assert_close(real(result, 1).float(), real(exact, 1), atol=0.1, rtol=0.1)


def test_no_tensor_is_made_on_another_device_than_the_tokens(suffix: StreamSuffix) -> None:
    # The meta device refuses to compute with tensors of the CPU, as a GPU does.
    suffix.to("meta")
    tokens = pad(sequences(suffix, 5, 2), suffix.width).to(torch.device("meta"))
    result = suffix(tokens)
    assert result.values.device.type == result.mask.device.type == "meta"


@settings(max_examples=60, deadline=None)
@given(
    mask=st.lists(st.booleans(), min_size=1, max_size=13), size=st.sampled_from([1, 2, 5, 20, None])
)
def test_group_is_real_if_any_position_is_and_the_mean_of_those(
    mask: list[bool], size: int | None
) -> None:
    values = np.random.default_rng(len(mask)).normal(size=(len(mask), 2)).astype(np.float32)
    values[~np.array(mask)] = np.nan
    pooled = mean_of_groups(Tokens(torch.from_numpy(values)[None], torch.tensor([mask])), size)
    step = size or len(mask)
    groups = [range(start, len(mask))[:step] for start in range(0, len(mask), step)]
    assert pooled.mask[0].tolist() == [any(mask[i] for i in group) for group in groups]
    for number, group in enumerate(groups):
        if pooled.mask[0, number]:
            expected = np.mean([values[i] for i in group if mask[i]], axis=0)
            np.testing.assert_allclose(pooled.values[0, number], expected, rtol=1e-5, atol=1e-6)


def test_last_blocks_keep_their_numbers_and_are_not_copied() -> None:
    blocks = nn.ModuleList(nn.Linear(2, 2) for _ in range(5))
    originals = list(blocks)
    first, last = split_last(blocks, 2, "tuned_blocks")
    assert list(last) == ["3", "4"]
    assert [*first, *last.values()] == originals
    assert list(split_last(blocks, 5, "tuned_blocks")[0]) == []
    for wrong in (-1, 6):
        with pytest.raises(ValueError, match=f"tuned_blocks must be from 0 to 5, got {wrong}"):
            split_last(blocks, wrong, "tuned_blocks")


def test_tokens_of_another_cut_are_refused_and_frozen_streams_pass() -> None:
    suffix = Suffix({"text": transformer()})
    frozen = pad([torch.ones(2, 3)], 3)
    assert suffix({"image": frozen})["image"] is frozen
    with pytest.raises(
        ValueError, match=r"'text' has tokens 3 wide, its last 2 blocks read 8.*cac"
    ):
        suffix({"text": frozen})


def test_names_in_the_state_are_those_of_the_encoders() -> None:
    names = set(Suffix({"text": transformer()}).state_dict())
    assert "text.layers.4.attention.self.query.weight" in names
    assert {name.split(".")[0] for name in names} == {"text"}


@pytest.mark.parametrize("last", [0, 1, 5, 15, 16])
def test_network_cut_in_two_is_the_network(last: int) -> None:
    torch.manual_seed(0)
    network = EfficientNetLite0().eval()
    pixels = torch.randint(0, 256, (2, 3, 64, 64)).float()
    weights = sum(p.numel() for p in network.parameters())
    with torch.inference_mode():
        expected = network(pixels)
        end = network.cut(last)
        features = network(pixels)
        assert features.shape == (2, end.channels, 64 // end.stride, 64 // end.stride)
        assert torch.equal(end(features), expected)
    parts = [sum(p.numel() for p in part.parameters()) for part in (network, end)]
    assert sum(parts) == weights
    with pytest.raises(ValueError, match="cut before: load it again"):
        network.cut(1)


def test_batch_statistics_are_frozen_in_training() -> None:
    network = EfficientNetLite0().train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert network.training
    assert len(norms) > 40
    assert not any(norm.training for norm in norms)
    before = {name: value.clone() for name, value in network.named_buffers()}
    network(torch.rand(2, 3, 32, 32) * 255)
    assert all(torch.equal(value, before[name]) for name, value in network.named_buffers())
