"""`python -m benchmarks.data [names] [--quick] [--write-docs]`: run, print, keep as JSON."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from rich.console import Console

from benchmarks.data.bench import Bench
from benchmarks.report import COLUMNS, load, machine, print_table, save, write_document

# decode is last: it imports decord, which is known to disturb processes that fork (docs/decode.md).
NAMES = ("loader", "workers", "epochs", "embed", "memory", "decode")
PACKAGES = ("torch", "torchcodec", "av", "webdataset", "lightning", "numpy", "pyarrow")
DOCUMENT = Path("docs/performance.md")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmarks named, or all; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.data", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"any of {', '.join(NAMES)}; none runs all")
    parser.add_argument("--quick", action="store_true", help="a smoke run on a few generated clips")
    parser.add_argument("--repeats", type=int, help="turns of each path, in place of the usual")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of stages")
    parser.add_argument("--sources", type=Path, default=Path("../shared/data/sources"))
    parser.add_argument(
        "--write-docs", action="store_true", help=f"only put kept tables into {DOCUMENT}"
    )
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="where --write-docs writes")
    options = parser.parse_args(arguments)
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}: choose from {', '.join(NAMES)}")
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}: give at least 1")
    folder = options.runs / "bench"
    kept = folder / ("data-quick.json" if options.quick else "data.json")
    if options.write_docs:
        report = load(kept)
        if report is None:
            parser.error(f"there is no {kept}: run python -m benchmarks.data first")
        if not options.document.is_file():
            parser.error(f"there is no {options.document}: run this in the checkout")
        write_document(options.document, "data", report)
        print(f"tables of {kept} written into {options.document}")
        return 0
    # Numbers would be of downloads; and tokenizers would warn about every fork.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    chosen = [name for name in NAMES if not options.names or name in options.names]
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="work-", dir=folder))
    try:
        bench = Bench(options.runs, scratch, options.sources, options.quick, options.repeats)
        _run(bench, chosen, kept)
    finally:
        shutil.rmtree(scratch)
    return 0


def _run(bench: Bench, names: Sequence[str], kept: Path) -> None:
    console = Console(width=COLUMNS)
    found = machine(PACKAGES)
    console.print(
        f"{found['cores']} cores ({found['cpu']}), {found['memory_gb']} GB, "
        f"Python {found['python']}"
    )
    if bench.quick:
        console.print("[bold]a smoke run: its numbers mean nothing[/bold]")
    console.print(f"{bench.described}: {bench.data.path}", soft_wrap=True, highlight=False)
    for name in names:
        started = time.monotonic()
        tables = import_module(f"benchmarks.data.{name}").run(bench)
        save(kept, found, tables)
        for table in tables:
            print_table(table, console)
        console.print(f"{name}: {time.monotonic() - started:.0f} s", highlight=False)
    console.print(f"\nkept in {kept}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    sys.exit(main())
