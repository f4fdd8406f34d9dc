"""The frozen-prefix cache: tokens of the frozen towers, computed once per clip (contract 11).

A stage with one part a shard. Per part and stream all tokens lie end to end in one float16 array,
memory-mapped on use, beside a table of rows that says where each clip's tokens are:

    pool-00003.image.npy      (sum of lengths, 1280) float16
    pool-00003.rows.parquet   id, key, split, shard, offset, size, <stream>_start, <stream>_length,
                              audio_missing (why, or null)
    pool-00003.skipped.parquet  id, key, reason: the clips that could not be decoded

The stage's name covers the data's content hash, the identity of the frozen weights and the decode
policy, so tokens of other weights or other clips are never picked up.
"""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import webdataset as wds
from torch import Tensor

from lsb import ids as sample_ids
from lsb.artifact import Counts, Part, Stage, run_stage
from lsb.ids import IdArray
from vlmae.data.decode import BadClipError, Clip, decode_clip
from vlmae.towers import Towers, build_towers

CLIPS_AT_A_TIME = 16
INDEX_COLUMNS = ("id", "key", "split", "shard", "offset", "size")


@dataclass(frozen=True)
class PrefixConfig:
    """How clips become tokens.

    Attributes:
        frames: frames read per clip.
        processes: worker processes, one shard each at a time.
        threads: torch threads in each of them; results are promised equal for equal numbers.
        skip_limit: largest share of undecodable clips, over which the stage is refused.
    """

    frames: int
    processes: int
    threads: int
    skip_limit: float

    def __post_init__(self) -> None:
        if self.frames < 1 or self.processes < 1 or self.threads < 1:
            raise ValueError(
                f"prefix has frames {self.frames}, processes {self.processes}, threads "
                f"{self.threads}: give at least 1 each"
            )
        if not 0 <= self.skip_limit <= 1:
            raise ValueError(f"prefix.skip_limit is {self.skip_limit}: give a share in [0, 1]")


def cache_prefix(
    root: Path,
    data: Stage,
    *,
    vl: Mapping[str, Any],
    audio: Mapping[str, Any],
    config: PrefixConfig,
) -> Stage:
    """Compute, finish or reuse the cache of a prepared data set.

    Args:
        root: folder of all stages.
        data: a finished `prepare` stage.
        vl: Hydra node of the vision-language backbone.
        audio: Hydra node of the audio backbone.
        config: decode policy and parallelism.

    Raises:
        ValueError: more than `skip_limit` of the clips cannot be decoded; counts by reason.
    """
    towers = build_towers(vl, audio)
    streams = [name for tower in towers.streams.values() for name in tower]
    shards = [name.removesuffix(".tar") for name in data.files if name.endswith(".tar")]
    parts = [
        Part(
            shard,
            (
                *(f"{shard}.{stream}.npy" for stream in streams),
                f"{shard}.rows.parquet",
                f"{shard}.skipped.parquet",
            ),
            partial(_cache_shard, data.path, shard, dict(vl), dict(audio), config),
        )
        for shard in shards
    ]
    stage = run_stage(
        root,
        "cache",
        config={
            "frames": config.frames,
            "sample_rate": towers.sample_rate,
            "threads": config.threads,
            "streams": towers.streams,
            "identities": towers.identities(),
        },
        inputs={"data": data.content},
        parts=parts,
        processes=config.processes,
    )
    skipped, clips = stage.counts.get("skipped", 0), stage.counts.get("clips", 0)
    if skipped > config.skip_limit * (skipped + clips):
        reasons = {k: v for k, v in stage.counts.items() if k.startswith("skipped: ")}
        raise ValueError(
            f"{skipped} of {skipped + clips} clips cannot be decoded ({reasons}), more than "
            f"prefix.skip_limit={config.skip_limit}: look at *.skipped.parquet in {stage.path}, "
            "mend the data or raise the limit"
        )
    return stage


def _cache_shard(
    folder: Path,
    shard: str,
    vl: Mapping[str, Any],
    audio: Mapping[str, Any],
    config: PrefixConfig,
    output: Path,
) -> Counts:
    """Decode and encode one shard; groups of clips are formed by their order in it alone."""
    torch.set_num_threads(config.threads)
    towers = build_towers(vl, audio)
    index = pq.read_table(folder / f"{shard}.index.parquet", columns=list(INDEX_COLUMNS))
    clips: list[Clip] = []
    skipped: list[tuple[str, str]] = []
    tokens: dict[str, list[npt.NDArray[np.float16]]] = {}
    group: list[Clip] = []

    def encode() -> None:
        for stream, values in towers.prefix(group).items():
            tokens.setdefault(stream, []).extend(v.numpy().astype(np.float16) for v in values)
        clips.extend(
            Clip(c.key, c.title, c.frames[:0], c.audio[:0], c.audio_missing) for c in group
        )
        group.clear()

    for key, media, title in _samples(folder / f"{shard}.tar", sample_ids.texts(index["key"])):
        try:
            group.append(
                decode_clip(
                    media,
                    key=key,
                    title=title,
                    frames=config.frames,
                    sample_rate=towers.sample_rate,
                )
            )
        except BadClipError as bad:
            skipped.append((key, bad.reason))
        if len(group) == CLIPS_AT_A_TIME:
            encode()
    if group:
        encode()
    _write_tokens(output, shard, towers, index, clips, tokens)
    _write_skipped(output, shard, skipped)
    missing = Counter(f"masked: {clip.audio_missing}" for clip in clips if clip.audio_missing)
    reasons = Counter(f"skipped: {reason}" for _, reason in skipped)
    return {"clips": len(clips), "skipped": len(skipped), **missing, **reasons}


def _samples(tar: Path, keys: Sequence[str]) -> Iterator[tuple[str, bytes, str]]:
    """Key, media and title of every clip of a shard.

    Raises:
        ValueError: the tar does not hold exactly the clips of its index, in their order.
    """
    read: list[str] = []
    damage = ""
    try:
        # No node splitter: a part reads its whole shard, also where WORLD_SIZE is set.
        for sample in wds.WebDataset(
            str(tar), shardshuffle=False, empty_check=False, nodesplitter=None
        ):
            media, title = sample["mp4"], json.loads(sample["json"])["title"]
            read.append(sample["__key__"])
            yield sample["__key__"], media, title
    except (tarfile.TarError, KeyError, ValueError) as error:
        damage = f"{type(error).__name__}: {error.args[0] if error.args else error}"
    if read != list(keys):
        found = sum(a == b for a, b in zip(read, keys, strict=False))
        raise ValueError(
            f"{tar} is damaged: it holds {found} of the {len(keys)} clips of its index "
            f"({damage or 'it ends early'}): delete it and run vlmae.prepare or the round again, "
            "only this part is redone"
        )


def _write_tokens(
    output: Path,
    shard: str,
    towers: Towers,
    index: pa.Table,
    clips: Sequence[Clip],
    tokens: Mapping[str, list[npt.NDArray[np.float16]]],
) -> None:
    position = {key: row for row, key in enumerate(sample_ids.texts(index["key"]))}
    rows = index.take(pa.array([position[clip.key] for clip in clips], pa.int64()))
    widths = {name: width for tower in towers.streams.values() for name, width in tower.items()}
    for stream, width in widths.items():
        values = tokens.get(stream, [])
        lengths = np.array([len(value) for value in values], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])[: len(lengths)]
        rows = rows.append_column(f"{stream}_start", pa.array(starts, pa.int64()))
        rows = rows.append_column(f"{stream}_length", pa.array(lengths, pa.int64()))
        flat = np.concatenate(values) if values else np.zeros((0, width), np.float16)
        np.save(output / f"{shard}.{stream}.npy", flat)
    missing = pa.array([clip.audio_missing for clip in clips], pa.string())
    pq.write_table(rows.append_column("audio_missing", missing), output / f"{shard}.rows.parquet")


def _write_skipped(output: Path, shard: str, skipped: Sequence[tuple[str, str]]) -> None:
    keys = [key for key, _ in skipped]
    table = pa.table(
        {
            "id": sample_ids.to_arrow(sample_ids.sample_ids(keys)),
            "key": pa.array(keys, pa.string()),
            "reason": pa.array([reason for _, reason in skipped], pa.string()),
        }
    )
    pq.write_table(table, output / f"{shard}.skipped.parquet")


class PrefixCache:
    """Read side of the cache: tokens by clip id, memory-mapped.

    Attributes:
        stage: the finished stage.
        rows: all rows in shard order; `row` numbers below refer to it.
        streams: tower -> stream name -> width.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        self.streams: dict[str, dict[str, int]] = stage.manifest["config"]["streams"]
        self.identities: dict[str, Any] = stage.manifest["config"]["identities"]
        self._shards = list(stage.manifest["parts"])
        tables = [pq.read_table(stage.path / f"{shard}.rows.parquet") for shard in self._shards]
        self.rows: pa.Table = pa.concat_tables(tables)
        self._part = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
        self.ids: IdArray = sample_ids.from_arrow(self.rows["id"])
        sample_ids.require_unique(self.ids, sample_ids.texts(self.rows["key"]))
        self._order = np.argsort(self.ids, kind="stable")
        self._spans = {
            stream: (
                self.rows[f"{stream}_start"].to_numpy(),
                self.rows[f"{stream}_length"].to_numpy(),
            )
            for stream in self.stream_widths
        }
        self._maps: dict[tuple[int, str], npt.NDArray[np.float16]] = {}

    @property
    def stream_widths(self) -> dict[str, int]:
        """Stream name -> width, over both towers."""
        return {name: width for tower in self.streams.values() for name, width in tower.items()}

    @property
    def bytes_per_clip(self) -> float:
        """Mean bytes of tokens a clip."""
        widths = self.stream_widths
        total = sum(int(self._spans[name][1].sum()) * width * 2 for name, width in widths.items())
        return total / max(1, len(self.ids))

    def shards_of(self, split: str) -> list[str]:
        """Names of the parts that hold a split, in order."""
        splits = self.rows["split"].to_pylist()
        held = {
            self._shards[part]
            for part, name in zip(self._part, splits, strict=True)
            if name == split
        }
        return [shard for shard in self._shards if shard in held]

    def rows_of_shard(self, shard: str) -> npt.NDArray[np.int64]:
        """Row numbers of one part, in shard order."""
        return np.flatnonzero(self._part == self._shards.index(shard))

    def rows_of(self, ids: IdArray) -> npt.NDArray[np.int64]:
        """Row number of each id, -1 where the clip is not in the cache (it was skipped)."""
        if len(self.ids) == 0:
            return np.full(len(ids), -1, np.int64)
        position = np.searchsorted(self.ids, ids, sorter=self._order).clip(max=len(self.ids) - 1)
        rows = self._order[position]
        return np.where(self.ids[rows] == ids, rows, -1).astype(np.int64)

    def skipped(self) -> pa.Table:
        """id, key and reason of every clip that could not be decoded."""
        return pa.concat_tables(
            pq.read_table(self.stage.path / f"{shard}.skipped.parquet") for shard in self._shards
        )

    def tokens(self, row: int, stream: str) -> Tensor:
        """(T, width) float32 tokens of one clip and stream."""
        part = int(self._part[row])
        if (part, stream) not in self._maps:
            path = self.stage.path / f"{self._shards[part]}.{stream}.npy"
            self._maps[part, stream] = np.load(path, mmap_mode="r")
        starts, lengths = self._spans[stream]
        values = self._maps[part, stream][starts[row] : starts[row] + lengths[row]]
        return torch.from_numpy(values.astype(np.float32))
