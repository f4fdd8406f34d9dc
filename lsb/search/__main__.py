"""Search a store for lookalikes of seeds: `python -m lsb.search --store S --seeds F --lt 0.8 ...`.

Writes result.parquet, hits.png and summary.json into --output, and the lists of each part into
--output/waves. Killed and started again it goes on. Several processes, on one machine or many,
share the parts with `--share 0/4`, `--share 1/4` and so on; or `torchrun --nproc-per-node 4 -m
lsb.search --collective ...` searches on connected ranks and writes no lists.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import distributed

from lsb.ids import IdArray, sample_ids
from lsb.search.array import search_array
from lsb.search.ask import Hits
from lsb.search.collective import agreed, search_collective
from lsb.search.config import BACKENDS, SearchConfig
from lsb.search.outputs import RESULT_FILE, write_outputs
from lsb.search.partial import seeds_hash
from lsb.search.result import KeepConfig, Source
from lsb.search.scan import Seeds
from lsb.search.seed_files import read_ids, read_seeds
from lsb.store import Store

TIMEOUT = timedelta(days=1)


def main(arguments: list[str] | None = None) -> int:
    """Command line entry point; returns the exit code: 0, or 2 for wrong input."""
    options = _parser().parse_args(arguments)
    try:
        if options.collective:
            with _ranks():
                return _run(options)
        return _run(options)
    except (ValueError, FileNotFoundError) as error:
        if not options.collective or os.environ.get("RANK", "0") == "0":
            print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lsb.search", description=str(__doc__).splitlines()[0]
    )
    add = parser.add_argument
    add("--store", required=True, help="folder or URL of the store that is searched")
    add(
        "--seeds",
        type=Path,
        required=True,
        help="folder of a store, or a file with ids or keys of clips (parquet, or a key a line)",
    )
    add("--seed-store", type=Path, help="store that holds the clips of --seeds; default --store")
    add("--lt", type=float, required=True, help="smallest cosine similarity of a hit")
    add("--neighbours", type=int, default=64, help="asked for at first")
    add("--max-neighbours", type=int, default=1024, help="most hits of a seed")
    add("--exclude", type=Path, help="file with ids or keys that must not be found (labelled ones)")
    add("--near-duplicate", type=float, default=0.98, help="similarity within a group of hits")
    add("--per-seed-cap", type=int, default=8, help="most hits kept of a seed")
    add("--output", type=Path, required=True, help="folder of the result")
    add("--share", type=_share, default=(0, 1), metavar="I/N", help="parts to search, from 0/N")
    add("--wait", type=float, default=0.0, help="seconds to wait for other shares of each wave")
    add("--collective", action="store_true", help="search together; started by torchrun")
    add("--backend", choices=BACKENDS, default="auto", help="changes no result")
    add("--threads", type=int, default=1, help="of the compiled kernels; 0 for all cores")
    add("--rows-per-block", type=int, default=131_072, help="bounds memory; changes no result")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="where int_mm multiplies")
    return parser


def _share(text: str) -> tuple[int, int]:
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise argparse.ArgumentTypeError(f"{text!r}: give I/N with I from 0 to N - 1")
    return int(number), int(of)


@contextmanager
def _ranks() -> Iterator[None]:
    if "WORLD_SIZE" not in os.environ:
        raise ValueError("--collective needs ranks: start with torchrun, or use --share")
    distributed.init_process_group("gloo", timeout=TIMEOUT)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _run(options: argparse.Namespace) -> int:
    started = time.monotonic()
    if options.collective and options.share != (0, 1):
        raise ValueError("--collective deals the parts to its ranks: leave --share out")

    def prepare() -> tuple[SearchConfig, KeepConfig, Store, Seeds, IdArray]:
        config = SearchConfig(
            options.neighbours,
            options.max_neighbours,
            options.rows_per_block,
            options.backend,
            options.threads,
            options.device,
        )
        keep = KeepConfig(options.near_duplicate, options.per_seed_cap)
        if not -1 <= options.lt <= 1:
            raise ValueError(f"--lt is {options.lt}: give a cosine similarity in [-1, 1]")
        store = Store.open(options.store)
        other = None if options.seed_store is None else Store.open(options.seed_store)
        seeds = read_seeds(options.seeds, other or store, "--seeds")
        exclude = sample_ids([])
        if options.exclude is not None:
            exclude = read_ids(options.exclude, "--exclude")
        return config, keep, store, seeds, exclude

    config, keep, store, seeds, exclude = agreed(prepare) if options.collective else prepare()
    hits: Hits | None
    if options.collective:
        hits = search_collective(
            seeds.ids,
            seeds.vectors,
            store,
            config,
            lookalike_threshold=options.lt,
            exclude=exclude,
        )
        if distributed.get_rank() > 0:
            return 0
    else:
        hits = search_array(
            options.output / "waves",
            seeds.ids,
            seeds.vectors,
            store,
            config,
            lookalike_threshold=options.lt,
            exclude=exclude,
            share=options.share,
            patience=options.wait,
        )
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    if hits is None:
        console.print(
            "this share is done; the result is made by whoever finds all shares done: start them "
            "again if seeds are to be asked wider",
            soft_wrap=True,
        )
        return 0
    source = Source(store.hash, seeds_hash(seeds), options.lt, config.max_neighbours)
    summary = write_outputs(
        options.output, hits, store, source, keep, config, seeds=len(seeds), excluded=len(exclude)
    )
    _print(console, summary, time.monotonic() - started, options.output / RESULT_FILE)
    return 0


def _print(console: Console, summary: dict[str, object], seconds: float, path: Path) -> None:
    table = Table.grid(padding=(0, 2))
    for name in ("seeds", "hits", "kept", "asked_again", "saturated"):
        table.add_row(name.replace("_", " "), f"{summary[name]:,}")
    table.add_row("seconds", f"{seconds:.1f}")
    console.print(table)
    console.print(str(path), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
