"""Whether calibrated precision holds where densities differ: `python -m benchmarks.local_scaling`.

Generated vectors, no media: a dense region, in which clips of different groups have similarity 0.75
and those of one group 0.95, and a sparse one with 0 and 0.55. A quarter of the groups are hard: all
their clips are positives that the model misses; a neighbour is a lookalike if its group is hard.
For each world LT is calibrated on its gold clips with and without local scaling, the pool is
searched around the missed gold clips, and every hit is judged by the truth. Prints, for each
scaling and region, mean precision and recall of the hits, and in how many worlds the precision of
all hits reached the target.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from lsb.acquisition.seeds import BroadeningConfig
from lsb.artifact import Part, run_stage
from lsb.expand import AcquisitionConfig, ExpandConfig, Expansion, expand
from lsb.ids import from_arrow, sample_ids, to_bytes
from lsb.labelled import Labelled
from lsb.search.exact import SearchConfig
from lsb.selection import SelectionConfig
from lsb.store import Store, part_files, write_part
from lsb.threshold import ThresholdConfig

DIMENSION = 64
GROUPS = 8  # of each region
HARD = 2  # of them
GOLD, POOL = 12, 40  # clips of a group
REGIONS = {"dense": (0.75, 0.8), "sparse": (0.0, 0.55)}
"""Region -> share of a direction that all its clips have, and of what is left that groups have."""
SCALINGS = {
    "none": {"scaling": "none"},
    "density in the pool": {"scaling": "density", "scaling_among": "pool"},
    "density among labelled clips": {"scaling": "density", "scaling_among": "labelled"},
}
TARGET = 0.8


@dataclass(frozen=True)
class World:
    """Vectors of gold and pool clips, and the group of each; groups are numbered over regions."""

    vectors: npt.NDArray[np.float32]
    group: npt.NDArray[np.intp]
    gold: npt.NDArray[np.bool_]

    @classmethod
    def draw(cls, seed: int) -> World:
        """A world by chance."""
        random = np.random.default_rng(seed)
        vectors, group, gold = [], [], []
        for region, (common, shared) in enumerate(REGIONS.values()):
            direction = _unit(random.normal(size=(1, DIMENSION)))
            for number in range(GROUPS):
                own = _unit(random.normal(size=(1, DIMENSION)))
                noise = _unit(random.normal(size=(GOLD + POOL, DIMENSION)))
                apart = np.sqrt(shared) * own + np.sqrt(1 - shared) * noise
                vectors.append(np.sqrt(common) * direction + np.sqrt(1 - common) * apart)
                group += [region * GROUPS + number] * (GOLD + POOL)
                gold += [True] * GOLD + [False] * POOL
        return cls(
            _unit(np.concatenate(vectors)).astype(np.float32), np.asarray(group), np.asarray(gold)
        )

    @property
    def hard(self) -> npt.NDArray[np.bool_]:
        """Clips that the model misses."""
        return self.group % GROUPS < HARD

    def keys(self) -> list[str]:
        """Of all clips."""
        return [f"clip-{row}" for row in range(len(self.group))]

    def labelled(self) -> Labelled:
        """Gold clips with the model's predictions."""
        rows = np.flatnonzero(self.gold)
        keys = [self.keys()[row] for row in rows]
        return Labelled(
            ids=sample_ids(keys),
            keys=keys,
            vectors=self.vectors[rows],
            labels={"policy": self.hard[rows].astype(np.int8)},
            probabilities={"policy": np.full(len(rows), 0.02)},
            operating_thresholds={"policy": 0.5},
        )

    def store(self, folder: Path, parts: int = 1) -> Store:
        """The pool."""
        made = []
        for number, rows in enumerate(np.array_split(np.flatnonzero(~self.gold), parts)):
            name = f"pool-{number:05d}"
            table = pa.table(
                {
                    "key": [self.keys()[row] for row in rows],
                    "shard": ["pool.tar"] * len(rows),
                    "offset": np.arange(len(rows), dtype=np.int64),
                    "size": np.ones(len(rows), dtype=np.int64),
                    "probability_policy": np.full(len(rows), 0.02),
                }
            )
            write = partial(
                write_part, name=name, vectors_ND=self.vectors[rows], rows=table, kind="fused"
            )
            made.append(Part(name, part_files(name), write))
        return Store.open(run_stage(folder, "embed", config={}, inputs={}, parts=made).path)


@dataclass(frozen=True)
class Judged:
    """Hits of one expansion against the truth.

    Attributes:
        precision: of all hits.
        of_region: region -> precision of the hits of its seeds (1 without a hit), and the share
            of the pool clips of a seed's group that it found.
    """

    precision: float
    of_region: dict[str, tuple[float, float]]


def config_of(scaling: str) -> ExpandConfig:
    """LSB-LT around the missed gold clips."""
    return ExpandConfig(
        acquisition=AcquisitionConfig("entropy", {"policy": 1.0}),
        broadening=BroadeningConfig(entropy=0, confident_error=1000, confidence=0.9),
        threshold=ThresholdConfig(target=TARGET, **SCALINGS[scaling]),  # type: ignore[arg-type]
        search=SearchConfig(64, 1024),
        selection=SelectionConfig(budget=50),
    )


def judge(world: World, found: Expansion) -> Judged:
    """Every hit by the truth."""
    row = {name: place for place, name in enumerate(to_bytes(sample_ids(world.keys())))}

    def rows(column: str) -> npt.NDArray[np.intp]:
        ids = to_bytes(from_arrow(found.hits[column]))
        return np.asarray([row[name] for name in ids], dtype=np.intp)

    seed_H, clip_H = rows("seed_id"), rows("id")
    alike_H = world.hard[clip_H]
    of_region = {}
    for number, region in enumerate(REGIONS):
        here_H = world.group[seed_H] // GROUPS == number
        own_H = here_H & (world.group[seed_H] == world.group[clip_H])
        seeds = HARD * GOLD  # every missed gold clip is a seed
        precision = float(alike_H[here_H].mean()) if here_H.any() else 1.0
        of_region[region] = (precision, float(own_H.sum()) / (seeds * POOL))
    return Judged(float(alike_H.mean()) if len(alike_H) else 1.0, of_region)


def measure(seed: int, scaling: str, folder: Path) -> Judged:
    """Draw a world, expand, judge."""
    world = World.draw(seed)
    found = expand(
        world.store(folder), world.labelled(), config_of(scaling), round=1, exclude=sample_ids([])
    )
    return judge(world, found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--worlds", type=int, default=40)
    options = parser.parse_args()
    table = Table(title=f"target {TARGET}, {options.worlds} worlds", title_justify="left")
    columns = ["scaling", "worlds that reach it"]
    for region in REGIONS:
        columns += [f"precision, {region}", f"recall, {region}"]
    for column in columns:
        table.add_column(column)
    with tempfile.TemporaryDirectory() as folder:
        for scaling in SCALINGS:
            judged = [
                measure(seed, scaling, Path(folder) / f"{scaling}-{seed}")
                for seed in range(options.worlds)
            ]
            reached = sum(one.precision >= TARGET for one in judged)
            cells = [
                f"{np.mean([one.of_region[region][place] for one in judged]):.3f}"
                for region in REGIONS
                for place in (0, 1)
            ]
            table.add_row(scaling, f"{reached} of {options.worlds}", *cells)
    Console(highlight=False).print(table)


def _unit(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


if __name__ == "__main__":
    main()
