"""Tables of benchmarks: printed in 80 columns, kept as JSON, and put into a document."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from benchmarks.measure import Row, Table

COLUMNS = 80
MARKS = ("<!-- benchmarks.{name}: begin -->", "<!-- benchmarks.{name}: end -->")
Report = dict[str, Any]


def package_version(name: str) -> str:
    """Version of an installed package, "absent" where there is none."""
    try:
        return version(name)
    except PackageNotFoundError:
        return "absent"


def machine(packages: Sequence[str]) -> dict[str, Any]:
    """Cores, processor, memory and versions: what the numbers depend on."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": models[0] if models else platform.machine(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "python": platform.python_version(),
        "versions": {name: package_version(name) for name in packages},
    }


def print_table(table: Table, console: Console) -> None:
    """Title, data, peer, rows by case, notes."""
    console.print(f"\n[bold]{table.benchmark}: {escape(table.title)}[/bold]")
    console.print(escape(f"data: {table.data}"), highlight=False)
    console.print(escape(f"peer: {table.peer}"), highlight=False)
    console.print(escape(f"ratio: {table.ratio}"), highlight=False)
    grid = RichTable(box=None, padding=(0, 1, 0, 0), pad_edge=False, width=COLUMNS)
    grid.add_column("", ratio=1, overflow="fold")
    for name in ("median", "min-max", "wall s", "CPU s", "ratio"):
        grid.add_column(name, justify="right", no_wrap=True)
    case = None
    for row in table.rows:
        if row.case != case:
            case = row.case
            if case:
                grid.add_row("")
                grid.add_row(f"[italic]{escape(case)}[/italic]")
        grid.add_row(escape(row.what), *_cells(row))
    console.print(grid)
    for note in table.notes:
        console.print(escape(note), highlight=False)


def load(path: Path) -> Report | None:
    """A report that was kept, or None."""
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


def save(path: Path, found: Mapping[str, Any], tables: Sequence[Table]) -> Report:
    """Write tables beside those of other benchmarks that the same machine has measured.

    Args:
        path: of the JSON file.
        found: what `machine` returned.
        tables: of this run; they replace the older ones of their benchmarks.

    Returns:
        {"machine", "tables": what each is about, "rows": all of them}.
    """
    old = load(path)
    new = {table.benchmark for table in tables}
    kept = old if old is not None and old["machine"] == found else {"tables": [], "rows": []}
    about = [
        {key: value for key, value in asdict(table).items() if key != "rows"} for table in tables
    ]
    rows = [asdict(row) for table in tables for row in table.rows]
    report = {
        "machine": dict(found),
        "tables": [t for t in kept["tables"] if t["benchmark"] not in new] + about,
        "rows": [row for row in kept["rows"] if row["benchmark"] not in new] + rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return report


def write_document(path: Path, name: str, report: Report) -> None:
    """Put the tables of a report between the two marks of a document.

    Args:
        path: of the document.
        name: in the marks.
        report: what `save` returned.

    Raises:
        ValueError: the document lacks a mark.
    """
    write_between(path, name, markdown(report))


def write_between(path: Path, name: str, content: str) -> None:
    """Put Markdown between the two marks of a document.

    Raises:
        ValueError: the document lacks a mark.
    """
    text = path.read_text("utf-8")
    begin, end = (mark.format(name=name) for mark in MARKS)
    if text.count(begin) != 1 or text.count(end) != 1:
        raise ValueError(f"{path} must hold {begin} and {end} once each: put them back")
    head, rest = text.split(begin)
    tail = rest.split(end)[1]
    path.write_text(f"{head}{begin}\n\n{content}\n{end}{tail}", "utf-8")


def markdown(report: Report) -> str:
    """All tables of a report, a section each."""
    found = report["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in found["versions"].items())
    lines = [
        f"Machine: {found['cores']} cores ({found['cpu']}), {found['memory_gb']} GB, Python "
        f"{found['python']}, {versions}.",
        "",
    ]
    for table in report["tables"]:
        rows = [Row(**row) for row in report["rows"] if row["benchmark"] == table["benchmark"]]
        lines += [
            f"### {table['benchmark']}: {table['title']}",
            "",
            *(f"- {key}: {table[key]}" for key in ("data", "peer", "ratio")),
            "",
            "| | median | min-max | wall s | CPU s | ratio | n |",
            "|---|---:|---:|---:|---:|---:|---:|",
        ]
        case = None
        for row in rows:
            if row.case != case:
                case = row.case
                if case:
                    lines.append(f"| *{case}* | | | | | | |")
            lines.append(f"| {row.what} | {' | '.join(_cells(row))} | {row.repeats} |")
        lines += ["", *(f"{note}  " for note in table["notes"]), ""]
    return "\n".join(lines)


def number(value: float) -> str:
    """Three significant digits, without exponents for what people read."""
    if value == 0 or 1e-3 <= abs(value) < 1e-2:
        return f"{value:.2g}"
    if abs(value) < 1e-3:
        return f"{value:.1e}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _cells(row: Row) -> list[str]:
    spread = f"{number(row.low)}-{number(row.high)}" if row.repeats > 1 else ""
    seconds = ["" if value is None else number(value) for value in (row.wall_s, row.cpu_s)]
    ratio = "" if row.ratio is None else f"{number(row.ratio)}x"
    return [f"{number(row.value)} {row.unit}", spread, *seconds, ratio]
