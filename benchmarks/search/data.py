"""Synthetic embeddings with the traits of real ones, generated, never downloaded.

Clustered: a common mean (embeddings are anisotropic), 50 groups of 2,000 clusters whose sizes
follow a power law and whose radii differ, each of rank 32 within, under a power-law spectrum.
Unclustered: the common mean and the spectrum alone. Seeds follow the law of the pool.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from lsb.artifact import Counts, Part, run_stage
from lsb.store import Store, part_files, write_part

CLUSTERS, GROUPS, RANK = 2000, 50, 32
CHUNK = 250_000
LAW_VERSION = 1


@dataclass
class Law:
    """A distribution of unit vectors.

    Attributes:
        dimension: D.
        clustered: see the module.
        seed: of everything that is drawn.
    """

    dimension: int
    clustered: bool = True
    seed: int = 0

    @cached_property
    def _fixed(self) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(self.seed + self.dimension)
        spectrum = torch.arange(1, self.dimension + 1).float() ** -0.5
        spectrum /= spectrum.norm()

        def draw(count: int) -> torch.Tensor:
            return torch.randn(count, self.dimension, generator=generator) * spectrum

        def unit(x: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.normalize(x)

        rotation = torch.linalg.qr(
            torch.randn(self.dimension, self.dimension, generator=generator)
        )[0]
        common = 0.45 * unit(draw(1))
        groups = 0.55 * unit(draw(GROUPS))
        parent = torch.randint(0, GROUPS, (CLUSTERS,), generator=generator)
        centres = common + groups[parent] + 0.55 * unit(draw(CLUSTERS))
        weight = torch.arange(1, CLUSTERS + 1).float() ** -0.7
        weight = weight[torch.randperm(CLUSTERS, generator=generator)]
        radius = 0.45 + 0.35 * torch.rand(CLUSTERS, generator=generator)
        axes = torch.randn(CLUSTERS, RANK, self.dimension, generator=generator) * spectrum
        axes /= axes.norm(dim=2, keepdim=True)
        local = torch.arange(1, RANK + 1).float() ** -0.5
        return {
            "rotation": rotation,
            "spectrum": spectrum,
            "common": common,
            "centres": centres,
            "weight": weight / weight.sum(),
            "radius": radius,
            "axes": axes * (local / local.norm())[:, None],
        }

    def draw(self, count: int, stream: int) -> np.ndarray:
        """(count, D) float32 of norm 1, a function of the law and of `stream`."""
        fixed = self._fixed
        generator = torch.Generator().manual_seed(1_000_003 * (self.seed + 1) + stream)
        x = torch.randn(count, self.dimension, generator=generator) * fixed["spectrum"]
        if self.clustered:
            x *= 0.22
            cluster = torch.multinomial(
                fixed["weight"], count, replacement=True, generator=generator
            )
            within = torch.randn(count, RANK, generator=generator)
            order = torch.argsort(cluster, stable=True)
            names, sizes = torch.unique_consecutive(cluster[order], return_counts=True)
            for name, rows in zip(names.tolist(), torch.split(order, sizes.tolist()), strict=True):
                spread = within[rows] @ fixed["axes"][name]
                x[rows] += fixed["centres"][name] + fixed["radius"][name] * spread
        else:
            x += fixed["common"]
        return torch.nn.functional.normalize(x @ fixed["rotation"].T).numpy()

    def chunks(self, count: int, first_stream: int = 0) -> Iterator[np.ndarray]:
        """`count` rows, a chunk at a time."""
        for number, start in enumerate(range(0, count, CHUNK)):
            yield self.draw(min(CHUNK, count - start), first_stream + number)

    def seeds(self, count: int) -> np.ndarray:
        """(count, D) seeds, none of which is in the pool."""
        return self.draw(count, 900_000)


def pool_store(folder: Path, law: Law, rows: int, dtype: str) -> Path:
    """A store of one part with the first `rows` vectors of a law, made once."""
    kind = "clustered" if law.clustered else "unclustered"

    def make(output: Path) -> Counts:
        draft = output / "draft.npy"  # pools may be larger than memory
        pool = np.lib.format.open_memmap(draft, "w+", np.dtype(dtype), (rows, law.dimension))
        start = 0
        for chunk in law.chunks(rows):
            pool[start : start + len(chunk)] = chunk
            start += len(chunk)
        counts = _write(output, pool, kind)
        draft.unlink()
        return counts

    stage = run_stage(
        folder,
        f"{kind}-{law.dimension}-{dtype}",
        config={"rows": rows, "seed": law.seed, "law": LAW_VERSION},
        inputs={},
        parts=[Part("pool", part_files("pool"), make)],
    )
    return stage.path


def share_store(folder: Path, pool: Path, share: int, shares: int) -> Path:
    """A store with every vector of one of several equal runs of a pool, made once."""
    whole = Store.open(pool)
    first, end = (len(whole) * number // shares for number in (share, share + 1))

    def make(output: Path) -> Counts:
        return _write(output, np.asarray(whole.parts[0].vectors()[first:end]), "share", first)

    stage = run_stage(
        folder,
        f"share-{whole.dimension}-{whole.dtype}",
        config={"first": first, "end": end},
        inputs={"pool": whole.hash},
        parts=[Part("pool", part_files("pool"), make)],
    )
    return stage.path


def _write(output: Path, pool: np.ndarray, kind: str, first: int = 0) -> Counts:
    rows = len(pool)
    table = pa.table(
        {
            "key": pa.array([f"clip {first + number}" for number in range(rows)], pa.string()),
            "shard": pa.array([f"{kind}.tar"] * rows, pa.string()),
            "offset": np.arange(rows, dtype=np.int64),
            "size": np.ones(rows, dtype=np.int64),
        }
    )
    return write_part(output, "pool", pool, table, kind="pooled")
