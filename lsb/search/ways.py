"""What each way to search costs, term by term: docs/plan.md has the formulas."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from lsb.search.costs import Costs, KernelCosts, entries
from lsb.search.knn import MARGIN, PROPOSALS_PER_CALL
from lsb.search.machines import GIGA, GPUS, Cluster, Efficiency, Job
from lsb.search.selectivity import Selectivity, Wave

HIT_BYTES = 32
TABLE_BYTES = 36
PANEL = 64
BASE_BYTES = 420.0e6
"""Of a process that has imported torch, faiss and pyarrow and found nothing yet."""
TILE_BYTES = 56
"""That a GPU moves for a coordinate of a row while it is coded: eight float32 passes."""
PAIR_BYTES = 12
"""That a GPU moves for a pair: int32 product written and read, one comparison, one compaction."""
MERGE_PAIRS = 1 << 20
PROBES = 8


@dataclass(frozen=True)
class Load:
    """Work of a search before it is dealt to nodes, in seconds of one thread or one GPU.

    Attributes:
        rows: by name, of work that threads share.
        serial: by name, of work that is dealt to processes but not to threads.
        process: by name, of work that every process does.
        gpu: by name, seconds of one GPU.
        build: by name, once for a pool, shared by threads.
        stored_bytes: read from storage in one pass.
        passes: over the pool.
        memory: bytes of a process, expected.
        worst: the same if every seed has as many neighbours as it may.
        hits: in the result.
        parts: of the pool, each of which one process searches.
    """

    rows: Mapping[str, float]
    serial: Mapping[str, float]
    process: Mapping[str, float]
    stored_bytes: float
    passes: int
    memory: float
    worst: float
    hits: float
    parts: int
    gpu: Mapping[str, float] = field(default_factory=dict)
    build: Mapping[str, float] = field(default_factory=dict)


def _sum(terms: Sequence[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for each in terms:
        for name, seconds in each.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def _encoding(job: Job, of: KernelCosts, prefix: int) -> float:
    """Seconds to code a row."""
    half = of.half_coordinate if job.dtype == "float16" else 0.0
    seconds = of.encode_row + job.dimension * (of.encode_coordinate + half)
    if prefix:
        panels = -(-prefix // PANEL) * PANEL
        seconds += prefix * of.prefix_coordinate + panels * job.padded * of.encode_product
    return seconds


def compiled(
    job: Job,
    costs: Costs,
    name: str,
    selectivity: Selectivity,
    waves: Sequence[Wave],
    *,
    kept: bool = False,
    streamed: bool = False,
) -> Load:
    """The compiled scan.

    Args:
        job: what is searched.
        costs: of the machine.
        name: of the kernel.
        selectivity: of its pairs.
        waves: what `selectivity.waves` returned.
        kept: codes are read, not made.
        streamed: each part is searched when it is embedded; only later waves read the pool.
    """
    of, prefix = costs.kernels[name], selectivity.prefix
    length = prefix or job.padded
    code_bytes = job.padded + prefix + 8
    fit = costs.fit + costs.fit_square * job.dimension**2
    rows, serial, process = [], [], []
    for number, wave in enumerate(waves):
        seeds = job.seeds * wave.share
        streams = streamed and number == 0
        read = code_bytes if kept else job.dimension * job.item
        touch = costs.read_byte + (of.kept_byte if kept else 0.0)
        prepare = seeds * job.dimension * of.seed_coordinate
        rows.append(
            {
                "read": 0.0 if streams else job.rows * read * touch,
                "encode": 0.0 if kept else job.rows * _encoding(job, of, prefix),
                "first bound": job.rows
                * math.ceil(seeds / PANEL)
                * PANEL
                * (of.pair + length * of.product),
                "second bound": seeds
                * wave.prefix
                * (of.code_pair + job.padded * of.code_coordinate)
                if prefix
                else 0.0,
                "float32": seeds
                * wave.codes
                * (of.float_pair + job.dimension * of.float_coordinate),
                "rescore": seeds
                * wave.scored
                * (of.score_pair + job.dimension * of.score_coordinate),
            }
        )
        each = {"ids": 0.0 if streams else job.rows * costs.id_row}
        if kept or streams:  # each part has a projection of its own, under which seeds are coded
            each["seeds"] = job.parts * prepare
            each["fit"] = job.parts * fit if streams else 0.0
            process.append({"fit": 0.0 if streams else fit})
        else:
            process.append({"seeds": prepare, "fit": fit})
        serial.append(each)
        process.append({"hits": seeds * wave.hits * costs.hit})
    build = {}
    if kept and not job.kept_codes:
        build = {
            "codes": job.rows
            * (_encoding(job, of, prefix) + code_bytes * (of.kept_byte + costs.ivf.byte))
            + job.parts * fit
        }
    expected, worst = (_coded_bytes(job, prefix, waves, kept, worst=case) for case in (False, True))
    stored = code_bytes if kept else job.dimension * job.item
    passes = len(waves) - (1 if streamed else 0)
    return Load(
        _sum(rows),
        _sum(serial),
        _sum(process),
        job.rows * stored,
        passes,
        expected,
        worst,
        _hits(job, waves),
        job.parts,
        build=build,
    )


def _hits(job: Job, waves: Sequence[Wave]) -> float:
    """In the result: those of seeds that are asked again count once, the last time."""
    total = 0.0
    for number, wave in enumerate(waves):
        later = waves[number + 1].share if number + 1 < len(waves) else 0.0
        found = wave.share * min(wave.hits, wave.limit - 1.0)
        total += job.seeds * (found - later * (wave.limit - 1.0))
    return max(0.0, total)


def _capacity(entries_: float) -> float:
    """Entries that a growing list has room for: a power of two, 1.4 times too many on average."""
    return max(1.0, entries_ * 1.4)


def _coded_bytes(job: Job, prefix: int, waves: Sequence[Wave], kept: bool, *, worst: bool) -> float:
    ids = 40.0 * min(131_072.0, job.rows)
    block = 131_072.0 * (job.padded + prefix + 8) if kept else 4.0e6
    codes = job.seeds * (prefix or job.padded) + job.seeds * job.padded
    # While seeds are coded: int8, their 16-bit widening, and both layouts.
    preparing = job.seeds * (3 * job.padded + job.dimension + 3 * prefix)
    most = 0.0
    for wave in waves:
        seeds = job.seeds * wave.share
        vectors = 4.0 * job.dimension * (job.seeds + seeds)
        if worst:
            room = 2.0 ** math.ceil(math.log2(2 * wave.limit + 8))
            lists, hits = seeds * room * HIT_BYTES, seeds * wave.limit * TABLE_BYTES
        else:
            lists = seeds * _capacity(wave.held) * HIT_BYTES
            hits = seeds * wave.hits * TABLE_BYTES
        scanning = codes * wave.share + ids + block + lists + hits
        most = max(most, vectors + max(preparing * wave.share, scanning))
    result = 3 * TABLE_BYTES * (job.seeds * waves[-1].limit if worst else _hits(job, waves))
    return max(most, result + 4.0 * job.dimension * job.seeds) + _fit_bytes(job)


def _fit_bytes(job: Job) -> float:
    return 4096.0 * job.dimension * 12 + 4.0 * job.dimension**2 * 4


def torch_cpu(
    job: Job,
    costs: Costs,
    waves: Sequence[Wave],
    rows_per_block: int,
) -> Load:
    """`int_mm` on the CPU."""
    of, rows = costs.torch, []
    for wave in waves:
        seeds = job.seeds * wave.share
        rows.append(
            {
                "read": job.rows * job.dimension * job.item * costs.read_byte,
                "encode": job.rows * job.dimension * of.encode_coordinate,
                "first bound": job.rows * seeds * (of.pair + job.padded * of.product),
                "float32 and rescore": seeds
                * wave.codes
                * (of.score_pair + job.dimension * of.score_coordinate),
                "merge": _merging(job, wave, rows_per_block) * costs.merge,
            }
        )
    return _array_load(job, costs, waves, rows, of.seed_coordinate, 40.0e6)


def _merging(job: Job, wave: Wave, rows_per_block: int) -> float:
    """Hits that are sorted while blocks are merged into lists of numpy."""
    seeds = job.seeds * wave.share
    merges = job.rows / rows_per_block + seeds * wave.scored / MERGE_PAIRS
    return merges * seeds * wave.hits * 0.7 + seeds * wave.scored


def _array_load(
    job: Job,
    costs: Costs,
    waves: Sequence[Wave],
    rows: Sequence[Mapping[str, float]],
    seed_coordinate: float,
    extra: float,
    gpu: Mapping[str, float] | None = None,
) -> Load:
    """What scans in numpy and torch share."""
    seeds = sum(job.seeds * wave.share for wave in waves)
    hits = sum(job.seeds * wave.share * wave.hits for wave in waves)
    process = {
        "seeds": seeds * job.dimension * seed_coordinate,
        "fit": len(waves) * (costs.fit + costs.fit_square * job.dimension**2),
        "hits": hits * costs.hit,
    }
    lists = max(job.seeds * wave.share * wave.hits for wave in waves)
    limits = max(job.seeds * wave.share * wave.limit for wave in waves)
    fixed = 40.0 * min(131_072.0, job.rows) + 12.0 * job.dimension * job.seeds
    fixed += extra + _fit_bytes(job)
    return Load(
        _sum(rows),
        {"ids": len(waves) * job.rows * costs.id_row},
        process,
        job.rows * job.dimension * job.item,
        len(waves),
        fixed + 5 * TABLE_BYTES * lists,
        fixed + 5 * TABLE_BYTES * limits,
        _hits(job, waves),
        job.parts,
        gpu=gpu or {},
    )


def knn(job: Job, costs: Costs, waves: Sequence[Wave], rows_per_block: int) -> Load:
    """`faiss.knn`, block by block."""
    of, rows = costs.knn, []
    block = min(float(rows_per_block), job.rows)
    blocks = job.rows / block
    for wave in waves:
        seeds, width = job.seeds * wave.share, min(wave.limit + MARGIN, block)
        widen = of.row_coordinate * job.dimension if job.dtype == "float16" else 0.0
        rows.append(
            {
                "read": job.rows * job.dimension * job.item * costs.read_byte,
                "widen": job.rows * widen,
                "products": job.rows * seeds * (of.pair + job.dimension * of.product),
                "lists": blocks * seeds * entries(block, width) * of.entry,
                "proposals": blocks * seeds * width * of.proposal,
                "merge": blocks * seeds * wave.hits * costs.merge,
            }
        )
    width = waves[0].limit + MARGIN
    extra = 30.0 * min(job.seeds * width, PROPOSALS_PER_CALL)
    extra += block * job.dimension * 4 if job.dtype == "float16" else 0.0
    return _array_load(job, costs, waves, rows, 0.0, extra)


def torch_cuda(
    job: Job,
    costs: Costs,
    waves: Sequence[Wave],
    rows_per_block: int,
    cluster: Cluster,
    efficiency: Efficiency,
) -> Load:
    """`int_mm` on GPUs: datasheet numbers times stated efficiencies."""
    gpu = GPUS[cluster.gpu]
    moved = gpu.bandwidth_tb_s * 1e12 * efficiency.gpu_memory
    products = gpu.int8_tops * 1e12 / 2 * efficiency.gpu_products
    on_gpu, rows = [], []
    for wave in waves:
        seeds = job.seeds * wave.share
        survivor = 24.0 * job.dimension + 100
        on_gpu.append(
            {
                "copy": job.rows * job.dimension * job.item / (efficiency.host_gb_s * GIGA),
                "encode": job.rows * job.dimension * TILE_BYTES / moved,
                "first bound": job.rows * seeds * (PAIR_BYTES / moved + job.padded / products),
                "float32 and rescore": seeds
                * (wave.codes * survivor + wave.scored * 100.0 * job.dimension)
                / moved,
            }
        )
        rows.append({"merge": _merging(job, wave, rows_per_block) * costs.merge})
    serial = _sum(rows)
    load = _array_load(job, costs, waves, [], costs.torch.seed_coordinate, 1.0e9, _sum(on_gpu))
    return Load(
        {},
        {**load.serial, **serial},
        load.process,
        load.stored_bytes,
        load.passes,
        load.memory,
        load.worst,
        load.hits,
        job.parts,
        gpu=load.gpu,
    )


def inverted_file(job: Job, costs: Costs, waves: Sequence[Wave], lists: int, truth: Load) -> Load:
    """An inverted file over float32, one for each part, all trained alike; approximate.

    Args:
        job: what is searched.
        costs: of the machine.
        waves: of the seeds.
        lists: of the index.
        truth: the exact search of the seeds on which recall is measured.
    """
    of = costs.ivf
    train = min(job.rows, 131_072.0) * lists * job.dimension * of.train_product
    add = job.rows * (lists * job.dimension * of.add_product + (4 * job.dimension + 8) * of.byte)
    rows = []
    for wave in waves:
        seeds = job.seeds * wave.share
        rows.append(
            {
                "read": job.rows * job.dimension * 4 * costs.read_byte,
                "centres": job.parts * seeds * lists * job.dimension * costs.knn.product,
                "scan": seeds
                * job.rows
                * min(1.0, PROBES / lists)
                * job.dimension
                * of.scan_product,
                "rescore": seeds
                * job.parts
                * min(2.0 * wave.limit, wave.scored / job.parts)
                * (costs.torch.score_pair + job.dimension * costs.torch.score_coordinate),
                "merge": job.parts * seeds * wave.hits * costs.merge,
            }
        )
    load = _array_load(job, costs, waves, [*rows, truth.rows], 0.0, 0.0)
    candidates = job.seeds * (2.0 * waves[-1].limit + 1) * 12 * 3
    return Load(
        load.rows,
        load.serial,
        load.process,
        job.rows * (job.dimension * 4 + 8),
        load.passes + truth.passes,
        load.memory + candidates,
        load.worst + candidates,
        load.hits,
        job.parts,
        build={"train": train, "add": add},
    )
