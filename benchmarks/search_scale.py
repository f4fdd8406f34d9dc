"""A search at scale against its plan: `python -m benchmarks.search_scale [--rows 20000000]`.

Makes a store of 1M-row parts of the clustered law (benchmarks/search/data.py), plans its search as
`lsb.plan` does, runs it in one thread of a process of its own, prints predicted / measured for time
and memory, and compares some seeds with brute force. Keeps runs/bench/search_scale.json and deletes
the store.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.report import machine
from benchmarks.search.data import Law
from lsb.artifact import Counts, Part, run_stage
from lsb.ids import from_arrow, sample_ids
from lsb.search import _faiss, selectivity
from lsb.search.ask import seeds_of
from lsb.search.calibration import costs_here
from lsb.search.config import SearchConfig
from lsb.search.exact import search
from lsb.search.kernel import library
from lsb.search.machines import Cluster, Job
from lsb.search.planner import plan
from lsb.search.projection import fit
from lsb.search.selectivity import GRID, Selectivity, of_store, sampled
from lsb.search.ways import BASE_BYTES
from lsb.store import Store, part_files, write_part

PACKAGES = ("faiss-cpu", "torch", "numpy", "pyarrow")
PART_ROWS = 1_000_000
DRAWN = 250_000
CHECKED_SEEDS, CHECKED_PARTS = 200, 3
BOUNDS = (0.67, 1.5)
FREE_GB = 20
ROUNDING = 2e-6


def write_pool_part(folder: Path, number: int, rows: int, dimension: int, dtype: str) -> Counts:
    """One part of the pool: vectors of the law, keys that count."""
    torch.set_num_threads(1)
    law, first = Law(dimension), number * PART_ROWS
    pool = np.empty((rows, dimension), dtype=dtype)
    for start in range(0, rows, DRAWN):
        end = min(start + DRAWN, rows)
        pool[start:end] = law.draw(end - start, (first + start) // DRAWN)
    table = pa.table(
        {
            "key": pa.array([f"clip {first + row}" for row in range(rows)], pa.string()),
            "shard": pa.array([f"{number}.tar"] * rows, pa.string()),
            "offset": np.arange(rows, dtype=np.int64),
            "size": np.ones(rows, dtype=np.int64),
        }
    )
    return write_part(folder, f"part-{number:05d}", pool, table, kind="pooled")


def make_store(folder: Path, options: argparse.Namespace) -> Path:
    """The pool, part by part; what a killed run has made is kept."""
    parts = []
    for number, start in enumerate(range(0, options.rows, PART_ROWS)):
        name, rows = f"part-{number:05d}", min(PART_ROWS, options.rows - start)
        make = partial(
            write_pool_part,
            number=number,
            rows=rows,
            dimension=options.dimension,
            dtype=options.dtype,
        )
        parts.append(Part(name, part_files(name), make))
    config = {key: getattr(options, key) for key in ("rows", "dimension", "dtype")}
    stage = run_stage(
        folder, "pool", config=config, inputs={}, parts=parts, processes=options.processes
    )
    return stage.path


class Memory:
    """Peak of this process's anonymous memory, in bytes; mapped files are not part of it."""

    def __enter__(self) -> Memory:
        self.start = self.peak = _anonymous()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.peak = max(self.peak, _anonymous())

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self.peak = max(self.peak, _anonymous())


def _anonymous() -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024.0
    return 0.0


def run_search(options: argparse.Namespace) -> int:
    """In a process of its own: search, and keep what was found and what it took."""
    torch.set_num_threads(1)
    _faiss.load().omp_set_num_threads(1)
    store = Store.open(options.search)
    seed_ids, seeds_QD = _seeds(store.dimension, options.seeds)
    library.compiled()
    fit(seeds_QD[:512], seeds_QD[:64], wanted=options.lt)  # starts torch
    config = SearchConfig(
        options.neighbours, options.max_neighbours, options.rows_per_block, options.backend
    )
    with Memory() as memory:
        cpu, wall = time.process_time(), time.perf_counter()
        hits = search(
            seed_ids,
            seeds_QD,
            store,
            config,
            lookalike_threshold=options.lt,
            exclude=sample_ids([]),
        )
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    order = np.argsort(seed_ids)
    seed = order[np.searchsorted(seed_ids[order], from_arrow(hits.table["seed_id"]))]
    similarity = hits.table["similarity"].to_numpy()
    np.savez(options.found, seed=seed, row=hits.row, similarity=similarity)
    told = {
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "memory": memory.peak,
        "memory_before": memory.start,
        "hits": hits.table.num_rows,
        "asked_again": hits.asked_again,
    }
    print(json.dumps(told))
    return 0


def _seeds(dimension: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    ids = sample_ids([f"seed {number}" for number in range(count)])
    return ids, np.ascontiguousarray(Law(dimension).seeds(count))


def differences(
    found: Path, store: Store, seeds_QD: np.ndarray, lt: float, most: int
) -> tuple[int, int]:
    """(pairs that differ from `faiss.knn`, pairs compared), for some seeds in some parts.

    A full list holds what is better than its last entry: pairs within `ROUNDING` of that, or of LT,
    may fall on either side in float32 and are not counted.
    """
    faiss, random = _faiss.load(), np.random.default_rng(0)
    with np.load(found) as arrays:
        seed, row, similarity = (arrays[name] for name in ("seed", "row", "similarity"))
    some = np.sort(random.choice(len(seeds_QD), min(CHECKED_SEEDS, len(seeds_QD)), replace=False))
    chosen = random.choice(len(store.parts), min(CHECKED_PARTS, len(store.parts)), replace=False)
    starts = np.cumsum([0, *(part.rows for part in store.parts)])
    different = compared = 0
    for number in chosen:
        part = store.parts[number]
        width = min(part.rows, 2 * most)
        best = np.full((len(some), 0), 0.0, np.float32), np.full((len(some), 0), 0)
        for start in range(0, part.rows, 131_072):
            block = np.asarray(part.vectors()[start : start + 131_072], np.float32)
            score, place = faiss.knn(
                seeds_QD[some], block, min(width, len(block)), metric=faiss.METRIC_INNER_PRODUCT
            )
            score = np.concatenate([best[0], score], axis=1)
            place = np.concatenate([best[1], place + start], axis=1)
            order = np.argsort(-score, axis=1)[:, :width]
            best = np.take_along_axis(score, order, 1), np.take_along_axis(place, order, 1)
        inside = (row >= starts[number]) & (row < starts[number + 1])
        for name, scores, places in zip(some, *best, strict=True):
            mine = seed == name
            edge = lt
            if mine.sum() == most:
                edge = max(lt, float(similarity[mine].min()))
            mine &= inside
            ours, theirs = row[mine] - starts[number], places[scores >= edge - ROUNDING]
            missed = ~np.isin(places, ours) & (scores > edge + ROUNDING)
            extra = ~np.isin(ours, theirs) & (similarity[mine] > edge + ROUNDING)
            different += int(missed.sum() + extra.sum())
            compared += len(theirs)
    return different, compared


def reading_speed(store: Store) -> float:
    """Bytes a second of the first part, read from storage: it is dropped from memory before."""
    path = store.parts[0].vectors_path
    for part in store.parts:
        with part.vectors_path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    size, started = 0, time.perf_counter()
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            size += len(piece)
            if size >= 512e6:
                break
    return size / (time.perf_counter() - started)


def main(arguments: list[str] | None = None) -> int:
    """Make, plan, search, compare; returns 1 where the plan was off or a pair differs."""
    options = _parser().parse_args(arguments)
    if options.law:
        return print_law()
    if options.search is not None:
        return run_search(options)
    console = Console(width=100, highlight=False)
    folder = options.runs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    size = options.rows * options.dimension * np.dtype(options.dtype).itemsize / 1e9
    free = shutil.disk_usage(folder).free / 1e9
    if free < size * 1.1 + FREE_GB:
        console.print(f"{size:.0f} GB for the pool and {FREE_GB} GB to spare, {free:.0f} GB free")
        return 2
    data = folder / "search_scale"
    try:
        return _compare(console, options, data, folder / "search_scale.json")
    finally:
        if not options.keep:
            shutil.rmtree(data, ignore_errors=True)


def _compare(console: Console, options: argparse.Namespace, data: Path, kept: Path) -> int:
    started = time.perf_counter()
    path = make_store(data, options)
    console.print(f"{options.rows:,} rows made in {time.perf_counter() - started:.0f} s")
    store = Store.open(path)
    seed_ids, seeds_QD = _seeds(options.dimension, options.seeds)
    costs = costs_here(recalibrate=options.recalibrate)
    speed = reading_speed(store)
    job = Job(
        rows=len(store),
        dimension=store.dimension,
        seeds=options.seeds,
        lt=options.lt,
        most=options.max_neighbours,
        dtype=options.dtype,
        rows_per_part=min(PART_ROWS, options.rows),
    )
    cluster = Cluster(memory_gb=12, read_gb_s=speed / 1e9)
    kernel = library.compiled()
    backend = "int_mm" if kernel is None else kernel.name
    looked = of_store(store, seeds_of(seed_ids, seeds_QD), options.lt, backend)
    planned, guessed = (
        plan(job, cluster, costs, selectivity=each, neighbours=options.neighbours)
        for each in (looked, None)
    )
    way = next(way for way in planned.ways if way.exact and "codes" not in way.name)
    blind = next(each for each in guessed.ways if each.name == way.name)
    reading_speed(store)  # drops what planning has read
    command = [sys.executable, "-m", "benchmarks.search_scale", "--search", str(path)]
    command += ["--seeds", str(options.seeds), "--lt", str(options.lt)]
    command += ["--neighbours", str(way.neighbours), "--max-neighbours", str(job.most)]
    command += ["--rows-per-block", str(way.rows_per_block), "--backend", way.backend]
    found = data / "found.npz"
    command += ["--found", str(found)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    console.print(f"searching: {way.name}, first ask {way.neighbours}")
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(done.stdout.splitlines()[-1])
    different, compared = differences(found, store, seeds_QD, options.lt, job.most)
    quantities = {
        "CPU s": (way.cpu_seconds, measured["cpu_seconds"], blind.cpu_seconds),
        "wall s": (way.search_seconds, measured["wall_seconds"], blind.search_seconds),
        "memory MB": (way.memory / 1e6, measured["memory"] / 1e6, blind.memory / 1e6),
        "of it, the search's": (
            (way.memory - BASE_BYTES) / 1e6,
            (measured["memory"] - measured["memory_before"]) / 1e6,
            (blind.memory - BASE_BYTES) / 1e6,
        ),
        "hits": (way.hits, measured["hits"], blind.hits),
    }
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for name in ("", "predicted", "measured", "ratio", "without a sample", "ratio"):
        grid.add_column(name, justify="right" if name else "left")
    for name, (predicted, took, unseen) in quantities.items():
        grid.add_row(
            name,
            f"{predicted:,.1f}",
            f"{took:,.1f}",
            f"{predicted / took:.2f}",
            f"{unseen:,.1f}",
            f"{unseen / took:.2f}",
        )
    console.print(grid)
    said = {
        f"{name}: predicted / measured {predicted / took:.2f}, from {BOUNDS[0]} to {BOUNDS[1]}": (
            BOUNDS[0] <= predicted / took <= BOUNDS[1]
        )
        for name, (predicted, took, _) in list(quantities.items())[:3]
    }
    said[f"brute force: {different} of {compared:,} pairs differ"] = different == 0
    for text, true in said.items():
        console.print(f"{'yes' if true else 'NO '} {text}")
    report = {
        "machine": machine(PACKAGES),
        "rows": options.rows,
        "dimension": options.dimension,
        "dtype": options.dtype,
        "seeds": options.seeds,
        "lt": options.lt,
        "way": way.name,
        "neighbours": way.neighbours,
        "read_gb_s": speed / 1e9,
        "terms": way.terms,
        "quantities": {
            name: {"predicted": a, "measured": b, "without_sample": c}
            for name, (a, b, c) in quantities.items()
        },
        "asked_again": measured["asked_again"],
        "different": different,
        "compared": compared,
    }
    kept.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    console.print(f"kept in {kept}")
    return 0 if all(said.values()) else 1


def print_law() -> int:
    """What `lsb.search.selectivity.LAW` holds."""
    selectivity.SAMPLE_SEEDS = 1024

    def at(of_ST: np.ndarray, threshold: float) -> np.ndarray:
        return np.exp([np.interp(threshold, GRID, row) for row in of_ST])

    for dimension in (256, 768):
        law = Law(dimension)
        rows, seeds = law.draw(65_536, 0), law.seeds(1024)
        projection = fit(rows[:4096], seeds, wanted=0.8, seeds=10_000)
        found: Selectivity = sampled(projection, rows, seeds, "")
        print(f"{dimension}: prefix {projection.prefix}")
        for group in np.array_split(np.argsort(at(found.scores, 0.8)), 8):
            line = []
            for of in (found.bounds, found.codes, found.scores):
                low, high = (float(at(of[group], lt).mean()) for lt in (0.8, 0.9))
                line += [f"{low:.2e}", f"{np.log(low / high) / 0.1:.1f}"]
            print(f"        ({', '.join(line)}),")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search_scale", description=__doc__)
    add = parser.add_argument
    add("--rows", type=int, default=20_000_000)
    add("--dimension", type=int, default=256)
    add("--dtype", choices=("float32", "float16"), default="float16")
    add("--seeds", type=int, default=10_000)
    add("--lt", type=float, default=0.8)
    add("--neighbours", type=int, help="of the first ask; default: as planned")
    add("--max-neighbours", type=int, default=1024)
    add("--processes", type=int, default=2, help="that make the pool")
    add("--runs", type=Path, default=Path("runs"))
    add("--keep", action="store_true", help="do not delete the pool")
    add("--recalibrate", action="store_true", help="measure the costs of steps again")
    add("--law", action="store_true", help="print the constants of lsb.search.selectivity, no more")
    add("--search", type=Path, help=argparse.SUPPRESS)
    add("--found", type=Path, help=argparse.SUPPRESS)
    add("--rows-per-block", type=int, default=131_072, help=argparse.SUPPRESS)
    add("--backend", default="auto", help=argparse.SUPPRESS)
    return parser


if __name__ == "__main__":
    sys.exit(main())
