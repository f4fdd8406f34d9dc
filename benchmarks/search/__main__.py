"""Threshold search against its peers: `make bench-search`, or `python -m benchmarks.search`.

Pools of 1M vectors, seeds of the same law, LT 0.8, at most 64 neighbours; CPU seconds of one
thread, building counted; methods in turns, each in a process of its own. Writes
runs/bench/search.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.report import machine
from benchmarks.search.data import Law, pool_store
from benchmarks.search.found import RECALL, Found, differences, recall
from benchmarks.search.processes import alone, command

PACKAGES = ("faiss-cpu", "torch", "numpy", "pyarrow")
MAIN = ("faiss.knn", "exact", "IVF256, big batch", "IVF1024")
FALLBACKS = ("exact, AVX2", "exact, no compiler")
PEER = "faiss.knn"
# What the exact backend has to reach: (d, Q) -> times faster than faiss.knn, float32.
WANTED = {(256, 1000): 3.0, (256, 10_000): 6.0, (768, 1000): 3.5, (768, 10_000): 8.0}
WANTED_FALLBACK = 1.5
MOST_MB = 1200
MEMORY_GROWTH = 4
MOST_GROWTH = 1.1


@dataclass(frozen=True)
class Case:
    """One pool.

    Attributes:
        dimension: D.
        rows: N.
        dtype: of the store.
        clustered: see `benchmarks.search.data`.
        methods: to compare on it.
        turns: of each method.
    """

    dimension: int
    rows: int
    dtype: str
    clustered: bool
    methods: tuple[str, ...]
    turns: int


def run_case(case: Case, seeds: list[int], folder: Path, console: Console) -> list[dict[str, Any]]:
    """All methods on one pool, in turns; rows of search.json."""
    law = Law(case.dimension, case.clustered)
    store = pool_store(folder / "search-data", law, case.rows, case.dtype)
    measured: dict[tuple[str, int], list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for turn in range(case.turns):
            for method in case.methods:
                if method in FALLBACKS and turn:
                    continue
                console.log(f"{case.dtype} {case.rows:,} x {case.dimension}, {method}, turn {turn}")
                words = command(method, store, seeds, Path(scratch), clustered=case.clustered)
                for told in alone(words):
                    told["answer"] = Found.load(told.pop("found"))
                    measured.setdefault((method, told["Q"]), []).append(told)
    return [
        _row(case, method, count, turns, measured[PEER, count])
        for (method, count), turns in measured.items()
    ]


def _row(
    case: Case,
    method: str,
    count: int,
    turns: list[dict[str, Any]],
    peers: list[dict[str, Any]],
) -> dict[str, Any]:
    ratios = [
        (peer["build_s"] + peer["search_s"]) / (own["build_s"] + own["search_s"])
        for own, peer in zip(turns, peers, strict=False)
    ]
    walls = [
        (peer["build_wall_s"] + peer["search_wall_s"])
        / (own["build_wall_s"] + own["search_wall_s"])
        for own, peer in zip(turns, peers, strict=False)
    ]
    truth = peers[0]["answer"]

    def median(name: str) -> float:
        return round(statistics.median(turn[name] for turn in turns), 3)

    return {
        "method": method,
        "d": case.dimension,
        "Q": count,
        "N": case.rows,
        "dtype": case.dtype,
        "data": "clustered" if case.clustered else "unclustered",
        "build_s": median("build_s"),
        "search_s": median("search_s"),
        "wall_s": round(median("build_wall_s") + median("search_wall_s"), 3),
        "recall": round(min(recall(turn["answer"], truth) for turn in turns), 5),
        "differences": max(differences(turn["answer"], truth) for turn in turns),
        "peak_mb": round(max(turn["peak_mb"] for turn in turns), 1),
        "ratio_total": round(statistics.median(ratios), 2),
        "ratio_wall": round(statistics.median(walls), 2),
        "turns": len(turns),
        "note": turns[-1]["note"],
        "cpu": machine(())["cpu"],
    }


def run_memory(seeds: list[int], folder: Path, rows: int, dimension: int) -> list[str]:
    """Peak memory of the exact backend on a pool and on one four times as large."""
    law, peak = Law(dimension), []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        for count in (rows, MEMORY_GROWTH * rows):
            store = pool_store(folder / "search-data", law, count, "float32")
            told = alone(command("exact", store, seeds, Path(scratch), clustered=True))
            peak.append(max(turn["peak_mb"] for turn in told))
    text = f"float32, d={dimension}: {peak[0]:.0f} MB at {rows:,} rows, "
    text += f"{peak[1]:.0f} MB at {MEMORY_GROWTH * rows:,}, at most a tenth more"
    return [
        _verdict(peak[1] <= MOST_GROWTH * peak[0], text),
        _verdict(max(peak) < MOST_MB, f"float32, d={dimension}: below {MOST_MB} MB"),
    ]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """A table a pool."""
    pools = dict.fromkeys((row["data"], row["dtype"], row["N"], row["d"]) for row in rows)
    for data, dtype, count, dimension in pools:
        console.print(f"\n[bold]{data}, {dtype}, {count:,} x {dimension}[/bold]")
        grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        for name in ("Q", "method"):
            grid.add_column(name, justify="right" if name == "Q" else "left")
        for name in ("build s", "search s", "total s", "recall", "MB", "faiss.knn / it", "wall"):
            grid.add_column(name, justify="right")
        for row in sorted(rows, key=lambda row: row["Q"]):
            if (row["data"], row["dtype"], row["N"], row["d"]) != (data, dtype, count, dimension):
                continue
            grid.add_row(
                f"{row['Q']:,}",
                f"{row['method']}{', ' + row['note'] if row['note'] else ''}",
                f"{row['build_s']:.2f}",
                f"{row['search_s']:.2f}",
                f"{row['build_s'] + row['search_s']:.2f}",
                f"{row['recall']:.4f}" if row["recall"] < 1 else "1",
                f"{row['peak_mb']:.0f}",
                f"{row['ratio_total']:.2f}x",
                f"{row['ratio_wall']:.2f}x",
            )
        console.print(grid)


def verdicts(rows: list[dict[str, Any]]) -> list[str]:
    """What was promised, and whether this run shows it."""
    said = []
    for row in rows:
        if row["data"] != "clustered" or row["N"] != 1_000_000:
            continue
        where = f"{row['dtype']}, d={row['d']}, Q={row['Q']:,}: {row['method']}"
        ours = row["method"].startswith("exact")
        if ours and row["differences"]:
            said.append(f"NO  {where}: {row['differences']} pairs differ from brute force")
        if not ours or row["dtype"] != "float32":
            continue
        fallback = row["method"] != "exact"
        wanted = WANTED_FALLBACK if fallback else WANTED.get((row["d"], row["Q"]))
        if wanted is not None:
            said.append(
                _verdict(
                    row["ratio_total"] >= wanted,
                    f"{where}: {row['ratio_total']}x, at least {wanted}x",
                )
            )
        if fallback:
            continue
        total = row["build_s"] + row["search_s"]
        for peer in rows:
            same = all(peer[key] == row[key] for key in ("d", "Q", "N", "dtype", "data"))
            approximate = not peer["method"].startswith("exact") and peer["method"] != PEER
            if same and approximate and peer["recall"] >= RECALL:
                spent = peer["build_s"] + peer["search_s"]
                text = f"{where}: {total:.2f} s below {peer['method']} {spent:.2f} s"
                said.append(_verdict(total < spent, text))
        if row["d"] == 768:
            said.append(
                _verdict(row["peak_mb"] < MOST_MB, f"{where}: {row['peak_mb']} MB below {MOST_MB}")
            )
    return said


def _verdict(true: bool, text: str) -> str:
    return f"{'yes' if true else 'NO '} {text}"


def main() -> int:
    """Run, print, keep."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.add_argument(
        "--quick", action="store_true", help="a smoke run: its numbers mean nothing"
    )
    parser.add_argument("--turns", type=int, default=2, help="of each method")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--only", type=int, choices=(256, 768), help="one dimension")
    parser.add_argument("--float32", action="store_true", help="no float16 stores")
    parser.add_argument(
        "--memory", action="store_true", help="peak memory at 1M and 4M rows, 15 GB of disk"
    )
    options = parser.parse_args()
    folder = options.runs / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    console = Console(log_path=False, width=100)
    rows_, seeds = (20_000, [100, 300]) if options.quick else (1_000_000, [1000, 10_000])
    if options.memory:
        for line in run_memory(seeds, folder, rows_, options.only or 768):
            console.print(line, highlight=False)
        return 0
    cases = [
        Case(d, rows_, dtype, True, MAIN + (FALLBACKS if dtype == "float32" else ()), options.turns)
        for dtype in ("float32", "float16")[: 1 if options.float32 else 2]
        for d in (256, 768)
        if options.only in (None, d)
    ]
    rows: list[dict[str, Any]] = []
    for case in cases:
        rows += run_case(case, seeds, folder, console)
        kept = folder / ("search-quick.json" if options.quick else "search.json")
        kept.write_text(json.dumps(rows, indent=1) + "\n")
    show(rows, console)
    found = machine(PACKAGES)
    console.print(
        f"\n{found['cpu']}, one thread, OPENBLAS_CORETYPE=SkylakeX for faiss; {found['versions']}",
        highlight=False,
    )
    for line in verdicts(rows):
        console.print(line, highlight=False)
    console.print(f"kept in {kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
