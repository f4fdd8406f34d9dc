"""The frozen-prefix cache: tokens of the frozen towers, computed once per clip (contract 11).

A stage with one part a shard. Per part and stream all tokens lie end to end in one array,
memory-mapped on use, beside a table of rows that says where each clip's tokens are:

    pool-00003.image.npy           (sum of lengths, 1280) float16, or int8, or the bits of bfloat16
    pool-00003.image.scale.npy     (sum of lengths,) float16, with int8 only
    pool-00003.rows.parquet        id, key, split, shard, offset, size, duration_s,
                                   <stream>_start, <stream>_length, audio_missing, video_missing
    pool-00003.quarantine.parquet  id, key, reason, detail of clips that could not be decoded

The stage's name covers the content of the data, the identity of the frozen weights, the decode
policy and the dtype, so tokens of other weights or other clips are never picked up; an unfinished
cache has another name. A part is keyed by the same for its shard alone: when shards are added, or
one is rewritten, the others are linked from the older cache.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from lsb import ids as sample_ids
from lsb.arrays import map_array
from lsb.artifact import (
    Counts,
    OnPart,
    Part,
    Stage,
    canonical,
    open_stage,
    read_json,
    stage_directory,
    work_on_stage,
)
from lsb.ids import IdArray
from lsb.manifest import VERSION
from vlmae.data.decode import DecodePolicy
from vlmae.data.encode import EncodedShard, encode_shard
from vlmae.data.index import INDEX_ENDING
from vlmae.data.token_table import Rows, Streams, TokenCodec, pad_spans, widths
from vlmae.devices import check_accelerator, device_of
from vlmae.part_keys import cache_key, shard_key
from vlmae.tokens import Tokens
from vlmae.towers import build_towers

STAGE = "cache"
REVISION = 2
USES = ("auto", "require", "off")


@dataclass(frozen=True)
class PrefixConfig:
    """How tokens are kept, and how hard the machine works for them.

    Attributes:
        dtype: "float16", "bfloat16", "float32", or "int8" with one scale a token.
        processes: worker processes, one shard each at a time.
        threads: torch threads in each of them; results are promised equal for equal numbers.
        skip_limit: largest share of undecodable clips, over which a stage is refused.
        use: what training, embedding and evaluation do: "auto" reads a finished cache and computes
            tokens as it goes where there is none, "require" refuses to, "off" never looks.
        accelerator: "cpu" or "gpu", where the frozen towers run; results are promised equal on
            equal hardware.
    """

    dtype: str
    processes: int
    threads: int
    skip_limit: float
    use: str = "auto"
    accelerator: str = "cpu"

    def __post_init__(self) -> None:
        check_accelerator(self.accelerator, "prefix.accelerator")
        TokenCodec(self.dtype)
        if self.processes < 1 or self.threads < 1:
            raise ValueError(
                f"prefix has processes {self.processes}, threads {self.threads}: give at least 1 "
                "each"
            )
        if not 0 <= self.skip_limit <= 1:
            raise ValueError(f"prefix.skip_limit is {self.skip_limit}: give a share in [0, 1]")
        if self.use not in USES:
            raise ValueError(f"prefix.use is {self.use!r}: use one of {', '.join(USES)}")


@dataclass(frozen=True)
class Prefix:
    """Everything that determines the frozen tokens of a data set.

    Attributes:
        data: a finished `prepare` stage.
        vl: Hydra node of the vision-language backbone.
        audio: Hydra node of the audio backbone.
        policy: which frames are read, by which decoder.
        config: how tokens are kept.
        storage_options: of fsspec, for shards that lie elsewhere; no part of any key.
    """

    data: Stage
    vl: Mapping[str, Any]
    audio: Mapping[str, Any]
    policy: DecodePolicy
    config: PrefixConfig
    storage_options: Mapping[str, Any] | None = None

    @property
    def shards(self) -> list[str]:
        """Names of the shards, in order."""
        names = [name for name in self.data.files if name.endswith(INDEX_ENDING)]
        return [name.removesuffix(INDEX_ENDING) for name in names]

    def encode(self, shard: str, only: IdArray | None = None) -> EncodedShard:
        """Decode and encode one shard, or some of its clips, now and in this process."""
        torch.set_num_threads(self.config.threads)
        device = device_of(self.config.accelerator, "prefix.accelerator")
        towers = build_towers(self.vl, self.audio).to(device)
        return encode_shard(self.data.path, shard, towers, self.policy, self.storage_options, only)

    def key(self) -> dict[str, Any]:
        """What determines the tokens of a clip: weights, decode policy, threads."""
        return self._key

    @cached_property
    def _key(self) -> dict[str, Any]:
        # Once: it hashes all weights, and every shard's key asks for it.
        towers = build_towers(self.vl, self.audio)
        return {
            "decode": self.policy.hashed(),
            "sample_rate": towers.sample_rate,
            "threads": self.config.threads,
            "streams": towers.prefix_streams,
            "identities": towers.identities(),
            **({} if self.config.accelerator == "cpu" else {"accelerator": "gpu"}),
        }

    def shard_key(self, shard: str) -> str:
        """Hash of what determines the tokens of one shard."""
        files = self.data.manifest["parts"][shard]["files"]
        return shard_key(shard, files, self.key(), REVISION)


def cache_prefix(
    root: Path, prefix: Prefix, *, share: tuple[int, int] = (0, 1), on_part: OnPart | None = None
) -> Stage | None:
    """Compute, finish or reuse the cache of a prepared data set.

    Args:
        root: folder of all stages.
        prefix: what is cached.
        share: number and count of independent processes that share the work.
        on_part: called after every shard.

    Returns:
        The finished stage; None while shards of other shares are missing.

    Raises:
        ValueError: there is no clip, or more than `skip_limit` of them cannot be decoded, with
            counts by reason; the decode policy differs from epoch to epoch; the towers' tokens
            cannot be cached, or not with this dtype.
    """
    stage = work_on_stage(
        root,
        STAGE,
        **_spec(prefix),
        share=share,
        processes=prefix.config.processes,
        on_part=on_part,
    )
    if stage is not None:
        if not any(stage.counts.get(name) for name in ("clips", "skipped")):
            raise ValueError(
                f"{prefix.data.path} holds no clip: run vlmae.prepare again, which says why"
            )
        require_few_skipped(stage.counts, prefix.config.skip_limit, stage.path)
    return stage


def find_cache(root: Path, prefix: Prefix) -> PrefixCache | None:
    """The finished cache of these very tokens, or None."""
    if not prefix.policy.repeatable or build_towers(prefix.vl, prefix.audio).uncacheable:
        return None
    path = stage_directory(root, STAGE, **_spec(prefix))
    return PrefixCache(open_stage(path)) if path.is_dir() else None


def has_cache_of_towers(
    root: Path, data: Stage, vl: Mapping[str, Any], audio: Mapping[str, Any], dtype: str
) -> bool:
    """Whether some finished cache of a data set was made with these towers.

    For whoever must not load them: what `find_cache` compares besides, such as the hash of their
    weights, is not looked at.

    Args:
        root: folder of all stages.
        data: the finished `prepare` stage.
        vl: Hydra node of the vision-language backbone, as of `vlmae.settings.tower_nodes`.
        audio: Hydra node of the audio backbone.
        dtype: of the stored tokens.
    """
    wanted = {"dtype": dtype, "towers": {"vl": dict(vl), "audio": dict(audio)}}
    for file in root.glob(f"{STAGE}-*[0-9a-f]/manifest.json"):
        manifest = read_json(file)
        if manifest.get("version") != VERSION:  # of another release
            continue
        made = {key: manifest["config"].get(key) for key in wanted}
        same = manifest["inputs"] == {"data": data.content}
        if same and canonical(made) == canonical(wanted):
            return True
    return False


def require_few_skipped(counts: Counts, limit: float, path: Path) -> None:
    """Refuse a data set of which too much cannot be decoded.

    Raises:
        ValueError: names the counts by reason and the remedy.
    """
    skipped, clips = counts.get("skipped", 0), counts.get("clips", 0)
    if skipped > limit * (skipped + clips):
        reasons = {k: v for k, v in counts.items() if k.startswith("skipped: ")}
        raise ValueError(
            f"{skipped} of {skipped + clips} clips cannot be decoded ({reasons}), more than "
            f"prefix.skip_limit={limit}: look at *.quarantine.parquet in {path}, mend the data or "
            "raise the limit"
        )


def _spec(prefix: Prefix) -> dict[str, Any]:
    """Arguments that name the stage."""
    if not prefix.policy.repeatable:
        raise ValueError(
            f"decode.sampling={prefix.policy.sampling} reads other frames every epoch, so its "
            "tokens cannot be cached: use uniform or keyframe, or prefix.use=off"
        )
    codec = TokenCodec(prefix.config.dtype)
    towers = build_towers(prefix.vl, prefix.audio)
    if towers.uncacheable:
        raise ValueError(towers.uncacheable)
    if codec.dtype == "int8" and towers.needs_float_cache:
        raise ValueError(
            "prefix.dtype=int8 keeps one scale a token, and the tokens at this cut carry positions "
            "that it would lose: use float16 or bfloat16"
        )
    streams = widths(towers.prefix_streams)
    parts = [
        Part(
            shard,
            (
                *(array_file(shard, name, array) for name in streams for array in codec.files),
                rows_file(shard),
                f"{shard}.quarantine.parquet",
            ),
            partial(_cache_shard, prefix, shard),
            key=cache_key(prefix.shard_key(shard), codec.dtype, shard),
        )
        for shard in prefix.shards
    ]
    return {
        "config": {
            **prefix.key(),
            "dtype": codec.dtype,
            "towers": {"vl": dict(prefix.vl), "audio": dict(prefix.audio)},
        },
        "inputs": {"data": prefix.data.content},
        "parts": parts,
        "revision": REVISION,
    }


def array_file(shard: str, stream: str, array: str) -> str:
    """Name of the file with one of `TokenCodec.files`."""
    return f"{shard}.{stream}.npy" if array == "tokens" else f"{shard}.{stream}.{array}.npy"


def rows_file(shard: str) -> str:
    """Name of the file that says where each clip's tokens are."""
    return f"{shard}.rows.parquet"


def _cache_shard(prefix: Prefix, shard: str, output: Path) -> Counts:
    encoded = prefix.encode(shard)
    codec = TokenCodec(prefix.config.dtype)
    rows = encoded.rows
    for stream, width in widths(encoded.streams).items():
        values = list(encoded.tokens[stream])
        lengths = np.array([len(value) for value in values], np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)])[: len(lengths)]
        rows = rows.append_column(f"{stream}_start", pa.array(starts, pa.int64()))
        rows = rows.append_column(f"{stream}_length", pa.array(lengths, pa.int64()))
        flat = torch.cat(values) if values else torch.zeros(0, width)
        for array, kept in codec.encode(flat).items():
            np.save(output / array_file(shard, stream, array), kept)
    pq.write_table(rows, output / rows_file(shard))
    pq.write_table(encoded.quarantine, output / f"{shard}.quarantine.parquet")
    return encoded.counts


class PrefixCache:
    """Read side of the cache: a `TokenTable` over memory-mapped files.

    Attributes:
        stage: the finished stage.
        streams: tower -> stream name -> width.
        identities: tower -> identity of its frozen weights.
        towers: tower -> its Hydra node.
        rows: all rows in shard order; row numbers refer to it.
    """

    def __init__(self, stage: Stage) -> None:
        self.stage = stage
        config = stage.manifest["config"]
        self.streams: Streams = config["streams"]
        self.identities: dict[str, Any] = config["identities"]
        self.towers: dict[str, dict[str, Any]] = config["towers"]
        self.codec = TokenCodec(config["dtype"])
        self._widths = widths(self.streams)
        self._folder = stage.path
        self._shards = list(stage.manifest["parts"])
        tables = [pq.read_table(stage.path / rows_file(shard)) for shard in self._shards]
        # In one piece: rows are taken from it once a shard, and looking for theirs costs as much as
        # there are pieces.
        self.rows: pa.Table = pa.concat_tables(tables).combine_chunks()
        self._part = np.repeat(np.arange(len(tables)), [table.num_rows for table in tables])
        self.ids: IdArray = sample_ids.from_arrow(self.rows["id"])
        sample_ids.require_unique(self.ids, sample_ids.texts(self.rows["key"]))
        self._order = np.argsort(self.ids, kind="stable")
        self._starts, self._lengths = (
            {name: self.rows[f"{name}_{end}"].to_numpy() for name in self._widths}
            for end in ("start", "length")
        )
        self._maps: dict[tuple[int, str], dict[str, npt.NDArray[Any]]] = {}

    @property
    def bytes_per_clip(self) -> float:
        """Mean bytes of tokens a clip."""
        total = sum(
            int(self._lengths[name].sum()) * self.codec.bytes_per_token(width)
            for name, width in self._widths.items()
        )
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

    def rows_of_shard(self, shard: str) -> Rows:
        """Row numbers of one part, in shard order."""
        return np.flatnonzero(self._part == self._shards.index(shard))

    def rows_of(self, ids: IdArray) -> Rows:
        """Row number of each id, -1 where the clip could not be decoded.

        Raises:
            ValueError: an id is neither cached nor in quarantine: the cache is of other data.
        """
        if len(self.ids) == 0:
            rows = np.full(len(ids), -1, np.int64)
        else:
            position = np.searchsorted(self.ids, ids, sorter=self._order)
            found = self._order[position.clip(max=len(self.ids) - 1)]
            rows = np.where(self.ids[found] == ids, found, -1).astype(np.int64)
        missing = ids[rows < 0]
        if len(missing):
            unknown = missing[~np.isin(missing, sample_ids.from_arrow(self.quarantine()["id"]))]
            if len(unknown):
                raise ValueError(
                    f"{len(unknown)} clips are neither in the cache {self.stage.path} nor in its "
                    f"quarantine, first {sample_ids.to_hex(unknown[:1])[0]}: they are of another "
                    "data set, or were taken down"
                )
        return rows

    def quarantine(self, shard: str | None = None) -> pa.Table:
        """id, key, reason and detail of the clips, of one part or all, that cannot be decoded."""
        return self._quarantine([shard]) if shard else self._whole_quarantine

    @cached_property
    def _whole_quarantine(self) -> pa.Table:
        return self._quarantine(self._shards)  # once: every training asks for it

    def _quarantine(self, shards: Sequence[str]) -> pa.Table:
        return pa.concat_tables(
            pq.read_table(self.stage.path / f"{shard}.quarantine.parquet") for shard in shards
        )

    def batch(self, rows: Rows, stream: str) -> Tokens:
        """(B, T, width) tokens of one stream, padded, as `TokenCodec.decode` gives them."""
        starts, lengths = self._starts[stream], self._lengths[stream]
        spans = [
            (self._arrays(int(self._part[row]), stream), int(starts[row]), int(lengths[row]))
            for row in rows
        ]
        return pad_spans(spans, self._widths[stream], self.codec)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}  # another process maps for itself

    def _arrays(self, part: int, stream: str) -> dict[str, npt.NDArray[Any]]:
        """The arrays of one part and stream, mapped once a process."""
        arrays = self._maps.get((part, stream))
        if arrays is None:
            arrays = {}
            for name in self.codec.files:
                file = self._folder / array_file(self._shards[part], stream, name)
                # A plain view of the map: slicing the memmap class costs 5 us a slice.
                arrays[name] = map_array(file).view(np.ndarray)
            self._maps[part, stream] = arrays
        return arrays
