"""Tables, a plot and sentences from rows of `benchmarks.search` and `benchmarks.search.full`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.report import number, write_between
from benchmarks.search.found import LT, RECALL, K

Rows = list[dict[str, Any]]
OURS = "exact"
COLUMNS = (
    "build s",
    "search s",
    "total s",
    "total / ours",
    "search / ours",
    "wall s",
    "recall",
    "MB",
)
PLOT = "search_benchmark.png"
ENOUGH = RECALL - 0.005
"""Recall that counts as reached: it is tuned to `RECALL` on some of the seeds."""
STYLES = {
    OURS: ("black", "-", "o", 2.8),
    "faiss.knn": ("black", "--", "s", 1.6),
    "IVF256, big batch": ("tab:blue", "-.", "^", 1.2),
    "IVF1024": ("tab:blue", ":", "v", 1.4),
    "ScaNN": ("tab:red", "-", "D", 1.2),
    "HNSW32": ("tab:green", "--", "x", 1.2),
    "usearch": ("tab:olive", "-.", "+", 1.2),
    "autofaiss": ("tab:purple", ":", "*", 1.4),
    "LanceDB IVF_PQ": ("tab:gray", "-", "P", 1.2),
}


def total(row: dict[str, Any]) -> float:
    """CPU seconds with building."""
    return float(row["build_s"] + row["search_s"])


def pools(rows: Rows) -> Iterator[tuple[str, Rows]]:
    """A title and the rows of each pool and number of processes, by number of seeds."""

    def pool(row: dict[str, Any]) -> tuple[Any, ...]:
        return row["data"], row["dtype"], row["N"], row["d"], row.get("processes", 1)

    for key in dict.fromkeys(map(pool, rows)):
        data, dtype, count, dimension, processes = key
        title = f"{data}, {dtype}, {count:,} x {dimension}"
        if processes > 1:
            title += f", {processes} processes"
        own = sorted((row for row in rows if pool(row) == key), key=lambda row: row["Q"])
        per_seed = next((row["pairs_per_seed"] for row in own if "pairs_per_seed" in row), None)
        if per_seed is not None:
            title += f", {number(per_seed)} neighbours a seed"
        yield title, own


def cells(row: dict[str, Any], among: Rows) -> list[str]:
    """One line under Q, method and `COLUMNS`."""
    first = [f"{row['Q']:,}", row["method"]]
    if row.get("error"):
        return [*first[:1], f"{row['method']}: {row['error']}", *[""] * len(COLUMNS)]
    if row["note"]:
        first[1] += f", {row['note']}"
    ours = _ours(row, among)
    return [
        *first,
        number(row["build_s"]),
        number(row["search_s"]),
        number(total(row)),
        "" if ours is None else f"{number(total(row) / total(ours))}x",
        "" if ours is None else f"{number(row['search_s'] / ours['search_s'])}x",
        number(row["wall_s"]),
        f"{row['recall']:.4f}" if row["recall"] < 1 else "1",
        f"{row['peak_mb']:,.0f}",
    ]


def print_rows(rows: Rows, console: Console) -> None:
    """A table a pool."""
    for title, own in pools(rows):
        console.print(f"\n[bold]{escape(title)}[/bold]")
        grid = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False)
        grid.add_column("Q", justify="right")
        grid.add_column("method")
        for name in COLUMNS:
            grid.add_column(name, justify="right")
        for row in own:
            grid.add_row(*map(escape, cells(row, own)))
        console.print(grid)


def markdown(rows: Rows) -> str:
    """A table a pool, below the processor they were measured on."""
    lines = [f"Processor: {rows[0].get('cpu', 'not recorded')}.", ""] if rows else []
    for title, own in pools(rows):
        lines += [f"*{title}*", "", f"| Q | method | {' | '.join(COLUMNS)} |"]
        lines += [f"|---:|---|{'---:|' * len(COLUMNS)}"]
        lines += [f"| {' | '.join(cells(row, own))} |" for row in own]
        lines.append("")
    return "\n".join(lines)


def sentences(rows: Rows) -> list[str]:
    """Where a peer is better, for every pool that one process searched among peers with an index.

    A peer whose recall is below `ENOUGH` is named, and beats nobody.
    """
    said = []
    for title, own in pools(rows):
        for ours in own:
            if ours["method"] != OURS or ours.get("error") or ours.get("processes", 1) > 1:
                continue
            peers = [
                row
                for row in own
                if row["Q"] == ours["Q"]
                and not row["method"].startswith(OURS)
                and not row.get("error")
            ]
            if peers:
                where = title.split(", float32")[0] + title.split("float32")[-1]
                said.append(f"{where}, Q = {ours['Q']:,}: {_compared(ours, peers)}")
    return said


def _compared(ours: dict[str, Any], peers: Rows) -> str:
    reach = [row for row in peers if row["recall"] >= ENOUGH]
    missed = [f"{row['method']} ({row['recall']:.3f})" for row in peers if row not in reach]
    ahead = sorted((row for row in reach if total(row) < total(ours)), key=total)
    if ahead:
        text = "with building counted "
        text += ", ".join(f"{r['method']} ({number(total(r))} s)" for r in ahead)
        text += f" needs less than exact ({number(total(ours))} s); "
    elif reach:
        nearest = min(reach, key=total)
        text = (
            f"with building counted exact ({number(total(ours))} s) needs less than all, next is "
        )
        text += f"{nearest['method']} ({number(total(nearest))} s); "
    else:
        text = f"no peer reaches recall {ENOUGH}; "
    faster = sorted(
        (row for row in reach if row["build_s"] and row["search_s"] < total(ours)),
        key=lambda row: row["search_s"],
    )
    if faster:
        text += "without building faster than exact: "
        text += ", ".join(
            f"{row['method']} ({number(row['search_s'])} s, {_break_even(ours, row)})"
            for row in faster
        )
    else:
        text += "none is faster without building either"
    if missed and reach:
        text += f"; below recall {ENOUGH}: {', '.join(missed)}"
    return f"{text}."


def _break_even(ours: dict[str, Any], peer: dict[str, Any]) -> str:
    """After how many such searches of one unchanged pool an index has paid for itself."""
    searches = peer["build_s"] / (total(ours) - peer["search_s"])
    return f"pays from search {int(searches) + 1}"


def _ours(row: dict[str, Any], among: Rows) -> dict[str, Any] | None:
    for other in among:
        if other["method"] == OURS and other["Q"] == row["Q"] and not other.get("error"):
            return other
    return None


def plot(rows: Rows, path: Path) -> None:
    """CPU seconds, building counted, against Q: a panel a dimension, a line a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = [row for row in rows if row["data"] == "clustered" and not row.get("error")]
    shown = [row for row in shown if row.get("processes", 1) == 1]
    sizes = Counter(row["N"] for row in shown)
    most = max(sizes, key=lambda size: sizes[size])
    shown = [row for row in shown if row["N"] == most]
    dimensions = sorted({row["d"] for row in shown})
    figure, panels = pyplot.subplots(
        1, len(dimensions), figsize=(5.4 * len(dimensions), 4.6), sharey=True, squeeze=False
    )
    for panel, dimension in zip(panels[0], dimensions, strict=True):
        ends = []
        for method, (colour, line, marker, width) in STYLES.items():
            own = [row for row in shown if row["d"] == dimension and row["method"] == method]
            own.sort(key=lambda row: row["Q"])
            if not own:
                continue
            panel.plot(
                [row["Q"] for row in own],
                [total(row) for row in own],
                color=colour,
                linestyle=line,
                marker=marker,
                linewidth=width,
            )
            low = min(row["recall"] for row in own)
            missed = f" (recall {low:.3f})" if low < ENOUGH else ""
            ends.append((total(own[-1]), f"{method}{missed}", method == OURS))
        counts = sorted({row["Q"] for row in shown})
        panel.set(xscale="log", yscale="log", xlabel="seeds Q")
        panel.set_xlim(counts[0] / 1.15, counts[-1] * (counts[-1] / counts[0]) ** 0.75)
        panel.set_xticks(counts, [f"{count:,}" for count in counts])
        panel.minorticks_off()
        panel.set_title(f"{most:,} x {dimension}")
        panel.grid(axis="y", color="0.9")
        panel.spines[["top", "right"]].set_visible(False)
        _label(panel, counts[-1], ends, [total(row) for row in shown])
    panels[0][0].set_ylabel("CPU seconds, building counted")
    figure.suptitle(f"All neighbours above {LT}, at most {K}: cost of one search", fontsize=11)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _label(
    panel: Any, right: int, ends: Sequence[tuple[float, str, bool]], values: Sequence[float]
) -> None:
    """Names at the ends of the lines, pushed apart where they would overlap."""
    step = (max(values) / min(values)) ** 0.052
    height = 0.0
    for value, name, ours in sorted(ends):
        height = max(value, height * step)
        panel.annotate(
            name,
            (right, value),
            (right * 1.12, height),
            fontsize=8,
            va="center",
            weight="bold" if ours else "normal",
            arrowprops={"arrowstyle": "-", "color": "0.7", "linewidth": 0.5},
        )


def write_docs(document: Path, full: Path, small: Path) -> list[str]:
    """Put kept rows, a plot and sentences into a document.

    Args:
        document: with marks; the plot goes beside it.
        full: rows of `benchmarks.search.full`; those of the processor with the most are taken.
        small: rows of `benchmarks.search`, if there.

    Returns:
        What was done.
    """
    rows: Rows = json.loads(full.read_text("utf-8"))
    cpus = Counter(row["cpu"] for row in rows)
    cpu = max(cpus, key=lambda name: cpus[name])
    rows = [row for row in rows if row["cpu"] == cpu]
    plot(rows, document.parent / PLOT)
    text = [
        f"![CPU seconds against the number of seeds]({PLOT})",
        "",
        *(f"- {line}" for line in sentences(rows)),
        "",
        markdown(rows),
    ]
    write_between(document, "search-full", "\n".join(text))
    done = [f"{document}: {len(rows)} rows of {full}, plot in {document.parent / PLOT}"]
    if len(cpus) > 1:
        done.append(f"{sum(cpus.values()) - len(rows)} rows of other processors are left out")
    if small.is_file():
        kept: Rows = json.loads(small.read_text("utf-8"))
        write_between(document, "search", markdown(kept))
        done.append(f"{document}: {len(kept)} rows of {small}")
    else:
        done.append(f"{small} is not there: make bench-search makes it")
    return done
