"""Batches of tokens or of decoded clips with labels, and the controls that hide a modality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from lsb import ids as sample_ids
from lsb.ids import IdArray
from vlmae.data.decode import BadClipError, Clip, DecodePolicy, decode_sample
from vlmae.data.ranges import RangeReader, tar_members
from vlmae.data.token_table import Rows, TokenTable, widths
from vlmae.tokens import Tokens

INPUTS = ("both", "vl", "audio", "shuffled_audio")
UNUSABLE = "unusable clip"


@dataclass(frozen=True)
class Batch:
    """Tokens and labels of some clips.

    Attributes:
        streams: stream name -> tokens (B, T, width), in the dtype they are kept in.
        labels: (B, K) int64 in {1, 0, -1}; -1 is missing.
        ids: (B,) ids of the clips.
        totals: (T,) loss terms in the whole step of the optimiser, over ranks and accumulation
            (`Objective.terms`); None counts those of this batch alone.
    """

    streams: Mapping[str, Tokens]
    labels: Tensor
    ids: IdArray
    totals: Tensor | None = None

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved = {name: tokens.to(device) for name, tokens in self.streams.items()}
        totals = None if self.totals is None else self.totals.to(device)
        return Batch(moved, self.labels.to(device), self.ids, totals)


@dataclass(frozen=True)
class ClipBatch:
    """Decoded clips and labels: what the frozen towers still have to encode.

    A clip that cannot be used stands in its place without picture and sound and with no label, so
    that batches are equal on all ranks.

    Attributes:
        clips: B of them.
        labels: (B, K) int64 in {1, 0, -1}; -1 is missing.
        ids: (B,) ids of the clips.
        bad: those that cannot be used.
        totals: see `Batch`; a clip that cannot be used is counted with the labels it has, so that
            all ranks agree on the number without a word.
    """

    clips: Sequence[Clip]
    labels: Tensor
    ids: IdArray
    bad: Sequence[BadClipError] = field(default=())
    totals: Tensor | None = None

    def to(self, device: torch.device) -> ClipBatch:
        """Labels on a device; clips move when they are encoded."""
        totals = None if self.totals is None else self.totals.to(device)
        return ClipBatch(self.clips, self.labels.to(device), self.ids, self.bad, totals)


class CachedClips:
    """Batches of tokens by clip number, a `BatchSource`.

    Args:
        table: where the tokens are.
        rows: (N,) row numbers in the table.
        labels: (N, K) int8 in {1, 0, -1}.
        inputs: "both"; "vl" or "audio" masks the other tower; "shuffled_audio" gives every clip the
            sound of another one, a control that keeps the statistics of both modalities.
        seed: of the shuffle.
    """

    def __init__(
        self,
        table: TokenTable,
        rows: Rows,
        labels: npt.NDArray[np.int8],
        inputs: str = "both",
        seed: int = 0,
    ) -> None:
        if inputs not in INPUTS:
            raise ValueError(f"inputs must be one of {INPUTS}, got {inputs!r}")
        if len(rows) != len(labels):
            raise ValueError(f"{len(rows)} rows and {len(labels)} labels: one label row a clip")
        if (rows < 0).any():
            raise ValueError(
                f"{int((rows < 0).sum())} clips are not in the cache: drop the skipped ones first"
            )
        self.table, self.rows = table, rows
        self.labels = labels.astype(np.int64)
        self.ids = sample_ids.from_arrow(table.rows["id"].take(rows))
        self.audio_rows = _others(rows, seed) if inputs == "shuffled_audio" else rows
        kept = {"vl": ("vl",), "audio": ("audio",)}.get(inputs, ("vl", "audio"))
        self._widths = widths(table.streams)
        # Stream -> row of each clip to take it from, None where the control masks it.
        self._sources = {
            name: None if tower not in kept else self.audio_rows if tower == "audio" else rows
            for tower, streams in table.streams.items()
            for name in streams
        }

    def __len__(self) -> int:
        return len(self.rows)

    def batch(self, rows: Rows, seed: int = 0) -> Batch:
        """Tokens and labels of some clips; nothing depends on the seed."""
        streams = {
            name: _masked(len(rows), self._widths[name])
            if source is None
            else self.table.batch(source[rows], name)
            for name, source in self._sources.items()
        }
        return Batch(streams, torch.from_numpy(self.labels[rows]), self.ids[rows])


class LiveClips:
    """Batches of clips read by byte range and decoded here, a `BatchSource`.

    Args:
        folder: of the prepared data set.
        rows: table of N clips: id, key, shard, offset, size.
        labels: (N, K) int8 in {1, 0, -1}.
        policy: which frames are read.
        sample_rate: of the sound, in Hz.
        storage_options: of fsspec, for shards that lie elsewhere.
    """

    def __init__(
        self,
        folder: Path,
        rows: pa.Table,
        labels: npt.NDArray[np.int8],
        *,
        policy: DecodePolicy,
        sample_rate: int,
        storage_options: Mapping[str, Any] | None = None,
    ) -> None:
        if rows.num_rows != len(labels):
            raise ValueError(f"{rows.num_rows} rows and {len(labels)} labels: one label row a clip")
        self.reader = RangeReader(folder, storage_options=storage_options)
        self.policy, self.sample_rate = policy, sample_rate
        self.labels = labels.astype(np.int64)
        self.ids = sample_ids.from_arrow(rows["id"])
        self.keys = sample_ids.texts(rows["key"])
        self.shards = sample_ids.texts(rows["shard"])
        self.offsets, self.sizes = (rows[name].to_numpy() for name in ("offset", "size"))

    def __len__(self) -> int:
        return len(self.keys)

    def batch(self, rows: Rows, seed: int = 0) -> ClipBatch:
        """Decode some clips; the seed chooses frames where the policy is random."""
        records = self.reader.read(
            [self.shards[row] for row in rows],
            self.offsets[rows].tolist(),
            self.sizes[rows].tolist(),
        )
        labels = self.labels[rows]
        clips: list[Clip] = []
        bad: list[BadClipError] = []
        for place, (row, record) in enumerate(zip(rows, records, strict=True)):
            key = self.keys[row]
            try:
                members = tar_members(record, key)
                clip = decode_sample(
                    members, key=key, policy=self.policy, sample_rate=self.sample_rate, seed=seed
                )
            except BadClipError as error:
                bad.append(error)
                clip = empty_clip(key)
                labels[place] = -1
            clips.append(clip)
        return ClipBatch(clips, torch.from_numpy(labels), self.ids[rows], bad)


def empty_clip(key: str) -> Clip:
    """Stands for a clip that cannot be used: no picture, no sound, no title."""
    return Clip(
        key=key,
        title="",
        frames=np.zeros((0, 0, 0, 3), np.uint8),
        audio=np.zeros(0, np.float32),
        audio_missing=UNUSABLE,
        video_missing=UNUSABLE,
    )


def _masked(clips: int, width: int) -> Tokens:
    return Tokens(torch.zeros(clips, 1, width), torch.zeros(clips, 1, dtype=torch.bool))


def _others(rows: Rows, seed: int) -> Rows:
    """A permutation that leaves no clip in its place: one step along a random cycle."""
    cycle = np.random.default_rng(seed).permutation(len(rows))
    other = np.empty_like(rows)
    other[cycle] = rows[np.roll(cycle, 1)]
    return other
