"""A thousand clips, one in twenty damaged, in ten ways: all are named and the rest is untouched."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from damage import KINDS, REASONS, damage

from lsb.artifact import Stage
from lsb.ids import sample_ids, to_arrow
from lsb.store import Store
from vlmae.data.decode import DecodePolicy
from vlmae.data.loader import LoaderConfig
from vlmae.data.prefix_cache import Prefix
from vlmae.data.token_source import LiveTokens
from vlmae.data.whitening import whiten
from vlmae.embedding import EmbedConfig, embed_pooled
from vlmae.optimizers import OptimizerConfig
from vlmae.trainer import TrainConfig
from vlmae.training import QUARANTINE, Training, train

CLIPS, SHARDS, EVERY = 1000, 4, 20
POLICY = DecodePolicy(frames=1, backend="pyav")


def keys_of(shard: int) -> list[str]:
    size = CLIPS // SHARDS
    return [f"clip-{number:04d}" for number in range(shard * size, (shard + 1) * size)]


DAMAGED = {
    key: KINDS[place % len(KINDS)]
    for place, key in enumerate(
        key for shard in range(SHARDS) for key in keys_of(shard) if int(key[-4:]) % EVERY == 7
    )
}


@pytest.fixture(scope="module")
def media(make_media: Callable[..., bytes]) -> list[bytes]:
    """Short good clips, each with another tone."""
    time = np.arange(8_000) / 16_000
    waves = [0.3 * np.sin(2 * np.pi * (150 + 30 * n) * time)[None] for n in range(20)]
    return [make_media(5, sound=wave.astype(np.float32)) for wave in waves]


SourceMaker = Callable[[Stage], LiveTokens]


@pytest.fixture(scope="module")
def live(prefix_on: Callable[..., Prefix], nodes: dict[str, dict[str, Any]]) -> SourceMaker:
    def make(data: Stage) -> LiveTokens:
        vl = {**nodes["vl"], "image_size": 64}
        return LiveTokens(prefix_on(data, policy=POLICY, vl=vl, use="off"))

    return make


@pytest.fixture(scope="module")
def source(
    tmp_path_factory: pytest.TempPathFactory,
    make_data: Callable[..., Stage],
    media: list[bytes],
    live: SourceMaker,
) -> LiveTokens:
    shards: dict[str, list[tuple[str, Any]]] = {}
    for shard in range(SHARDS):
        clips: list[tuple[str, Any]] = []
        for key in keys_of(shard):
            good = media[int(key[-4:]) % len(media)]
            kind = DAMAGED.get(key)
            clips.append((key, good if kind is None else damage(good, kind, int(key[-4:]))))
        shards[f"pool-{shard:05d}"] = clips
    return live(make_data(tmp_path_factory.mktemp("damaged"), shards))


def check_quarantine(table: pa.Table) -> None:
    found = dict(zip(table["key"].to_pylist(), table["reason"].to_pylist(), strict=True))
    assert len(DAMAGED) == CLIPS // EVERY
    assert set(DAMAGED.values()) == set(KINDS)
    assert len(KINDS) == 10
    assert sorted(found) == sorted(DAMAGED)
    for key, kind in DAMAGED.items():
        expected = REASONS[kind]
        assert found[key] in ([expected] if isinstance(expected, str) else expected), (key, kind)


def test_embedding_finishes_and_the_rest_is_untouched(
    tmp_path: Path,
    source: LiveTokens,
    live: SourceMaker,
    make_data: Callable[..., Stage],
    media: list[bytes],
) -> None:
    stage = embed_pooled(tmp_path, source, EmbedConfig("pool", skip_limit=0.06))
    assert stage is not None
    files = sorted(stage.path.glob("*.quarantine.parquet"))
    quarantine = pa.concat_tables([pq.read_table(file) for file in files])
    check_quarantine(quarantine)
    store = Store.open(stage.path)
    assert len(store) == CLIPS - len(DAMAGED)
    assert stage.counts["skipped"] == len(DAMAGED)
    reasons = Counter(quarantine["reason"].to_pylist())
    assert {f"skipped: {r}": n for r, n in reasons.items()}.items() <= stage.counts.items()

    good = [key for key in keys_of(0) if key not in DAMAGED]
    clips = [(key, media[int(key[-4:]) % len(media)]) for key in good]
    alone = live(make_data(tmp_path / "alone", {"pool-00000": clips}))
    other = embed_pooled(tmp_path, alone, EmbedConfig("pool"))
    assert other is not None
    ids = sample_ids(good)
    # Clips meet others in their group of sixteen, so the last bits may differ.
    ours, theirs = store.vectors(ids), Store.open(other.path).vectors(ids)
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def labels_for(keys: list[str]) -> pa.Table:
    return pa.table(
        {
            "id": to_arrow(sample_ids(keys)),
            "key": keys,
            "source": ["human"] * len(keys),
            "label_a": pa.array([int(key[-1]) % 2 for key in keys], pa.int8()),
        }
    )


def training_of(root: Path, source: LiveTokens, keys: list[str], limit: float) -> Training:
    return Training(
        source=source,
        whitened=whiten(root, source, components=4, splits=["pool"], clips=40),
        labelled=labels_for(keys),
        validation=labels_for(keys[:4]),
        model={
            "fusion": {"_target_": "vlmae.fusion.LateFusion", "width": 8},
            "tasks": ["a"],
            "components": 4,
            "dropout": 0.0,
        },
        objective={"_target_": "vlmae.objectives.MultiTaskBinary", "weights": {}},
        optimizer=OptimizerConfig(1e-3, 0.0, 0.0, 1.0),
        config=TrainConfig(0, 1, 25, "cpu", 1, 0.8, "both"),
        loader=LoaderConfig(workers=2),
        skip_limit=limit,
    )


def test_training_finishes_and_names_every_bad_clip(tmp_path: Path, source: LiveTokens) -> None:
    keys = [key for shard in range(SHARDS) for key in keys_of(shard)]
    stage = train(tmp_path, training_of(tmp_path, source, keys, limit=0.06))
    check_quarantine(pq.read_table(stage.path / QUARANTINE))
    assert stage.counts["labels"] == CLIPS - len(DAMAGED)
    assert stage.counts["labels skipped"] == len(DAMAGED)
    manifest = pq.read_table(stage.path / "training_set.parquet")
    assert manifest.num_rows == CLIPS
    assert {"shard", "offset", "size", "weight", "label_a"} <= set(manifest.column_names)


def test_training_stops_above_the_limit(tmp_path: Path, source: LiveTokens) -> None:
    keys = keys_of(0)
    with pytest.raises(ValueError, match=r"clips cannot be decoded .*prefix\.skip_limit=0\.01"):
        train(tmp_path, training_of(tmp_path, source, keys, limit=0.01))
    assert not list(tmp_path.glob("train-*[0-9a-f]"))
