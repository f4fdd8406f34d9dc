"""Tuned blocks: the cache ends at the cut, what is behind it trains and is in the checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from token_values import tokens_of

from lsb.artifact import Stage
from lsb.ids import from_arrow
from lsb.store import Store
from vlmae.backbones.base import weights_sha256
from vlmae.checkpoint import CHECKPOINT, build_model, load_checkpoint
from vlmae.data.batches import CachedClips
from vlmae.data.prefix_cache import Prefix, PrefixCache, cache_prefix
from vlmae.data.prepare import read_truth
from vlmae.data.token_source import CachedTokens, LiveTokens
from vlmae.data.token_table import frozen_tokens, widths
from vlmae.data.whitening import read_whitening, whiten
from vlmae.embedding import EmbedConfig, embed_fused, embed_pooled
from vlmae.prediction import predict, predict_clips
from vlmae.towers import build_suffix, build_towers
from vlmae.tuning import tuned_node, tuning_config

PrefixMaker = Callable[..., Prefix]
TrainIn = Callable[..., Stage]
Nodes = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def tuned_nodes(nodes: Nodes) -> Nodes:
    return {
        "vl": {**nodes["vl"], "tuned_blocks": {"text": 1}},
        "audio": {**nodes["audio"], "tuned_blocks": 1},
    }


@pytest.fixture(scope="module")
def prefix(data: Stage, prefix_on: PrefixMaker, tuned_nodes: Nodes) -> Prefix:
    return prefix_on(data, **tuned_nodes)


@pytest.fixture(scope="module")
def tuned(stages: Path, prefix: Prefix) -> CachedTokens:
    stage = cache_prefix(stages, prefix)
    assert stage is not None
    return CachedTokens(PrefixCache(stage))


@pytest.fixture(scope="module")
def tuned_whitened(stages: Path, tuned: CachedTokens) -> Stage:
    return whiten(stages, tuned, components=8, splits=("first", "pool"), clips=1000)


@pytest.fixture(scope="module")
def tuned_trained(
    stages: Path, train_in: TrainIn, tuned: CachedTokens, tuned_whitened: Stage
) -> Stage:
    return train_in(stages, source=tuned, whitened=tuned_whitened, learning_rate=1e-3)


def test_the_cache_holds_hidden_states_and_its_end_gives_the_tokens(
    tuned: CachedTokens, source: CachedTokens, tuned_nodes: Nodes
) -> None:
    assert tuned.cache.stage.path != source.cache.stage.path
    assert tuned.streams == build_towers(**tuned_nodes).prefix_streams
    assert tuned.cache.ids.tolist() == source.cache.ids.tolist()
    sounding = source.cache.rows["audio_missing"].to_pylist().index(None)
    assert len(tokens_of(tuned.cache, sounding, "audio")) > 90, "50 a second before pooling"
    assert len(tokens_of(source.cache, sounding, "audio")) in (10, 11)
    suffix = build_suffix(**tuned_nodes)
    rows = np.arange(0, len(tuned.cache.ids), 3)
    behind = frozen_tokens(tuned.cache, rows, suffix)
    repeated = frozen_tokens(tuned.cache, rows, suffix)
    for name in widths(source.streams):
        assert torch.equal(behind[name].values, repeated[name].values), "no dropout"
        tokens = source.cache.batch(rows, name).float()
        assert torch.equal(behind[name].mask, tokens.mask)
        ours, other = behind[name].values[tokens.mask], tokens.values[tokens.mask]
        torch.testing.assert_close(ours, other, rtol=2e-3, atol=2e-3 * float(other.abs().max()))


def test_whitening_is_of_the_tokens_behind_the_cut(tuned_whitened: Stage, whitened: Stage) -> None:
    ours, other = read_whitening(tuned_whitened), read_whitening(whitened)
    assert tuned_whitened.counts == whitened.counts
    assert ours.keys() == other.keys()
    for name, (mean, mapping) in ours.items():
        expected, same = other[name]
        torch.testing.assert_close(
            mean, expected, rtol=2e-3, atol=2e-3 * float(expected.abs().max())
        )
        # Directions of nearly equal variance may turn: the space they span may not.
        left, right = (torch.linalg.qr(m.double())[0] for m in (mapping, same))
        angles = torch.linalg.svdvals(left.T @ right)
        assert angles[:4].min() > 0.99


def test_pooled_vectors_do_not_depend_on_the_cut(
    tmp_path: Path, tuned: CachedTokens, source: CachedTokens
) -> None:
    stores = []
    for tokens in (tuned, source):
        stage = embed_pooled(tmp_path, tokens, EmbedConfig("first"))
        assert stage is not None
        stores.append(Store.open(stage.path))
    ours, other = stores
    assert ours.path != other.path
    assert ours.ids.tolist() == other.ids.tolist()
    np.testing.assert_allclose(ours.vectors(ours.ids), other.vectors(ours.ids), atol=2e-3)


def test_training_moves_what_is_behind_the_cut_and_nothing_else_of_the_towers(
    tuned_trained: Stage, tuned: CachedTokens, tuned_nodes: Nodes
) -> None:
    towers = build_towers(**tuned_nodes)
    assert {"vl": towers.vl.identity().as_dict(), "audio": towers.audio.identity().as_dict()} == (
        tuned.identities
    ), "the shared towers are as they were loaded"
    fresh = build_suffix(**tuned_nodes)
    assert fresh is not None
    tensors = load_file(tuned_trained.path / CHECKPOINT)
    saved = {n.removeprefix("suffix."): t for n, t in tensors.items() if n.startswith("suffix.")}
    assert saved.keys() == fresh.state_dict().keys()
    assert {name.split(".")[0] for name in saved} == {"text", "audio"}
    still = {n for n, p in fresh.named_parameters() if torch.equal(p.detach(), saved[n])}
    # The bias of a key shifts all scores of a query alike: softmax does not see it.
    assert {name for name in still if not name.endswith(("key.bias", "k_proj.bias"))} == set()
    for stream, module in fresh.items():
        counted = sum(parameter.numel() for parameter in module.parameters())
        assert tuned_trained.counts[f"trainable: suffix.{stream}"] == counted
    parts = {name.split(".")[0] for name in tensors}
    assert parts == {"suffix", "project", "fusion", "vl_head", "audio_head", "heads"}
    assert weights_sha256(fresh) == weights_sha256(towers.suffix_modules())


def test_a_loaded_checkpoint_predicts_exactly_what_the_trained_model_did(
    tuned_trained: Stage, tuned: CachedTokens, tuned_whitened: Stage, model_config: dict[str, Any]
) -> None:
    table = pq.read_table(tuned_trained.path / "validation.parquet")
    model = load_checkpoint(tuned_trained.path / CHECKPOINT, tuned.identities).model
    predictions, found = predict_clips(model, tuned, from_arrow(table["id"]))
    assert found.all()
    for column, task in enumerate(model.tasks):
        for head in ("probability", "vl_probability", "audio_probability"):
            written = table[f"{head}_{task}"].to_numpy()
            np.testing.assert_array_equal(getattr(predictions, head)[:, column], written)
    # With the blocks as they were loaded it says something else: they are part of the model.
    fresh = build_model(model_config, tuned.towers)
    own = {n: t for n, t in model.state_dict().items() if not n.startswith("suffix.")}
    fresh.load_state_dict(own, strict=False)
    rows = tuned.cache.rows_of(from_arrow(table["id"]))
    untuned = predict(fresh, tuned.cache, rows)
    assert np.abs(untuned.logits - predictions.logits).max() > 1e-3


def test_live_and_cached_predictions_of_a_tuned_model_agree(
    tmp_path: Path, tuned_trained: Stage, tuned: CachedTokens, prefix: Prefix, data: Stage
) -> None:
    model = load_checkpoint(tuned_trained.path / CHECKPOINT, tuned.identities).model
    ids = from_arrow(read_truth(data, ["gold"])["id"])
    live, _ = predict_clips(model, LiveTokens(prefix), ids)
    cached, _ = predict_clips(model, tuned, ids)
    np.testing.assert_allclose(live.logits, cached.logits, rtol=2e-3, atol=2e-3)
    stage = embed_fused(tmp_path, tuned, tuned_trained, EmbedConfig("gold"))
    assert stage is not None
    store = Store.open(stage.path)
    logits = store.take(ids, ["logit_unsafe"])["logit_unsafe"].to_numpy()
    np.testing.assert_allclose(logits, cached.logits[:, 1], atol=1e-5)


def test_a_checkpoint_is_refused_beside_another_cut(
    tuned_trained: Stage, trained: Stage, tuned: CachedTokens, source: CachedTokens
) -> None:
    for stage, tokens in ((tuned_trained, source), (trained, tuned)):
        with pytest.raises(ValueError, match=r"was trained on another (vl|audio) tower"):
            load_checkpoint(stage.path / CHECKPOINT, tokens.identities)


LORA = {
    "vl": {"mode": "lora", "blocks": {"text": 1}, "rank": 4},
    "audio": {"mode": "lora", "blocks": 1, "rank": 4},
}


def test_lora_in_the_last_blocks_trains_on_their_cache(
    tmp_path: Path,
    stages: Path,
    data: Stage,
    nodes: Nodes,
    prefix_on: PrefixMaker,
    train_in: TrainIn,
    tuned: CachedTokens,
    tuned_whitened: Stage,
    model_config: dict[str, Any],
) -> None:
    tuning = tuning_config(LORA)
    cut = {tower: tuned_node(nodes[tower], tuning[tower]) for tower in nodes}
    same = cache_prefix(stages, prefix_on(data, **cut))
    assert same is not None
    assert same.reused
    assert same.path == tuned.cache.stage.path
    stage = train_in(
        tmp_path, source=tuned, whitened=tuned_whitened, model={**model_config, "tuning": LORA}
    )
    tensors = load_file(stage.path / CHECKPOINT)
    saved = {n for n in tensors if n.startswith("suffix.")}
    assert saved
    assert all(".lora_" in name for name in saved), "frozen weights are never saved"
    assert all(tensors[name].any() for name in saved), "B has left zero"
    table = pq.read_table(stage.path / "validation.parquet")
    model = load_checkpoint(stage.path / CHECKPOINT, tuned.identities).model
    predictions, _ = predict_clips(model, tuned, from_arrow(table["id"]))
    for column, task in enumerate(model.tasks):
        written = table[f"probability_{task}"].to_numpy()
        np.testing.assert_array_equal(predictions.probability[:, column], written)


def test_tokens_of_another_cut_are_refused_by_the_model(
    tuned_trained: Stage, tuned: CachedTokens, source: CachedTokens, nodes: Nodes
) -> None:
    image = {**nodes["vl"], "tuned_blocks": {"image": 1}}
    suffix = build_suffix(image, nodes["audio"])
    assert suffix is not None
    clips = CachedClips(source.cache, np.arange(2), np.zeros((2, 2), np.int8))
    with pytest.raises(ValueError, match=r"make the cache with the same number of tuned blocks"):
        suffix({name: tokens.float() for name, tokens in clips.batch(np.arange(2)).streams.items()})


def test_training_tuned_blocks_live_ends_near_the_cached_one(
    tmp_path: Path,
    train_in: TrainIn,
    tuned: CachedTokens,
    tuned_whitened: Stage,
    prefix: Prefix,
    labels_of: Callable[..., pa.Table],
) -> None:
    arguments = {"whitened": tuned_whitened, "labelled": labels_of("first", limit=9), "epochs": 1}
    live, cached = (
        train_in(tmp_path, source=tokens, **arguments) for tokens in (LiveTokens(prefix), tuned)
    )
    ours, other = (load_file(stage.path / CHECKPOINT) for stage in (live, cached))
    assert ours.keys() == other.keys()
    losses = [(stage.path / "history.csv").read_text().split(",")[-1] for stage in (live, cached)]
    assert abs(float(losses[0]) - float(losses[1])) < 5e-3
