"""One pool with exact duplicates, its seeds, and stores that cut it into uneven parts."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa

from lsb.artifact import Part, run_stage
from lsb.ids import IdArray, sample_ids
from lsb.search.ask import Hits
from lsb.search.config import SearchConfig
from lsb.search.result import KeepConfig, digest, result_table
from lsb.store import Store, part_files, write_part

CLIPS, COPIES, DIMENSION = 1500, 5, 16
LT = 0.85
CONFIG = SearchConfig(neighbours=4, max_neighbours=40, rows_per_block=100)
KEEP = KeepConfig(near_duplicate=0.99, per_seed_cap=3)
KEYS = [f"clip-{number}" for number in range(CLIPS)]
SEED_IDS: IdArray = sample_ids(KEYS[:30])
EXCLUDE: IdArray = sample_ids(KEYS[200:260])
# Rows of each part: as many as there are, one much larger, some empty.
CUTS = {
    1: [CLIPS],
    2: [1100, 400],
    3: [700, 0, 800],
    7: [30, 610, 0, 250, 1, 600, 9],
}


def vectors() -> np.ndarray:
    random = np.random.default_rng(5)
    distinct = CLIPS // COPIES
    x = random.normal(size=(12, DIMENSION))[random.integers(12, size=distinct)]
    x = x + 0.45 * random.normal(size=x.shape)
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return np.tile(x, (COPIES, 1))


def seeds() -> np.ndarray:
    return vectors()[:30]


def build(root: Path, parts: int, shuffle: int | None = None) -> Path:
    """The pool as a store; with `shuffle` rows are dealt by chance and parts listed in disorder."""
    random = np.random.default_rng(shuffle)
    row = np.arange(CLIPS) if shuffle is None else random.permutation(CLIPS)
    x = vectors()
    made = []
    for number, chosen in enumerate(np.split(row, np.cumsum(CUTS[parts])[:-1])):
        rows = pa.table(
            {
                "key": pa.array([KEYS[index] for index in chosen], pa.string()),
                "shard": pa.array([f"media-{index % 3}.tar" for index in chosen], pa.string()),
                "offset": pa.array(chosen * 100, pa.int64()),
                "size": pa.array(np.full(len(chosen), 100), pa.int64()),
            }
        )
        name = f"part-{number:05d}"
        make = functools.partial(
            write_part, name=name, vectors_ND=x[chosen], rows=rows, kind="fused"
        )
        made.append(Part(name, part_files(name), make))
    if shuffle is not None:
        made = [made[index] for index in random.permutation(len(made))]
    return run_stage(root, "embed", config={}, inputs={}, parts=made).path


def result_digest(hits: Hits, store: Store) -> str:
    """sha256 of the result table, and the counts beside it."""
    table = digest(result_table(hits, store, KEEP, CONFIG))
    told = f"{table} {hits.asked_again} {hits.saturated}"
    return hashlib.sha256(told.encode()).hexdigest()
