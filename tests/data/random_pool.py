"""A pool of small random clips: no media, but tars and an index like any other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vlmae.data.records import END_OF_TAR, write_sample


@dataclass(frozen=True)
class PoolClip:
    """One clip and what its members hold."""

    key: str
    shard: str
    offset: int
    size: int
    members: dict[str, bytes]


def write_pool(folder: Path, *, shards: int, clips: int, media_bytes: int) -> list[PoolClip]:
    """Shards of clips whose media are random bytes of a random size around `media_bytes`."""
    rng = np.random.default_rng(3)
    written = []
    for number in range(shards):
        shard = f"pool-{number:05d}.tar"
        with open(folder / shard, "wb") as stream:
            for clip in range(clips):
                key = f"c-{number:03d}-{clip:03d}"
                size = int(rng.integers(media_bytes // 2, media_bytes * 3 // 2))
                members = {"mp4": rng.bytes(size), "json": f'{{"title": "{key}"}}'.encode()}
                offset, length = write_sample(stream, key, members)
                written.append(PoolClip(key, shard, offset, length, members))
            stream.write(END_OF_TAR)
    return written
