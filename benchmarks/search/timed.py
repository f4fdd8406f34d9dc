"""One method in this process: CPU and wall seconds, and peak memory. Needs numpy only."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.search.found import Found

READY = "ready"


class PeakMemory:
    """Peak of anonymous memory (not of mapped files) within the block, in MB above its start."""

    def __enter__(self) -> PeakMemory:
        self._start = self._peak = self._now()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.mb = max(self._peak, self._now()) - self._start

    def _watch(self) -> None:
        while not self._stop.wait(0.02):
            self._peak = max(self._peak, self._now())

    @staticmethod
    def _now() -> float:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon"):
                return int(line.split()[1]) / 1000
        return 0.0


def timed(
    name: str,
    *,
    build: Callable[[], None],
    tune: Callable[[], None],
    search: Callable[[np.ndarray], Found],
    seeds_QD: np.ndarray,
    counts: Sequence[int],
    output: Path,
    together: bool = False,
) -> None:
    """Build once, search for the first seeds of each number; print one line of JSON a number.

    Args:
        name: of the method.
        build: counted as building.
        tune: not counted.
        search: counted as searching.
        seeds_QD: at least `max(counts)` of them.
        counts: numbers of seeds.
        output: folder for what was found.
        together: before each search say `READY` and wait for a line on standard input, so that
            several processes start at one time.
    """
    with PeakMemory() as memory:
        wall, cpu = time.perf_counter(), time.process_time()
        build()
        built = (time.process_time() - cpu, time.perf_counter() - wall)
    built_mb = memory.mb
    tune()
    for count in counts:
        some = np.ascontiguousarray(seeds_QD[:count])
        if together:
            print(READY, flush=True)
            input()
        with PeakMemory() as memory:
            wall, cpu = time.perf_counter(), time.process_time()
            found = search(some)
            ended = time.perf_counter()
            took = time.process_time() - cpu
        path = output / f"found-{name.replace(' ', '_')}-{count}.npz"
        found.save(path)
        told = {
            "Q": count,
            "build_s": built[0],
            "build_wall_s": built[1],
            "search_s": took,
            "search_wall_s": ended - wall,
            "began": wall,  # of a clock that all processes of a machine share
            "ended": ended,
            "peak_mb": built_mb + memory.mb,
            "note": found.note,
            "found": str(path),
        }
        print(json.dumps(told), flush=True)
