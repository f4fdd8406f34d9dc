"""Chooses how to search: which way is the fastest exact one, on which nodes, at what cost.

`plan` adds up what a search does (`lsb.search.ways`) at what each step costs (`lsb.search.costs`),
deals it to the nodes, and takes the way that is done first. What was measured on this machine and
what is assumed about others is told apart in `Plan.assumptions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from lsb.search import ways
from lsb.search.costs import Costs
from lsb.search.dealing import Choice, Way, deal
from lsb.search.machines import GIGA, GPUS, Cluster, Efficiency, Job
from lsb.search.selectivity import Selectivity, Wave, assumed

IVF_LISTS = (256, 1024)
IVF_RECALL = {256: 0.993, 1024: 0.991}
"""At nprobe 8, measured on the clustered law of 1M rows (docs/decisions.md); data decide it."""
IVF_SAMPLE = 512
IVF_ROWS = 39
"""Rows a list that faiss wants to train on."""
BLOCKS = (131_072, 524_288, 2_097_152)


@dataclass(frozen=True)
class Assumption:
    """A number that a plan rests on."""

    text: str
    measured: bool


@dataclass(frozen=True)
class Plan:
    """What to do, and why.

    Attributes:
        job, cluster: what was asked.
        chosen: the fastest exact way that fits.
        ways: all of them, the fastest first.
        reasons: sentences.
        assumptions: measured here, or assumed.
    """

    job: Job
    cluster: Cluster
    chosen: Way
    ways: tuple[Way, ...]
    reasons: tuple[str, ...]
    assumptions: tuple[Assumption, ...]


def plan(
    job: Job,
    cluster: Cluster,
    costs: Costs,
    *,
    selectivity: Selectivity | None = None,
    efficiency: Efficiency | None = None,
    neighbours: int | None = None,
    embedded: bool = True,
) -> Plan:
    """The fastest exact way to make a search.

    Args:
        job: the search.
        cluster: the nodes.
        costs: of a core like theirs.
        selectivity: of the pool; the clustered law's where nobody has looked.
        efficiency: what nobody can measure here.
        neighbours: of the first ask; the fastest where it is not given.
        embedded: the pool is stored; otherwise it may be searched while it is embedded.

    Raises:
        ValueError: no way fits into the nodes' memory; the message says how much is missing.
    """
    found = selectivity or assumed(job.dimension)
    stated = efficiency or Efficiency()
    ordered = sorted(
        _ways(job, cluster, costs, found, stated, neighbours, embedded),
        key=lambda way: (bool(way.refused), way.total_seconds(job.searches)),
    )
    exact = [way for way in ordered if way.exact and not way.refused]
    if not exact:
        least = min((way for way in ordered if way.exact), key=lambda way: way.memory)
        raise ValueError(
            f"no exact way fits: {least.name} needs {least.memory / GIGA:.1f} GB a process, a node "
            f"has {cluster.memory_gb:g} GB of which {stated.memory:.0%} may be used: lower "
            "max-neighbours, search fewer seeds at a time, or take nodes with more memory"
        )
    return Plan(
        job,
        cluster,
        exact[0],
        tuple(ordered),
        tuple(_reasons(job, exact[0], ordered, costs, found)),
        tuple(_assumptions(job, cluster, exact[0], costs, found, stated)),
    )


def _ways(
    job: Job,
    cluster: Cluster,
    costs: Costs,
    selectivity: Selectivity,
    stated: Efficiency,
    neighbours: int | None,
    embedded: bool,
) -> Iterator[Way]:
    asked = {
        first: selectivity.waves(job.rows, job.lt, first, job.most)
        for first in _firsts(job, neighbours)
    }
    blocks = [(first, block) for first in asked for block in BLOCKS]

    def best(made: Iterable[tuple[Choice, ways.Load]]) -> Way:
        dealt = (deal(choice, load, cluster, costs, stated) for choice, load in made)
        return min(dealt, key=lambda way: (bool(way.refused), way.total_seconds(job.searches)))

    for name in costs.kernels:
        for suffix, kept, streamed in (
            ("", False, False),
            (", stored codes", True, False),
            (", while embedding", False, True),
        ):
            if streamed and embedded:
                continue
            yield best(
                (
                    Choice(name + suffix, name, neighbours=first),
                    ways.compiled(
                        job, costs, name, selectivity, waves, kept=kept, streamed=streamed
                    ),
                )
                for first, waves in asked.items()
            )
    yield best(
        (
            Choice("int_mm", "int_mm", neighbours=first, rows_per_block=block),
            ways.torch_cpu(job, costs, asked[first], block),
        )
        for first, block in blocks
    )
    yield best(
        (
            Choice("knn", "knn", neighbours=first, rows_per_block=block),
            ways.knn(job, costs, asked[first], block),
        )
        for first, block in blocks
    )
    if cluster.gpus:
        yield best(
            (
                Choice(f"int_mm on {cluster.gpu}", "int_mm", "cuda", 1.0, first, block),
                ways.torch_cuda(job, costs, asked[first], block, cluster, stated),
            )
            for first, block in blocks
        )
    for lists in IVF_LISTS:
        if job.rows >= IVF_ROWS * lists:
            yield best(
                (
                    Choice(f"IVF{lists}", "", recall=IVF_RECALL[lists], neighbours=first),
                    ways.inverted_file(
                        job, costs, waves, lists, _truth(job, costs, selectivity, waves)
                    ),
                )
                for first, waves in asked.items()
            )


def _truth(job: Job, costs: Costs, selectivity: Selectivity, waves: Sequence[Wave]) -> ways.Load:
    """The exact search of the seeds by which an index is tuned and its recall measured."""
    few = replace(job, seeds=min(job.seeds, IVF_SAMPLE))
    if costs.kernels:
        return ways.compiled(few, costs, next(iter(costs.kernels)), selectivity, waves)
    return ways.knn(few, costs, waves, BLOCKS[0])


def _firsts(job: Job, neighbours: int | None) -> list[int]:
    """First asks to choose from."""
    if neighbours is not None:
        if not 1 <= neighbours <= job.most:
            raise ValueError(
                f"neighbours is {neighbours} and max-neighbours {job.most}: need 1 <= neighbours "
                "<= max-neighbours"
            )
        return [neighbours]
    return sorted({min(width, job.most) for width in (64, 256, 1024, job.most)})


def _reasons(
    job: Job, chosen: Way, ordered: Sequence[Way], costs: Costs, selectivity: Selectivity
) -> Iterator[str]:
    others = [way for way in ordered if way.exact and way is not chosen and not way.refused]
    total = chosen.total_seconds(job.searches)
    if others:
        ratio = others[0].total_seconds(job.searches) / total
        yield f"Of the exact ways {chosen.name} is done first; {others[0].name} takes {ratio:.2f}x."
    for way in ordered:
        if way.exact and way.refused:
            yield f"{way.name} does not fit: {way.refused}."
    name, seconds = max(
        [
            ("reading", chosen.read_seconds),
            ("computing", chosen.search_seconds - chosen.read_seconds),
        ],
        key=lambda each: each[1],
    )
    yield f"Of its wall time {seconds / chosen.search_seconds:.0%} is {name}."
    spent = {name: seconds for name, seconds in chosen.terms.items() if seconds > 0}
    whole = sum(spent.values())
    most = sorted(spent.items(), key=lambda each: -each[1])[:3]
    yield "It computes: " + ", ".join(f"{name} {part / whole:.0%}" for name, part in most) + "."
    if job.lt is not None:
        yield (
            f"First ask for {chosen.neighbours} neighbours: seeds that have more are compared with "
            "all rows again."
        )
    if chosen.backend in costs.kernels or chosen.backend == "int_mm":
        length = selectivity.prefix if chosen.backend in costs.kernels else 0
        yield f"int8 {f'prefixes of {length}' if length else 'codes of whole vectors'}, as fitted."
    best = next((way for way in ordered if not way.exact and not way.refused), None)
    if best is None:
        return
    build = best.build_cpu_seconds / job.searches
    if best.total_seconds(job.searches) < total:
        yield (
            f"{best.name} would take {best.total_seconds(job.searches) / total:.2g}x the time and "
            f"miss {1 - best.recall:.1%} of the pairs, more where the pool has no clusters."
        )
    else:
        yield f"No approximate way is faster: {best.name} builds for {build:,.0f} CPU s."
    yield _break_even(job, ordered)


def _break_even(job: Job, ordered: Sequence[Way]) -> str:
    """From how many seeds on an inverted file pays, which depends on whom it competes with."""
    index = next(way for way in ordered if not way.exact)
    said = []
    for way in ordered:
        if way.backend not in ("knn", "avx512", "avx2") or way.name != way.backend:
            continue
        fixed = way.terms.get("encode", 0.0) + way.terms.get("widen", 0.0)
        saved = (way.cpu_seconds - fixed) - index.cpu_seconds
        spent = max(0.0, index.build_cpu_seconds / job.searches - fixed)
        if saved <= 0:
            said.append(f"never against {way.name}")
        else:
            said.append(f"from {spent / (saved / job.seeds):,.0f} seeds against {way.name}")
    return f"{index.name} pays " + ", ".join(said) + "."


def _assumptions(
    job: Job,
    cluster: Cluster,
    chosen: Way,
    costs: Costs,
    selectivity: Selectivity,
    stated: Efficiency,
) -> Iterator[Assumption]:
    yield Assumption(f"costs of steps, one thread of {costs.machine.get('cpu', '?')}", True)
    yield Assumption(selectivity.source, selectivity.measured)
    yield Assumption("the nodes' cores are like this machine's", False)
    yield Assumption("the pool stays as dense while it grows: neighbours grow with rows", False)
    yield Assumption(
        f"a node reads {cluster.read_gb_s:g} GB/s, nothing overlaps it, and passes after the first "
        "come from memory where the pool fits",
        False,
    )
    if chosen.processes * chosen.threads > 1:
        yield Assumption(f"all cores at work are {stated.cores:.0%} as fast as one alone", False)
    yield Assumption(f"parts of {job.rows_per_part:,} rows, dealt evenly", False)
    if cluster.gpus:
        gpu = GPUS[cluster.gpu]
        yield Assumption(
            f"{gpu.name}: {gpu.int8_tops:,g} int8 TOPS at {stated.gpu_products:.0%}, "
            f"{gpu.bandwidth_tb_s:g} TB/s at {stated.gpu_memory:.0%} (datasheet x efficiency)",
            False,
        )
        yield Assumption(f"rows reach a GPU at {stated.host_gb_s:g} GB/s, unpinned", False)
    yield Assumption(
        f"IVF recall {', '.join(f'{IVF_RECALL[n]} ({n} lists)' for n in IVF_LISTS)} at nprobe "
        f"{ways.PROBES}, on clustered data",
        False,
    )
