"""What another worker gains: live batches, and building the cache."""

from __future__ import annotations

import itertools
import warnings
from functools import partial

import torch

from benchmarks.data.bench import Bench, finished
from benchmarks.data.loader import BATCH, live, passes
from benchmarks.measure import Row, Table, rates
from vlmae.data.prefix_cache import cache_prefix

NAME = "workers"


def run(bench: Bench) -> list[Table]:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="This DataLoader will create")
    rows: list[Row] = []
    policy = bench.settings.decode.resolved()
    source = live(bench, policy)
    paths = {
        f"{count} workers": passes(source, len(source), count)
        for count in ((0, 2) if bench.quick else range(5))
    }
    turns = bench.time(paths, 3)
    rows += rates(NAME, f"live batches of {BATCH}, decoded", turns, "0 workers", "clips/s")
    fresh = itertools.count()
    bench.towers.identities()  # loaded here once, as in every worker
    builds = {
        f"{count} processes": partial(_build, bench, count, fresh)
        for count in ((1,) if bench.quick else (1, 2))
    }
    turns = bench.time(builds, 2, warm=False)
    rows += rates(NAME, "building the cache", turns, "1 processes", "clips/s")
    return [
        Table(
            NAME,
            "clips a second by the number of processes that make them",
            f"{bench.described}; the pool, {len(source)} clips, {policy.frames} frames, "
            f"{policy.backend}",
            "the same code in the process itself (0 workers, 1 processes), torch "
            f"{torch.__version__}",
            "speed relative to the peer",
            rows,
            [
                f"{bench.cores} cores. Start included: a worker of the loader is forked, a process "
                "that builds the cache is started anew, imports and loads the towers (seconds).",
            ],
        )
    ]


def _build(bench: Bench, processes: int, fresh: itertools.count[int]) -> int:
    root = bench.scratch / f"build-{next(fresh)}"
    prefix = bench.few("pool", processes=processes)
    return finished(cache_prefix(root, prefix)).counts["clips"]
