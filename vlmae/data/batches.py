"""Batches of cached tokens with labels, and the controls that take a modality away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from vlmae.data.prefix_cache import PrefixCache
from vlmae.tokens import Tokens, pad

INPUTS = ("both", "vl", "audio", "shuffled_audio")


@dataclass(frozen=True)
class Batch:
    """Tokens and labels of some clips.

    Attributes:
        streams: stream name -> tokens (B, T, width).
        labels: (B, K) int64 in {1, 0, -1}; -1 is missing.
    """

    streams: Mapping[str, Tokens]
    labels: Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        moved = {name: tokens.to(device) for name, tokens in self.streams.items()}
        return Batch(moved, self.labels.to(device))


class CachedClips(Dataset[dict[str, Any]]):
    """Clips of the cache by row number.

    Args:
        cache: where the tokens are.
        rows: (N,) row numbers in the cache.
        labels: (N, K) int8 in {1, 0, -1}.
        inputs: "both"; "vl" or "audio" masks the other tower; "shuffled_audio" gives every clip the
            sound of another one, a control that keeps the statistics of both modalities.
        seed: of the shuffle.
    """

    def __init__(
        self,
        cache: PrefixCache,
        rows: npt.NDArray[np.int64],
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
        self.cache, self.rows, self.labels = cache, rows, labels
        self.audio_rows = _others(rows, seed) if inputs == "shuffled_audio" else rows
        kept = {"vl": ("vl",), "audio": ("audio",)}.get(inputs, ("vl", "audio"))
        self.sources = {
            name: self.audio_rows if tower == "audio" else rows
            for tower, streams in cache.streams.items()
            for name in streams
        }
        self.masked = {
            name
            for tower, streams in cache.streams.items()
            for name in streams
            if tower not in kept
        }

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        widths = self.cache.stream_widths
        tokens = {
            name: torch.zeros(0, widths[name])
            if name in self.masked
            else self.cache.tokens(int(rows[index]), name)
            for name, rows in self.sources.items()
        }
        return {"tokens": tokens, "labels": torch.from_numpy(self.labels[index].astype(np.int64))}

    def collate(self, samples: Sequence[dict[str, Any]]) -> Batch:
        """Pad the samples of one batch."""
        streams = {
            name: pad([sample["tokens"][name] for sample in samples], width)
            for name, width in self.cache.stream_widths.items()
        }
        return Batch(streams, torch.stack([sample["labels"] for sample in samples]))


def _others(rows: npt.NDArray[np.int64], seed: int) -> npt.NDArray[np.int64]:
    """A permutation that leaves no clip in its place: one step along a random cycle."""
    cycle = np.random.default_rng(seed).permutation(len(rows))
    other = np.empty_like(rows)
    other[cycle] = rows[np.roll(cycle, 1)]
    return other
