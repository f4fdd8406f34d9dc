"""Memory over ten times the data: the largest resident size of a process that reads it once.

The size is the kernel's VmHWM, read by the process itself at its end. `ru_maxrss` would not do: a
child inherits it from the process that started it. Pages of a mapped cache count while they are
resident, though the kernel may drop them at any time, so "own" memory is given beside it.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.data.bench import Bench, FewShards, finished
from benchmarks.data.loader import live
from benchmarks.measure import Row, Table
from lsb.artifact import open_stage
from vlmae.data.batches import CachedClips, LiveClips
from vlmae.data.loader import ClipLoader
from vlmae.data.order import BatchOrder, OrderConfig
from vlmae.data.prefix_cache import PrefixCache
from vlmae.data.token_source import CachedTokens, LiveTokens
from vlmae.embedding import EmbedConfig, embed_pooled

NAME = "memory"
TIMES = 10
BATCH_SIZE = 4  # small, so that n clips are many batches
PATHS = ("runs", "scratch", "sources")
WORKS = ("loader, live", "loader, cache", "embed, media", "embed, cache")


def run(bench: Bench) -> list[Table]:
    shards = 1
    many = min(TIMES, len(bench.urls()) // shards)
    cache = bench.cached.cache.stage.path
    rows: list[Row] = []
    turns = bench.turns(2)
    for work in WORKS[:2] if bench.quick else WORKS:
        found: dict[int, list[dict[str, float]]] = {shards: [], many: []}
        for turn in range(turns):
            for count, seen in found.items():
                seen.append(_child(bench, work, count, cache, turn))
        for kind in ("peak", "own"):
            few = [seen[kind] for seen in found[shards]]
            for count, seen in found.items():
                values = [one[kind] for one in seen]
                rows.append(
                    Row(
                        NAME,
                        work,
                        f"{kind}, {int(seen[0]['clips'])} clips",
                        statistics.median(values),
                        min(values),
                        max(values),
                        "MB",
                        "" if count == shards else f"{int(found[shards][0]['clips'])} clips",
                        None
                        if count == shards
                        else statistics.median(a / b for a, b in zip(values, few, strict=True)),
                        turns,
                        statistics.median(one["wall"] for one in seen),
                        statistics.median(one["cpu"] for one in seen),
                    )
                )
    return [
        Table(
            NAME,
            f"memory of one process over n and {many} n clips",
            f"{bench.described}; shards of the pool",
            f"the same work on n clips; torch {torch.__version__}",
            f"sizes, {many} n against n: 1 is flat",
            rows,
            [
                "peak: VmHWM, with the imports, the towers, and mapped pages of the cache that "
                "are resident. own: anonymous memory at the end of the work "
                "(RssAnon). wall s and CPU s are of the work, without imports.",
            ],
        )
    ]


def _child(bench: Bench, work: str, shards: int, cache: Path, turn: int) -> dict[str, float]:
    """Sizes in MB and seconds of one process."""
    order = {
        "bench": {name: str(value) for name, value in asdict(bench).items() if name in PATHS},
        "quick": bench.quick,
        "work": work,
        "shards": shards,
        "cache": str(cache),
        "root": str(bench.scratch / f"memory-{work.replace(', ', '-')}-{shards}-{turn}"),
    }
    command = [sys.executable, "-m", "benchmarks.data.memory", json.dumps(order)]
    ended = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    answer: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return answer


class _FewCached(CachedTokens):
    """The first shards of each split of a cache."""

    def __init__(self, cache: PrefixCache, limit: int) -> None:
        super().__init__(cache)
        self.limit = limit

    def shards_of(self, split: str) -> list[str]:
        """Their names."""
        return super().shards_of(split)[: self.limit]


def _work(order: dict[str, Any]) -> dict[str, float]:
    """In the child: do the work and measure this process."""
    torch.set_num_threads(1)
    runs, scratch, sources = (Path(order["bench"][name]) for name in PATHS)
    bench = Bench(runs, scratch, sources, order["quick"])
    prefix: FewShards = bench.few("pool", order["shards"])
    source = (
        _FewCached(PrefixCache(open_stage(Path(order["cache"]))), order["shards"])
        if order["work"].endswith("cache")
        else LiveTokens(prefix)
    )
    wall, cpu = time.perf_counter(), time.process_time()
    if order["work"].startswith("embed"):
        made = finished(embed_pooled(Path(order["root"]), source, EmbedConfig("pool")))
        clips = made.counts["rows"]
    else:
        batches: CachedClips | LiveClips
        if isinstance(source, CachedTokens):
            rows = np.concatenate([source.cache.rows_of_shard(name) for name in prefix.shards])
            batches = CachedClips(source.cache, rows, np.full((len(rows), 1), -1, np.int8))
        else:
            batches = live(bench, prefix.policy, prefix.shards)
        clips = len(batches)
        for _ in ClipLoader(batches, BatchOrder(clips, world=1, config=OrderConfig(BATCH_SIZE))):
            pass
    return {
        "clips": clips,
        "peak": _status("VmHWM"),
        "own": _status("RssAnon"),
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }


def _status(name: str) -> float:
    """A size of this process, in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) / 1024
    raise ValueError(f"/proc/self/status has no {name}: this benchmark needs Linux 4.5 or newer")


if __name__ == "__main__":
    print(json.dumps(_work(json.loads(sys.argv[1]))))
