"""A very small generated data set with its tokens, made once, and makers of clips and media."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lsb.artifact import Part, Stage, run_stage
from lsb.ids import sample_id
from lsb.labelled import LABEL
from vlmae.data.decode import Clip, DecodePolicy
from vlmae.data.index import INDEX_SCHEMA
from vlmae.data.prefix_cache import Prefix, PrefixCache, PrefixConfig, cache_prefix
from vlmae.data.prepare import PrepareConfig, prepare, read_truth
from vlmae.data.records import END_OF_TAR, write_sample
from vlmae.data.token_source import CachedTokens
from vlmae.data.whitening import whiten
from vlmae.optimizers import OptimizerConfig
from vlmae.towers import Towers, build_towers
from vlmae.trainer import TrainConfig
from vlmae.training import Training, train

VL = {
    "_target_": "vlmae.backbones.vision_language.ImageTextEncoder",
    "image_size": 128,
    "grid": 1,
    "text_length": 32,
    "pool_text": True,
}
AUDIO = {"_target_": "vlmae.backbones.audio.WhisperEncoder", "pool": 10}
TASKS = ("relevance", "unsafe")
OBJECTIVE = {"_target_": "vlmae.objectives.MultiTaskBinary", "weights": {}}
COMPONENTS = 8
POLICY = DecodePolicy(frames=2, backend="pyav")
TOKENS = PrefixConfig(dtype="float16", processes=1, threads=1, skip_limit=0.5)


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def nodes() -> dict[str, dict[str, Any]]:
    """Hydra nodes of the two default towers."""
    return {"vl": dict(VL), "audio": dict(AUDIO)}


@pytest.fixture(scope="session")
def towers() -> Towers:
    return build_towers(VL, AUDIO)


@pytest.fixture(scope="session")
def stages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the stages that all tests share."""
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="session")
def data(stages: Path) -> Stage:
    """64 clips of 2 s in all splits; one in eight is broken, in all four ways."""
    return prepare(
        stages,
        PrepareConfig(
            name="generated",
            bank="generated",
            first=24,
            pool=16,
            gold=8,
            test=16,
            shard_clips=8,
            clip_seconds=2.0,
            pictures_per_digit=30,
            unsafe_rate=0.4,
            broken=0.125,
        ),
    )


PrefixMaker = Callable[..., Prefix]


@pytest.fixture(scope="session")
def prefix_on() -> PrefixMaker:
    """A function from a data set, and what differs from the default, to its `Prefix`."""

    def make(
        data: Stage,
        *,
        policy: DecodePolicy = POLICY,
        vl: dict[str, Any] = VL,
        audio: dict[str, Any] = AUDIO,
        **changes: Any,
    ) -> Prefix:
        return Prefix(data, vl, audio, policy, dataclasses.replace(TOKENS, **changes))

    return make


@pytest.fixture(scope="session")
def cache(stages: Path, data: Stage, prefix_on: PrefixMaker) -> PrefixCache:
    stage = cache_prefix(stages, prefix_on(data))
    assert stage is not None
    return PrefixCache(stage)


@pytest.fixture(scope="session")
def source(cache: PrefixCache) -> CachedTokens:
    return CachedTokens(cache)


@pytest.fixture(scope="session")
def whitened(stages: Path, source: CachedTokens) -> Stage:
    return whiten(stages, source, components=COMPONENTS, splits=("first", "pool"), clips=1000)


LabelTable = Callable[..., pa.Table]


@pytest.fixture(scope="session")
def labels_of(data: Stage) -> LabelTable:
    """A function from a split, tasks to blank out and a limit to its label table."""

    def table(split: str, *, blank: Sequence[str] = (), limit: int | None = None) -> pa.Table:
        truth = read_truth(data, [split]).slice(0, limit)
        columns: dict[str, Any] = {"id": truth["id"], "key": truth["key"]}
        columns["source"] = pa.array(["oracle"] * truth.num_rows, pa.string())
        for task in TASKS:
            none = pa.nulls(truth.num_rows, pa.int8())
            columns[LABEL + task] = none if task in blank else truth[task]
        return pa.table(columns)

    return table


@pytest.fixture(scope="session")
def model_config() -> dict[str, Any]:
    """A narrow model with cross-attention and two tasks."""
    return {
        "fusion": {
            "_target_": "vlmae.fusion.CrossAttentionFusion",
            "width": 16,
            "heads": 2,
            "layers": 1,
            "dropout": 0.0,
        },
        "tasks": list(TASKS),
        "components": COMPONENTS,
        "dropout": 0.0,
    }


TrainIn = Callable[..., Stage]


@pytest.fixture(scope="session")
def train_in(
    source: CachedTokens, whitened: Stage, labels_of: LabelTable, model_config: dict[str, Any]
) -> TrainIn:
    """A function from a folder and changed arguments of `train` to the finished stage."""

    def run(root: Path, *, epochs: int = 2, learning_rate: float = 3e-3, **changes: Any) -> Stage:
        arguments: dict[str, Any] = {
            "source": source,
            "whitened": whitened,
            "labelled": labels_of("first"),
            "validation": labels_of("gold"),
            "model": model_config,
            "objective": OBJECTIVE,
            "optimizer": OptimizerConfig(learning_rate, 0.0, 0.1, 1.0),
            "config": TrainConfig(0, epochs, 8, "cpu", 1, 0.8, "both"),
        }
        return train(root, Training(**{**arguments, **changes}))

    return run


@pytest.fixture(scope="session")
def trained(stages: Path, train_in: TrainIn) -> Stage:
    return train_in(stages)


ClipMaker = Callable[..., Clip]


@pytest.fixture(scope="session")
def make_clip() -> ClipMaker:
    """A function from a seed to a decoded clip of noise."""

    def make(
        seed: int = 0,
        *,
        title: str = "a title",
        frames: int = 2,
        size: tuple[int, int] = (128, 128),
        seconds: float = 1.0,
    ) -> Clip:
        rng = np.random.default_rng(seed)
        pictures = rng.integers(0, 256, (frames, *size, 3), dtype=np.uint8)
        sound = rng.normal(0, 0.1, round(16_000 * seconds)).astype(np.float32)
        return Clip(f"clip-{seed}", title, pictures, sound, None if seconds else "no audio track")

    return make


MediaMaker = Callable[..., bytes]


@pytest.fixture(scope="session")
def make_media() -> MediaMaker:
    """A function to an mp4 whose frame n < 20 is a grey picture of level 10 n + 20."""

    def make(
        frames: int = 10,
        *,
        times: Sequence[int] | None = None,
        sound: np.ndarray | None = None,
        rate: int = 16_000,
        container_format: str = "mp4",
        size: int = 64,
    ) -> bytes:
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=container_format) as container:
            video = container.add_stream("libx264", rate=10) if frames else None
            audio = None
            if sound is not None:
                layout = "mono" if len(sound) == 1 else "stereo"
                audio = container.add_stream("aac", rate=rate, layout=layout)
            if video is not None:
                video.width = video.height = size
                video.pix_fmt = "yuv420p"
                video.time_base = Fraction(1, 10)
                for number, time in enumerate(times or range(frames)):
                    grey = np.full((size, size, 3), 20 + 10 * (number % 20), np.uint8)
                    frame = av.VideoFrame.from_ndarray(grey, format="rgb24")
                    frame.pts, frame.time_base = time, Fraction(1, 10)
                    container.mux(video.encode(frame))
                container.mux(video.encode(None))
            if audio is not None and sound is not None:
                heard = av.AudioFrame.from_ndarray(
                    np.ascontiguousarray(sound, np.float32),
                    format="fltp",
                    layout="mono" if len(sound) == 1 else "stereo",
                )
                heard.sample_rate, heard.pts, heard.time_base = rate, 0, Fraction(1, rate)
                container.mux(audio.encode(heard))
                container.mux(audio.encode(None))
        return buffer.getvalue()

    return make


DataMaker = Callable[..., Stage]
Media = bytes | dict[str, bytes]


@pytest.fixture(scope="session")
def make_data() -> DataMaker:
    """A function from a folder and shards of (key, mp4 or members) to a stage like `prepare`'s."""

    def make(root: Path, shards: dict[str, list[tuple[str, Media]]]) -> Stage:
        parts = [
            Part(
                name,
                (f"{name}.tar", f"{name}.index.parquet"),
                partial(_write_shard, name, clips),
            )
            for name, clips in shards.items()
        ]
        keys = [[key for key, _ in clips] for clips in shards.values()]
        return run_stage(root, "prepare", config={"keys": keys}, inputs={}, parts=parts)

    return make


def _write_shard(name: str, clips: list[tuple[str, Media]], folder: Path) -> dict[str, int]:
    rows = []
    with open(folder / f"{name}.tar", "wb") as stream:
        for key, media in clips:
            members = {"mp4": media} if isinstance(media, bytes) else media
            title = json.dumps({"title": f"title of {key}"}).encode()
            offset, size = write_sample(stream, key, {"json": title, **members})
            rows.append(
                {
                    "id": sample_id(key),
                    "key": key,
                    "shard": f"{name}.tar",
                    "offset": offset,
                    "size": size,
                    "title": f"title of {key}",
                    "duration_s": 1.0,
                    "split": name.split("-")[0],
                }
            )
        stream.write(END_OF_TAR)
    table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
    pq.write_table(table, folder / f"{name}.index.parquet")
    return {"clips": len(clips)}
