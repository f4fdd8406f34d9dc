"""All peers, other data, other sizes, two processes: `make bench-search-full`.

Or `python -m benchmarks.search.full`. CPU seconds of one thread, one turn, each method in a process
of its own; peers in the virtual environments of `benchmarks.search.venvs`. It takes hours and can
be cut in pieces: what was measured on this processor is kept in runs/bench/search-full.json and
not measured again. `--write-docs` puts the kept rows into docs/performance.md.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.report import machine
from benchmarks.search.data import LAW_VERSION, Law, pool_store, share_store
from benchmarks.search.found import Found, differences, merged, recall
from benchmarks.search.full_report import Rows, print_rows, sentences, write_docs
from benchmarks.search.peers import PEERS
from benchmarks.search.processes import Told, WorkerError, alone, command, together
from benchmarks.search.venvs import MissingError, python_of
from lsb.store import Store

PEER = "faiss.knn"
TWO = (PEER, "exact")
SIZES = (*TWO, "IVF1024")
MAIN = (*TWO, "IVF256, big batch", "IVF1024")
GRAPHS = ("HNSW32", "usearch", "autofaiss", "LanceDB IVF_PQ")
METHODS = (*MAIN, "ScaNN", *GRAPHS)


@dataclass(frozen=True)
class Case:
    """One pool, searched by one or more processes.

    Attributes:
        dimension: D.
        rows: N.
        clustered: see `benchmarks.search.data`.
        processes: each searches a share of the pool.
    """

    dimension: int
    rows: int
    clustered: bool = True
    processes: int = 1

    @property
    def data(self) -> str:
        """Name of the law."""
        return "clustered" if self.clustered else "unclustered"

    @property
    def name(self) -> str:
        """On the command line."""
        many = f"-{self.processes}p" if self.processes > 1 else ""
        return f"{self.data}-{self.dimension}-{self.rows}{many}"

    def same(self, row: dict[str, Any]) -> bool:
        """Whether a row is of this case."""
        mine = (self.dimension, self.rows, self.data, self.processes)
        return mine == (row["d"], row["N"], row["data"], row["processes"])


def plan(quick: bool) -> tuple[list[tuple[Case, tuple[str, ...]]], list[int]]:
    """What to measure, the most important first, and the numbers of seeds."""
    small, large, rows = (64, 96, 20_000) if quick else (256, 768, 1_000_000)
    return [
        (Case(small, rows), METHODS),
        (Case(large, rows), (*MAIN, "ScaNN")),
        (Case(small, rows, clustered=False), MAIN),
        (Case(small, rows, processes=2), TWO),
        (Case(small, 2 * rows), SIZES),
        (Case(small, rows // 2), SIZES),
        (Case(large, rows, processes=2), TWO),
        (Case(large, rows), GRAPHS),
    ], [100, 300] if quick else [1000, 10_000]


class Bench:
    """Measures one method on one case and keeps its rows."""

    def __init__(self, folder: Path, kept: Path, seeds: list[int]):
        self.folder = folder
        self.data = folder / "search-data"
        self.kept = kept
        self.seeds = seeds
        self.cpu = machine(())["cpu"]
        self.rows: Rows = json.loads(kept.read_text("utf-8")) if kept.is_file() else []

    def finished(self, case: Case, method: str) -> bool:
        """Whether it was measured on this processor; a missing package is tried again."""
        return any(self._missing(row) is False for row in self._of(case, method)) and (
            method != PEER or case.processes > 1 or self._truth(case).is_file()
        )

    def run(self, case: Case, method: str) -> None:
        """Measure, and write the rows: with an error instead of numbers where it failed."""
        error = ""
        rows: Rows = []
        try:
            with tempfile.TemporaryDirectory(dir=self.folder) as scratch:
                measured = self._measure(case, method, Path(scratch))
                if method == PEER and case.processes == 1:
                    measured[-1][1].save(self._truth(case))
                rows = [self._row(case, method, told, found) for told, found in measured]
        except (MissingError, WorkerError) as problem:
            error = str(problem)
        if error:
            rows = [self._empty(case, method, count) | {"error": error} for count in self.seeds]
        old = self._of(case, method)
        self.rows = [row for row in self.rows if row not in old] + rows
        text = json.dumps(self.rows, indent=1) + "\n"
        new = self.kept.with_suffix(".tmp")
        new.write_text(text, "utf-8")
        os.replace(new, self.kept)

    def forget(self, methods: list[str]) -> None:
        """Drop the rows of methods, so that they are measured again."""
        self.rows = [row for row in self.rows if row["method"] not in methods]

    def _measure(self, case: Case, method: str, scratch: Path) -> list[tuple[Told, Found]]:
        law = Law(case.dimension, case.clustered)
        pool = pool_store(self.data, law, case.rows, "float32")
        if case.processes > 1:
            return self._shared(case, method, pool, scratch)
        if method in PEERS:
            words = [python_of(PEERS[method][1]), "-m", "benchmarks.search.peer_worker"]
            words += ["--method", method, "--output", str(scratch)]
            words += ["--pool", str(Store.open(pool).parts[0].vectors_path)]
            vectors = scratch / "seeds.npy"
            np.save(vectors, law.seeds(max(self.seeds)))
            words += ["--seed-vectors", str(vectors), "--truth", str(self._truth(case))]
            words += ["--seeds", *map(str, self.seeds)]
        else:
            words = command(method, pool, self.seeds, scratch, clustered=case.clustered)
        return [(told, Found.load(told["found"])) for told in alone(words)]

    def _shared(
        self, case: Case, method: str, pool: Path, scratch: Path
    ) -> list[tuple[Told, Found]]:
        commands = []
        for share in range(case.processes):
            store = share_store(self.data, pool, share, case.processes)
            output = scratch / str(share)
            output.mkdir()
            words = command(method, store, self.seeds, output, clustered=case.clustered)
            commands.append([*words, "--together"])
        return [self._joined(case, told) for told in together(commands, len(self.seeds))]

    @staticmethod
    def _joined(case: Case, shares: list[Told]) -> tuple[Told, Found]:
        """CPU seconds added up, wall seconds from the first start to the last end, and merging."""
        parts = []
        for number, told in enumerate(shares):
            part = Found.load(told["found"])
            first = case.rows * number // case.processes
            parts.append(Found(np.where(part.row >= 0, part.row + first, -1), part.score))
        wall, cpu = time.perf_counter(), time.process_time()
        found = parts[0]
        for part in parts[1:]:
            found = merged(found, part)
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
        began, ended = min(t["began"] for t in shares), max(t["ended"] for t in shares)
        return shares[0] | {
            "search_s": sum(told["search_s"] for told in shares) + cpu,
            "search_wall_s": ended - began + wall,
            "peak_mb": sum(told["peak_mb"] for told in shares),
        }, found

    def _row(self, case: Case, method: str, told: Told, found: Found) -> dict[str, Any]:
        count = told["Q"]
        every = Found.load(self._truth(case))
        truth = Found(every.row[:count], every.score[:count])
        row = self._empty(case, method, count) | {
            "build_s": round(told["build_s"], 3),
            "search_s": round(told["search_s"], 3),
            "wall_s": round(told["build_wall_s"] + told["search_wall_s"], 3),
            "recall": round(recall(found, truth), 5),
            "differences": differences(found, truth),
            "peak_mb": round(told["peak_mb"], 1),
            "note": told["note"],
            "pairs_per_seed": round(float((truth.row >= 0).sum()) / count, 2),
        }
        for peer in [row] if method == PEER else self._of(case, PEER):
            if peer["Q"] == count and "error" not in peer:
                total = peer["build_s"] + peer["search_s"]
                row["ratio_total"] = round(total / (row["build_s"] + row["search_s"]), 2)
                row["ratio_wall"] = round(peer["wall_s"] / row["wall_s"], 2)
        return row

    def _empty(self, case: Case, method: str, count: int) -> dict[str, Any]:
        return {
            "method": method,
            "d": case.dimension,
            "Q": count,
            "N": case.rows,
            "dtype": "float32",
            "data": case.data,
            "processes": case.processes,
            "ratio_total": None,
            "ratio_wall": None,
            "turns": 1,
            "note": "",
            "cpu": self.cpu,
        }

    def _of(self, case: Case, method: str) -> Rows:
        return [
            row
            for row in self.rows
            if case.same(row) and row["method"] == method and row["cpu"] == self.cpu
        ]

    @staticmethod
    def _missing(row: dict[str, Any]) -> bool:
        return row.get("error", "").startswith("not installed")

    def _truth(self, case: Case) -> Path:
        pool = f"{case.data}-{case.dimension}-{case.rows}-{max(self.seeds)}-law{LAW_VERSION}"
        return self.data / f"truth-{pool}.npz"


def todo(
    bench: Bench, quick: bool, cases: list[str] | None, methods: list[str] | None
) -> Iterator[tuple[Case, str]]:
    """What is wanted and not finished; `faiss.knn` first where its answer is not there."""
    for case, its_methods in plan(quick)[0]:
        if cases is not None and case.name not in cases:
            continue
        wanted = [m for m in its_methods if methods is None or m in methods]
        alone = Case(case.dimension, case.rows, case.clustered)
        if any(not bench.finished(case, method) for method in wanted):
            for needed in dict.fromkeys((alone, case)):
                if not bench.finished(needed, PEER):
                    yield needed, PEER
            if not bench.finished(alone, PEER):
                continue  # it failed, and without it nobody knows what is true
        for method in wanted:
            if not bench.finished(case, method):
                yield case, method


def main(arguments: list[str] | None = None) -> int:
    """Run what is not there yet, print all, keep it."""
    quick_names = [case.name for case, _ in plan(True)[0]]
    names = list(dict.fromkeys(case.name for case, _ in plan(False)[0]))
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search.full", description=__doc__)
    add = parser.add_argument
    add("--quick", action="store_true", help="a smoke run: its numbers mean nothing")
    add("--runs", type=Path, default=Path("runs"))
    add("--budget-minutes", type=float, default=float("inf"), help="start nothing after these")
    add("--cases", nargs="+", choices=names + quick_names, metavar="CASE", help=", ".join(names))
    add("--methods", nargs="+", choices=METHODS, metavar="METHOD", help=", ".join(METHODS))
    add("--again", nargs="+", choices=METHODS, default=[], metavar="METHOD", help="forget the kept")
    add("--write-docs", action="store_true", help="measure nothing, put what is kept into --docs")
    add("--docs", type=Path, default=Path("docs/performance.md"))
    options = parser.parse_args(arguments)
    folder = options.runs / "bench"
    kept = folder / ("search-full-quick.json" if options.quick else "search-full.json")
    if options.write_docs:
        if options.quick and options.docs == Path("docs/performance.md"):
            parser.error("numbers of --quick mean nothing: give another document with --docs")
        if not kept.is_file():
            parser.error(f"{kept} is not there: run python -m benchmarks.search.full first")
        for line in write_docs(options.docs, kept, folder / "search.json"):
            print(line)
        return 0
    (folder / "search-data").mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, kept, plan(options.quick)[1])
    bench.forget(options.again)
    console = Console(log_path=False, width=110)
    started = time.monotonic()
    for case, method in todo(bench, options.quick, options.cases, options.methods):
        minutes = (time.monotonic() - started) / 60
        if minutes > options.budget_minutes:
            console.log(f"stopped after {minutes:.0f} minutes, next: {case.name}, {method}")
            break
        console.log(f"{case.name}, {method}")
        bench.run(case, method)
    print_rows([row for row in bench.rows if row["cpu"] == bench.cpu], console)
    for line in sentences([row for row in bench.rows if row["cpu"] == bench.cpu]):
        console.print(line, highlight=False)
    console.print(f"kept in {kept}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
