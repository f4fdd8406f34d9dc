"""What each acquisition costs on a large pool: `python -m benchmarks.acquisition [--rows 1000000]`.

Makes a synthetic store under runs/bench (parts of 1M rows, one task, ten dropout passes; vectors of
64 random float16 numbers, a twelfth of a real store's width), and runs every acquisition over it in
a process of its own: first `pool_order` for the budget, then the whole of `lsb.expand.expand`
without broadening, near duplicates dropped; and once with it, around uncertain clips of the pool
and confident errors, within a fixed LT. Prints seconds and the peak of resident memory, pages
of mapped files included, and ends with code 1 if a peak reaches 2 GiB. Keeps
runs/bench/acquisition.json and deletes the store.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import tempfile
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from benchmarks.report import machine
from lsb.acquisition.config import ACQUISITIONS, STOCHASTIC
from lsb.acquisition.pool_order import pool_order
from lsb.acquisition.proxy import Proxy, rank_by_proxy
from lsb.acquisition.seeds import BroadeningConfig
from lsb.artifact import Counts, Part, run_stage, write_json
from lsb.expand import AcquisitionConfig, ExpandConfig, expand
from lsb.ids import sample_ids
from lsb.labelled import Labelled
from lsb.selection import SelectionConfig
from lsb.store import Store, part_files, write_part
from lsb.threshold import ThresholdConfig

PART_ROWS = 1_000_000
PASSES = 10
LABELLED = 2_000
LIMIT_MB = 2 * 1024**3 / 1e6
PACKAGES = ("numpy", "pyarrow", "scipy")
PROXY = "proxy"
BROADENED = "entropy, broadened"
SEEDS_OF_A_KIND = 100


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--dimension", type=int, default=64)
    parser.add_argument("--budget", type=int, default=1_000)
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    options = parser.parse_args()
    console, bench = Console(highlight=False), options.runs / "bench"
    bench.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="acquisition-", dir=bench) as folder:
        started = time.perf_counter()
        path = build(Path(folder), options.rows, options.dimension)
        console.print(
            f"store of {options.rows:,} rows made in {time.perf_counter() - started:.0f} s"
        )
        for name in (*ACQUISITIONS, PROXY, BROADENED):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows.append(pool.apply(measure, (path, name, options.rows, options.budget)))
            console.print(f"{name}: {rows[-1]['peak_mb']:.0f} MB")
    table = Table("acquisition", "start MB", "order s", "order MB", "expand s", "peak MB")
    for row in rows:
        table.add_row(
            row["acquisition"],
            f"{row['before_mb']:.0f}",
            f"{row['order_s']:.1f}",
            f"{row['order_mb']:.0f}",
            "-" if row["expand_s"] is None else f"{row['expand_s']:.1f}",
            f"{row['peak_mb']:.0f}",
        )
    console.print(table)
    document = {"machine": machine(PACKAGES), "dimension": options.dimension, "rows": rows}
    write_json(bench / "acquisition.json", document)
    over = [row["acquisition"] for row in rows if row["peak_mb"] >= LIMIT_MB]
    if over:
        sys.exit(f"more than 2 GiB of memory: {', '.join(over)}")


def build(folder: Path, rows: int, dimension: int) -> Path:
    """A store of kind "fused" with random vectors and scores."""
    parts = []
    for number, first in enumerate(range(0, rows, PART_ROWS)):
        name = f"part-{number:05d}"
        count = min(PART_ROWS, rows - first)
        make = partial(write_pool_part, number=number, count=count, dimension=dimension)
        parts.append(Part(name, part_files(name), make))
    return run_stage(folder, "embed", config={}, inputs={}, parts=parts).path


def write_pool_part(folder: Path, number: int, count: int, dimension: int) -> Counts:
    """One part of the pool."""
    random = np.random.default_rng(number)
    vectors = random.standard_normal((count, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    scores = {
        f"{head}probability_policy": random.random(count, dtype=np.float32)
        for head in ("", "vl_", "audio_")
    }
    for sample in range(PASSES):
        scores[f"dropout_logit_policy_{sample}"] = random.standard_normal(count, dtype=np.float32)
    first = number * PART_ROWS
    rows = pa.table(
        {
            "key": [f"clip-{row}" for row in range(first, first + count)],
            "shard": pa.array(["pool.tar"] * count),
            "offset": np.arange(count),
            "size": np.ones(count, dtype=np.int64),
            **scores,
        }
    )
    name = f"part-{number:05d}"
    return write_part(folder, name, vectors.astype(np.float16), rows, kind="fused")


def measure(path: Path, name: str, rows: int, budget: int) -> dict[str, Any]:
    """Seconds and peak memory of one acquisition."""
    store = Store.open(path)
    exclude = sample_ids(f"clip-{row}" for row in range(0, rows, max(1, rows // LABELLED)))
    before, started = peak_mb(), time.perf_counter()
    expand_s = None
    if name == PROXY:
        weight = np.random.default_rng(0).standard_normal(store.dimension, dtype=np.float32)
        rank_by_proxy(store, {"policy": Proxy(weight, 0.0)}, {"policy": 1}, budget, exclude=exclude)
        order_s, order_mb = time.perf_counter() - started, peak_mb()
    else:
        passes = PASSES if name in STOCHASTIC else 0
        kind = name.partition(",")[0]
        config = AcquisitionConfig(kind, {"policy": 1.0}, dropout_samples=passes)
        pool_order(store, config, budget, budget=budget, round=1, exclude=exclude)
        order_s, order_mb = time.perf_counter() - started, peak_mb()
        started = time.perf_counter()
        settings = ExpandConfig(
            acquisition=config,
            broadening=BroadeningConfig(0, 0, 0),
            threshold=ThresholdConfig(mode="none"),
            selection=SelectionConfig(budget, near_duplicate=0.999),
        )
        gold = None
        if name == BROADENED:
            gold = gold_clips(store.dimension)
            settings = replace(
                settings,
                broadening=BroadeningConfig(SEEDS_OF_A_KIND, SEEDS_OF_A_KIND),
                threshold=ThresholdConfig(mode="fixed", value=0.4),
            )
        chosen = expand(store, gold, settings, round=1, exclude=exclude)
        expand_s = time.perf_counter() - started
        assert name != BROADENED or chosen.counts["lookalike"] > budget / 2
        assert chosen.counts["chosen"] == min(budget, rows - chosen.counts["excluded"])
    return {
        "acquisition": name,
        "N": rows,
        "budget": budget,
        "before_mb": before,
        "order_s": order_s,
        "order_mb": order_mb,
        "expand_s": expand_s,
        "peak_mb": peak_mb(),
    }


def gold_clips(dimension: int) -> Labelled:
    """Labelled clips outside the pool, a third of which the model gets confidently wrong."""
    random = np.random.default_rng(LABELLED)
    vectors = random.standard_normal((LABELLED, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    keys = [f"gold-{row}" for row in range(LABELLED)]
    label = (np.arange(LABELLED) % 3 == 0).astype(np.int8)
    probability = np.full(LABELLED, 0.02)  # so a positive is a confident error
    return Labelled(
        sample_ids(keys), keys, vectors, {"policy": label}, {"policy": probability}, {"policy": 0.5}
    )


def peak_mb() -> float:
    """Most resident memory of this process so far."""
    # Not ru_maxrss: a started process inherits that of the process it was forked from.
    status = Path("/proc/self/status").read_text().splitlines()
    high_water = next(line for line in status if line.startswith("VmHWM:"))
    return int(high_water.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    main()
