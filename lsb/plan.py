"""Plan a search before it runs: `python -m lsb.plan --rows 1e9 --dimension 768 --seeds 100000 ...`.

Prints which way to search is done first on the given nodes, its seconds, bytes and memory, the same
for other sizes of the pool, the reasons, and what all that rests on. Costs of steps are measured on
this machine once, in about ten seconds. With --store and --seeds-from the plan is for that store,
and how many pairs pass is looked up in a sample instead of assumed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lsb.search.calibration import costs_here, costs_path
from lsb.search.costs import Costs
from lsb.search.kernel import library
from lsb.search.machines import GPUS, Cluster, Job
from lsb.search.planner import Plan, plan
from lsb.search.seed_files import read_seeds
from lsb.search.selectivity import Selectivity, of_store
from lsb.store import Store

COLUMNS = 100
SIZES = (1e6, 1e7, 1e8, 1e9, 1e10)


def main(arguments: list[str] | None = None) -> int:
    """Command line entry point; returns the exit code: 0, or 2 for wrong input."""
    options = _parser().parse_args(arguments)
    console = Console(width=COLUMNS, highlight=False, markup=False, emoji=False)
    try:
        job, selectivity = _job(options)
        cluster = Cluster(
            options.nodes,
            options.cores,
            options.gpus,
            options.gpu,
            options.memory_gb,
            options.read_gb_s,
        )
        costs = costs_here(recalibrate=options.recalibrate)

        def planned(rows: float) -> Plan:
            return plan(
                replace(job, rows=rows),
                cluster,
                costs,
                selectivity=selectivity,
                neighbours=options.neighbours,
                embedded=not options.not_embedded,
            )

        _show(console, planned(job.rows))
        _show_sizes(console, planned)
    except (ValueError, FileNotFoundError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    _show_costs(console, costs)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lsb.plan", description=str(__doc__).splitlines()[0]
    )
    add = parser.add_argument
    add("--store", type=Path, help="plan for this store: its rows, dimension, dtype and parts")
    add("--seeds-from", type=Path, metavar="FILE", help="as --seeds of lsb.search; needs --store")
    add("--rows", type=float, help="of the pool; default 1e9, or those of --store")
    add("--dimension", type=int, help="of the vectors; default 768, or that of --store")
    add("--dtype", choices=("float32", "float16"), help="of the pool; default float16")
    add("--seeds", type=float, help="how many; default 100000, or those of --seeds-from")
    add("--lt", type=float, default=0.8, help="smallest cosine similarity of a hit")
    add("--max-neighbours", type=int, default=1024, help="most hits of a seed")
    add("--neighbours", type=int, help="of the first ask; default: the fastest")
    add("--searches", type=int, default=1, help="over the same pool; what is built is shared")
    add("--codes", action="store_true", help="int8 codes are stored already")
    add("--not-embedded", action="store_true", help="the pool may be searched while embedded")
    add("--rows-per-part", type=float, default=1e6, help="of the pool")
    add("--nodes", type=int, default=1)
    add("--cores", type=int, default=64, help="of a node")
    add("--gpus", type=int, default=0, help="of a node")
    add("--gpu", default="h100", help=f"one of {', '.join(GPUS)}")
    add("--memory-gb", type=float, default=512, help="of a node")
    add("--read-gb-s", type=float, default=10, help="that a node reads from the pool's storage")
    add("--recalibrate", action="store_true", help="measure this machine again")
    return parser


def _job(options: argparse.Namespace) -> tuple[Job, Selectivity | None]:
    found: Selectivity | None = None
    rows, dimension, dtype, parts = 1e9, 768, "float16", options.rows_per_part
    seeds = 100_000.0
    codes = options.codes
    if options.seeds_from is not None and options.store is None:
        raise ValueError("--seeds-from needs --store, in which its clips are looked up")
    if options.store is not None:
        store = Store.open(options.store)
        rows, dimension = float(len(store)), store.dimension
        dtype = str(store.parts[0].vectors().dtype) if store.parts else dtype
        parts = max((part.rows for part in store.parts), default=1)
        if options.dimension not in (None, dimension):
            raise ValueError(
                f"--dimension is {options.dimension} but {options.store} has {dimension}: leave "
                "--dimension out"
            )
        codes = codes or any(getattr(part, "codes_path", None) for part in store.parts)
        if options.seeds_from is not None:
            given = read_seeds(options.seeds_from, store, "--seeds-from")
            seeds = float(len(given))
            kernel = library.compiled()
            backend = "int_mm" if kernel is None else kernel.name
            found = of_store(store, given, options.lt, backend)
    job = Job(
        rows=options.rows or rows,
        dimension=options.dimension or dimension,
        seeds=int(options.seeds or seeds),
        lt=options.lt,
        most=options.max_neighbours,
        dtype=options.dtype or dtype,
        kept_codes=codes,
        searches=options.searches,
        rows_per_part=int(parts),
    )
    return job, found


def _show(console: Console, made: Plan) -> None:
    job, cluster, chosen = made.job, made.cluster, made.chosen
    gpus = f" x {cluster.gpus} {GPUS[cluster.gpu].name}" if cluster.gpus else ""
    console.print(
        f"{_count(job.rows)} x {job.dimension} {job.dtype}, {job.seeds:,} seeds, LT {job.lt}, "
        f"at most {job.most:,} neighbours\non {cluster.nodes} x {cluster.cores} cores{gpus}, "
        f"{cluster.memory_gb:g} GB and {cluster.read_gb_s:g} GB/s a node, {job.searches} search(es)"
    )
    console.print(f"\nchosen: {chosen.name}: {_time(chosen.total_seconds(job.searches))}")
    console.print(f"  {_command(made)}", soft_wrap=True)
    console.print("\nways, each as fast as it can be made")
    grid = _grid("", "recall", "build", "search", "reading", "CPU h", "GPU h", "read", "GB/process")
    for way in made.ways:
        mark = "* " if way is chosen else "  "
        if way.refused:
            grid.add_row(f"{mark}{way.name}", "", "", way.refused)
            continue
        grid.add_row(
            f"{mark}{way.name}",
            "exact" if way.exact else f"{way.recall}",
            _time(way.build_seconds) if way.build_seconds else "",
            _time(way.search_seconds),
            _time(way.read_seconds),
            _number((way.cpu_seconds + way.build_cpu_seconds) / 3600),
            _number(way.gpu_seconds / 3600) if way.gpu_seconds else "",
            _bytes(way.bytes_read),
            f"{_memory(way.memory)}..{_memory(way.worst_memory)} x {way.processes}",
        )
    console.print(grid)
    console.print(
        "memory: expected .. if every seed has all neighbours it may have, x processes a node"
    )
    console.print("\nreasons")
    for reason in made.reasons:
        console.print(f"- {reason}")
    console.print("\nassumptions")
    for each in made.assumptions:
        console.print(f"- {'[measured here]' if each.measured else '[assumed]'} {each.text}")


def _show_sizes(console: Console, planned: Callable[[float], Plan]) -> None:
    console.print("\nother sizes of the pool, same nodes")
    grid = _grid("rows", "chosen", "search", "CPU h", "GPU h", "read", "GB/node", "hits/seed")
    for rows in SIZES:
        try:
            made = planned(rows)
        except ValueError:
            grid.add_row(_count(rows), "none fits")
            continue
        way = made.chosen
        grid.add_row(
            _count(rows),
            way.name,
            _time(way.total_seconds(made.job.searches)),
            _number((way.cpu_seconds + way.build_cpu_seconds) / 3600),
            _number(way.gpu_seconds / 3600) if way.gpu_seconds else "",
            _bytes(way.bytes_read),
            _memory(way.memory * way.processes),
            _number(way.hits / made.job.seeds),
        )
    console.print(grid)


def _command(made: Plan) -> str:
    job, way = made.job, made.chosen
    total = made.cluster.nodes * way.processes
    asked = f"--lt {job.lt} --neighbours {way.neighbours} --max-neighbours {job.most}"
    backend = f"--backend {way.backend}"
    if way.device != "cpu":
        backend += f" --device {way.device}"
    if way.threads > 1:
        backend += f" --threads {way.threads}"
    if way.backend in ("int_mm", "knn"):
        backend += f" --rows-per-block {way.rows_per_block}"
    if "while embedding" in way.name:
        return f"vlmae.embed embed.seeds=... embed.lt={job.lt} embed.neighbours={way.neighbours}"
    search = f"-m lsb.search ... {asked} {backend}"
    if total == 1:
        return f"python {search}"
    return (
        f"torchrun --nnodes {made.cluster.nodes} --nproc-per-node {way.processes} {search} "
        "--collective"
    )


def _show_costs(console: Console, costs: Costs) -> None:
    kernels = ", ".join(
        f"{name} {1 / of.product / 1e9:,.0f}e9 products/s" for name, of in costs.kernels.items()
    )
    console.print(
        f"\nmeasured here, one thread: {kernels or 'no compiled kernel'}, "
        f"int_mm {1 / costs.torch.product / 1e9:,.0f}e9, knn {1 / costs.knn.product / 1e9:,.0f}e9"
    )
    console.print(f"kept in {costs_path()}; --recalibrate measures again", soft_wrap=True)


def _grid(first: str, *names: str) -> Table:
    grid = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    grid.add_column(first, no_wrap=True)
    for name in names:
        grid.add_column(name, justify="left" if name == "chosen" else "right", no_wrap=True)
    return grid


def _time(seconds: float) -> str:
    for unit, size in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{_number(seconds / size)} {unit}"
    return f"{_number(seconds)} s"


def _bytes(count: float) -> str:
    for unit, size in (("TB", 1e12), ("GB", 1e9)):
        if count >= size:
            return f"{_number(count / size)} {unit}"
    return f"{_number(count / 1e6)} MB"


def _memory(count: float) -> str:
    return _number(count / 1e9)


def _number(value: float) -> str:
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2g}" if value < 10 else f"{value:.3g}"


def _count(rows: float) -> str:
    for unit, size in (("B", 1e9), ("M", 1e6)):
        if rows >= size:
            return f"{rows / size:g}{unit} rows"
    return f"{rows:,.0f} rows"


if __name__ == "__main__":
    sys.exit(main())
