"""A model reads whitened tokens that are kept as it would work them out itself."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lsb.artifact import Stage
from lsb.store import Store
from vlmae.checkpoint import CHECKPOINT, build_model, load_checkpoint
from vlmae.data.prefix_cache import Prefix, PrefixCache
from vlmae.data.token_source import CachedTokens, LiveTokens
from vlmae.data.whitened import WhitenedTokens, keep_whitened
from vlmae.data.whitening import read_whitening
from vlmae.embedding import EmbedConfig, Scoring, embed_fused, embed_pooled
from vlmae.prediction import predict

PrefixMaker = Callable[..., Prefix]
TrainIn = Callable[..., Stage]


@pytest.fixture(scope="module")
def kept(stages: Path, source: CachedTokens, whitened: Stage) -> WhitenedTokens:
    stage = keep_whitened(stages, source, whitened, processes=2)
    return WhitenedTokens(source.cache, stage)


def test_they_are_the_tokens_of_the_cache_whitened(
    cache: PrefixCache, kept: WhitenedTokens, whitened: Stage
) -> None:
    rows = np.arange(len(cache.ids))
    for stream, (mean, mapping) in read_whitening(whitened).items():
        tokens, wide = kept.cache.batch(rows, stream), cache.batch(rows, stream).float()
        assert tokens.whitened
        assert tokens.values.dtype == torch.float32
        assert tokens.values.shape[-1] == mapping.shape[1] < mean.shape[0]
        assert torch.equal(tokens.mask, wide.mask)
        own = (wide.values - mean) @ mapping
        torch.testing.assert_close(tokens.values[tokens.mask], own[wide.mask])
        assert not tokens.values[~tokens.mask].any()


@pytest.mark.parametrize("inputs", ["both", "vl", "audio", "shuffled_audio"])
def test_a_checkpoint_says_the_same_by_both(
    cache: PrefixCache, kept: WhitenedTokens, trained: Stage, inputs: str
) -> None:
    model = load_checkpoint(trained.path / CHECKPOINT, cache.identities).model
    rows = np.arange(40)
    one = predict(model, kept.cache, rows, inputs=inputs, dropout_samples=2)
    other = predict(model, cache, rows, inputs=inputs, dropout_samples=2)
    for name in ("logits", "vl_logits", "audio_logits", "embedding", "dropout_logits"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), atol=1e-5)


def test_a_training_ends_with_the_same_weights(
    tmp_path: Path, kept: WhitenedTokens, train_in: TrainIn, trained: Stage
) -> None:
    stage = train_in(tmp_path, source=kept)
    assert stage.path.name != trained.path.name  # named by the kept tokens as well
    assert stage.manifest["inputs"]["whitened"] == kept.whitened.content
    one, other = (
        load_checkpoint(each.path / CHECKPOINT, kept.identities).model.state_dict()
        for each in (stage, trained)
    )
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-5)


def test_every_gradient_is_that_of_wide_tokens(
    cache: PrefixCache, kept: WhitenedTokens, whitened: Stage, model_config: dict[str, Any]
) -> None:
    rows, gradients = np.arange(12), []
    for table in (cache, kept.cache):
        torch.manual_seed(0)
        model = build_model(model_config, cache.towers)
        model.set_whitening(read_whitening(whitened))
        output = model({name: table.batch(rows, name) for name in read_whitening(whitened)})
        (output.logits.sum() + output.vl_logits.sum() + output.audio_logits.sum()).backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


def test_a_store_has_the_vectors_of_one_made_from_wide_tokens(
    tmp_path: Path, source: CachedTokens, kept: WhitenedTokens, trained: Stage
) -> None:
    only = np.sort(source.cache.ids)[::3]
    stores = []
    for tokens in (source, kept):
        stage = embed_fused(tmp_path, tokens, trained, EmbedConfig("first"), Scoring(only=only))
        assert stage is not None
        stores.append(Store.open(stage.path))
    one, other = stores
    assert one.path != other.path
    assert np.array_equal(one.ids, other.ids)
    np.testing.assert_allclose(one.vectors(one.ids), other.vectors(one.ids), atol=1e-3)  # float16


def test_a_worker_reads_what_was_sent_to_it(kept: WhitenedTokens) -> None:
    sent = pickle.loads(pickle.dumps(kept))
    for (table, rows), (own, of_own) in zip(
        sent.tables(kept.cache.ids[:5]), kept.tables(kept.cache.ids[:5]), strict=True
    ):
        one, other = table.batch(rows, "image"), own.batch(of_own, "image")
        assert torch.equal(one.values, other.values)


def test_pooled_vectors_are_not_made_of_them(tmp_path: Path, kept: WhitenedTokens) -> None:
    with pytest.raises(ValueError, match=r"whitened tokens are for models: give the cache"):
        embed_pooled(tmp_path, kept, EmbedConfig("first"))


def test_without_a_cache_nothing_can_be_kept(
    tmp_path: Path, data: Stage, prefix_on: PrefixMaker, whitened: Stage
) -> None:
    live = LiveTokens(prefix_on(data))
    with pytest.raises(ValueError, match=r"keep_tokens=true .* run python -m vlmae.cache first"):
        keep_whitened(tmp_path, live, whitened)


def test_tokens_that_still_change_are_not_kept(
    tmp_path: Path, source: CachedTokens, whitened: Stage
) -> None:
    tuned = CachedTokens(source.cache)
    tuned.towers = {**source.towers, "audio": {**source.towers["audio"], "tuned_blocks": 1}}
    with pytest.raises(ValueError, match=r"blocks of a tower lie behind the cache"):
        keep_whitened(tmp_path, tuned, whitened)
    assert not list(tmp_path.iterdir())
