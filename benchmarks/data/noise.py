"""A tower whose tokens are noise: a cache of any size a clip, without the cost of an encoder."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vlmae.backbones import Backbone
from vlmae.backbones.base import FrozenIdentity
from vlmae.data.decode import Clip


class NoiseTower(Backbone):
    """Normal noise that depends on the clip's key alone.

    Args:
        tokens: stream -> (mean number of tokens, spread of it, width). Clips have from mean minus
            spread to mean plus spread tokens.
        sample_rate: in Hz; 0 makes it a tower without sound.
    """

    def __init__(self, tokens: Mapping[str, Sequence[int]], sample_rate: int = 0) -> None:
        super().__init__()
        self.tokens = {name: tuple(sizes) for name, sizes in tokens.items()}
        self.sample_rate = sample_rate
        self.streams = {name: width for name, (_, _, width) in self.tokens.items()}
        self.blocks = dict.fromkeys(self.streams, 0)
        self.freeze()

    def prefix(self, clips: Sequence[Clip]) -> dict[str, list[Tensor]]:
        """See `Backbone.prefix`."""
        made: dict[str, list[Tensor]] = {name: [] for name in self.streams}
        for clip in clips:
            seed = zlib.crc32(clip.key.encode())
            generator = torch.Generator().manual_seed(seed)
            for name, (mean, spread, width) in self.tokens.items():
                length = mean - spread + seed % (2 * spread + 1)
                made[name].append(torch.randn(length, width, generator=generator))
        return made

    def identity(self) -> FrozenIdentity:
        """See `Backbone.identity`."""
        options: dict[str, Any] = {name: list(sizes) for name, sizes in self.tokens.items()}
        return FrozenIdentity("noise", "1", "0" * 64, options)


# 8 frames of 1280, one title of 384 and about 50 tokens of sound of 384: 60 kB in float16.
VL_NODE: dict[str, Any] = {
    "_target_": "benchmarks.data.noise.NoiseTower",
    "tokens": {"image": [8, 0, 1280], "text": [1, 0, 384]},
}
AUDIO_NODE: dict[str, Any] = {
    "_target_": "benchmarks.data.noise.NoiseTower",
    "tokens": {"audio": [50, 10, 384]},
    "sample_rate": 16_000,
}
