"""Wall and CPU time of paths that do the same work, run in turns: A B A B ...

In turns, because a machine gets slower and faster while it is measured: what is compared is
measured side by side, and a ratio is the median over turns of the ratio within a turn.
"""

from __future__ import annotations

import gc
import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Done:
    """Work that is done, but whose processes are still there.

    Attributes:
        items: see `Timing`.
        close: ends them: no wall time of the path, but their CPU seconds are known only then.
    """

    items: int
    close: Callable[[], None]


Work = Callable[[], int | Done]


@dataclass(frozen=True)
class Timing:
    """One turn of one path.

    Attributes:
        wall: seconds that passed.
        cpu: seconds of all cores, of this process and of children that have ended.
        items: clips, samples or epochs that were done.
    """

    wall: float
    cpu: float
    items: int


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        benchmark: name of the benchmark, its module in `benchmarks.data`.
        case: what is compared, the same for all rows that share a peer.
        what: the path, or the quantity.
        value, low, high: median, smallest and largest over repeats, in `unit`.
        unit: of these three.
        peer: the path it is compared with; "" for a row that is no comparison.
        ratio: against the peer; the table says whether it is of speeds or of sizes.
        repeats: turns.
        wall_s, cpu_s: median seconds of one turn.
    """

    benchmark: str
    case: str
    what: str
    value: float
    low: float
    high: float
    unit: str
    peer: str = ""
    ratio: float | None = None
    repeats: int = 1
    wall_s: float | None = None
    cpu_s: float | None = None


@dataclass(frozen=True)
class Table:
    """A benchmark's result.

    Attributes:
        benchmark: its name.
        title: what is measured.
        data: on what.
        peer: against what, with its version.
        ratio: what the column of ratios is.
        rows: its lines.
        notes: sentences below it: conditions, agreement of the results, what did not load.
    """

    benchmark: str
    title: str
    data: str
    peer: str
    ratio: str
    rows: Sequence[Row]
    notes: Sequence[str] = field(default=())


@contextmanager
def clocked(turns: list[Timing], items: int) -> Iterator[None]:
    """Append the time of the block. Children count where they end within it."""
    gc.collect()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    yield
    seconds = time.perf_counter() - wall
    turns.append(Timing(seconds, _cpu_seconds() - cpu, items))


def interleave(
    paths: Mapping[str, Work], repeats: int, *, warm: bool = True
) -> dict[str, list[Timing]]:
    """Time paths in turns.

    Args:
        paths: name -> work, which returns how many items it did.
        repeats: turns of each.
        warm: run every path once before, untimed: imports, page cache, compiled kernels.

    Raises:
        ValueError: two paths did different amounts of work.
    """
    if warm:
        for work in paths.values():
            _turn(work)
    turns: dict[str, list[Timing]] = {name: [] for name in paths}
    for _ in range(repeats):
        for name, work in paths.items():
            turns[name].append(_turn(work))
    done = {name: timings[0].items for name, timings in turns.items()}
    if len(set(done.values())) > 1:
        raise ValueError(f"these paths did different amounts of work: {done}")
    return turns


def _turn(work: Work) -> Timing:
    gc.collect()
    cpu, wall = _cpu_seconds(), time.perf_counter()
    made = work()
    seconds = time.perf_counter() - wall
    if isinstance(made, Done):
        made.close()
        made = made.items
    return Timing(seconds, _cpu_seconds() - cpu, made)


def rates(
    benchmark: str, case: str, turns: Mapping[str, Sequence[Timing]], peer: str, unit: str
) -> list[Row]:
    """Rows of items a second; ratios are of speeds."""
    return [
        _row(benchmark, case, name, timings, turns[peer], peer, unit, rate=True)
        for name, timings in turns.items()
    ]


def costs(
    benchmark: str,
    case: str,
    turns: Mapping[str, Sequence[Timing]],
    peer: str,
    unit: str,
    scale: float = 1.0,
) -> list[Row]:
    """Rows of seconds an item, times `scale`; ratios are of speeds all the same."""
    return [
        _row(benchmark, case, name, timings, turns[peer], peer, unit, scale=scale)
        for name, timings in turns.items()
    ]


def _row(
    benchmark: str,
    case: str,
    name: str,
    own: Sequence[Timing],
    other: Sequence[Timing],
    peer: str,
    unit: str,
    *,
    rate: bool = False,
    scale: float = 1.0,
) -> Row:
    seconds = [timing.wall / timing.items for timing in own]
    values = [1 / second if rate else scale * second for second in seconds]
    pairs = zip(own, other, strict=True)
    ratios = [(b.wall / b.items) / (a.wall / a.items) for a, b in pairs]
    return Row(
        benchmark,
        case,
        name,
        statistics.median(values),
        min(values),
        max(values),
        unit,
        peer,
        statistics.median(ratios),
        len(own),
        statistics.median(timing.wall for timing in own),
        statistics.median(timing.cpu for timing in own),
    )


def _cpu_seconds() -> float:
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in used)
