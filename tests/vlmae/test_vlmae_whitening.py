"""Principal maps: zero mean and unit covariance, a fixed sign, nothing from dead directions."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from token_values import tokens_of

from lsb.artifact import Stage
from vlmae.data.prefix_cache import PrefixCache
from vlmae.data.token_source import CachedTokens
from vlmae.data.token_table import widths
from vlmae.data.whitening import principal_map, read_whitening, whiten


def skewed(count: int = 200, width: int = 6) -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.normal(size=(count, width)) @ rng.normal(size=(width, width)) * 3 + 5


def applied(means: np.ndarray, components: int) -> np.ndarray:
    mean, mapping = principal_map(means, components)
    return (means - mean.double().numpy()) @ mapping.double().numpy()


@pytest.mark.parametrize("components", [1, 4, 6])
def test_zero_mean_and_unit_covariance(components: int) -> None:
    white = applied(skewed(), components)
    np.testing.assert_allclose(white.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(white.T @ white / len(white), np.eye(components), atol=1e-4)


def test_largest_variance_first() -> None:
    means = np.random.default_rng(0).normal(size=(500, 3)) * [1.0, 10.0, 0.1]
    _, mapping = principal_map(means, 3)
    assert mapping.abs().argmax(dim=0).tolist() == [1, 0, 2]
    np.testing.assert_allclose(mapping.abs().amax(dim=0), [0.1, 1.0, 10.0], rtol=0.1)


def test_largest_entry_of_every_direction_is_positive() -> None:
    for sign in (1, -1):
        _, mapping = principal_map(sign * skewed(), 6)
        largest = mapping.abs().argmax(dim=0)
        assert (mapping[largest, torch.arange(6)] > 0).all()
    assert torch.allclose(principal_map(skewed(), 6)[1], principal_map(-skewed(), 6)[1], atol=1e-5)


def test_directions_without_variance_map_to_zero() -> None:
    flat = skewed()
    flat[:, 3:] = flat[:, :3]
    _, mapping = principal_map(flat, 6)
    assert mapping[:, :3].abs().sum(dim=0).all()
    assert not mapping[:, 3:].any()
    mean, mapping = principal_map(np.full((9, 4), 2.0), 2)
    assert mean.tolist() == [2.0] * 4
    assert not mapping.any()


def test_order_of_clips_has_no_influence() -> None:
    means = skewed()
    shuffled = means[np.random.default_rng(1).permutation(len(means))]
    for ours, other in zip(principal_map(means, 4), principal_map(shuffled, 4), strict=True):
        torch.testing.assert_close(ours, other, rtol=1e-5, atol=1e-6)


def test_stage_is_fitted_on_mean_tokens_of_the_given_splits(
    cache: PrefixCache, whitened: Stage
) -> None:
    maps = read_whitening(whitened)
    assert set(maps) == {"image", "text", "audio"}
    splits = cache.rows["split"].to_pylist()
    for stream, (mean, mapping) in maps.items():
        assert mapping.shape == (widths(cache.streams)[stream], 8)
        rows = [row for row, split in enumerate(splits) if split in ("first", "pool")]
        tokens = [tokens_of(cache, row, stream) for row in rows]
        means = torch.stack([values.mean(dim=0) for values in tokens if len(values)])
        assert whitened.counts[f"clips: {stream}"] == len(means)
        white = (means - mean) @ mapping
        torch.testing.assert_close(white.mean(dim=0), torch.zeros(8), atol=1e-2, rtol=0)
        covariance = white.T @ white / len(white)
        torch.testing.assert_close(covariance, torch.eye(8), atol=1e-2, rtol=0)
    assert whitened.counts["clips: audio"] < whitened.counts["clips: image"]


def test_too_many_components_are_refused(tmp_path: Path, source: CachedTokens) -> None:
    for components, split in itertools.product((0, 385), ("pool",)):
        with pytest.raises(ValueError, match=r"from 1 to 384, the width of the narrowest stream"):
            whiten(tmp_path, source, components=components, splits=[split], clips=100)
    with pytest.raises(ValueError, match=r"8 clips in \['gold'\].*components=8: prepare more"):
        whiten(tmp_path, source, components=8, splits=["gold"], clips=100)
