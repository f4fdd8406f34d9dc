"""Collective search: the ranks of torch.distributed hold the parts of a store and search together.

Every few blocks they share the running k-th scores (all-reduce, MAX): what is below the k-th score
of any rank is in no list, so each rank scans with the bound of all. At the end lists are merged
along a binary tree and the result is broadcast. The bytes are those of `lsb.search.exact.search`,
whatever the number of ranks and the moments of sharing: bounds only spare work.

Tensors are on the CPU: the process group needs gloo ("gloo", or "cpu:gloo,cuda:nccl").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed

from lsb.artifact import fingerprint
from lsb.ids import IdArray
from lsb.search.ask import Hits, ask, seeds_of
from lsb.search.backends import open_scan
from lsb.search.config import SearchConfig
from lsb.search.exact import part_blocks, require_dimension
from lsb.search.lists import FloatArray, NeighbourLists
from lsb.search.partial import Wave, merge_part
from lsb.search.scan import Block, Scan, Seeds
from lsb.store import Store

BLOCKS_PER_EXCHANGE = 4
PAIR = np.dtype([("query", "<i8"), ("score", "<f4"), ("id", "S16"), ("row", "<i8")])
PairArray = npt.NDArray[Any]
T = TypeVar("T")


def search_collective(
    seed_ids: IdArray,
    seeds_QD: FloatArray,
    store: Store,
    config: SearchConfig,
    *,
    lookalike_threshold: float | None,
    exclude: IdArray,
    blocks_per_exchange: int = BLOCKS_PER_EXCHANGE,
) -> Hits:
    """As `lsb.search.exact.search`. collective: all ranks call it, with equal arguments.

    Args:
        seed_ids: (Q,) S16, unique.
        seeds_QD: (Q, D) float32 of norm 1.
        store: what to search; every rank reads only the parts that are dealt to it.
        config: widths and backend; `rows_per_block` must be equal on all ranks.
        lookalike_threshold: smallest similarity of a hit; None takes the nearest `max_neighbours`.
        exclude: ids that must not be found.
        blocks_per_exchange: blocks that a rank scans between two exchanges of bounds.

    Returns:
        The hits, on every rank.

    Raises:
        ValueError: on all ranks, with the message of the first one that failed.
    """
    excluded = np.unique(exclude)

    def prepare() -> Seeds:
        require_dimension(seeds_QD, store)
        return seeds_of(seed_ids, seeds_QD)

    seeds = agreed(prepare)
    threshold = -np.inf if lookalike_threshold is None else lookalike_threshold
    asked = Wave(seeds, config.max_neighbours, threshold, excluded).key
    _require_equal(
        {
            "seeds, LT, max_neighbours or exclude": asked,
            "store": [store.hash, [[part.name, part.rows] for part in store.parts]],
            "neighbours": config.neighbours,
            "rows_per_block": [config.rows_per_block, blocks_per_exchange],
        }
    )

    def gather(seeds: Seeds, limit: int, floor: float) -> NeighbourLists:
        wave = Wave(seeds, limit, floor, excluded)
        return _gather(wave, store, config, blocks_per_exchange)

    return ask(
        seeds,
        gather,
        neighbours=config.neighbours,
        max_neighbours=config.max_neighbours,
        lookalike_threshold=lookalike_threshold,
    )


def deal(rows: Sequence[int], ranks: int) -> list[int]:
    """Which rank gets each part: the largest first, each to the rank with the fewest rows so far.

    Args:
        rows: of every part.
        ranks: how many there are; those beyond the number of parts get none.
    """
    load = [0] * ranks
    dealt = [0] * len(rows)
    for part in sorted(range(len(rows)), key=lambda part: (-rows[part], part)):
        rank = min(range(ranks), key=lambda rank: (load[rank], rank))
        dealt[part] = rank
        load[rank] += rows[part]
    return dealt


def agreed(work: Callable[[], T]) -> T:
    """Do something that may fail on some ranks. collective: all ranks call it.

    Raises:
        ValueError: on all ranks, with the message of the first one that failed.
    """
    failure: Exception | None = None
    try:
        done = work()
    except Exception as error:
        failure = error
    _raise_together(failure)
    return done


def _raise_together(failure: Exception | None) -> None:
    """Raise on every rank if any failed. Collective."""
    told: list[str | None] = [None] * distributed.get_world_size()
    text = None if failure is None else _line(failure)
    distributed.all_gather_object(told, text)
    for rank, message in enumerate(told):
        if message is not None:
            raise ValueError(f"rank {rank} of {len(told)}: {message}") from failure


def _line(error: Exception) -> str:
    known = isinstance(error, ValueError | FileNotFoundError)
    return str(error) if known else f"{type(error).__name__}: {error}"


def _require_equal(values: dict[str, Any]) -> None:
    """Refuse arguments that differ between ranks. Collective."""
    own = {name: fingerprint(value) for name, value in values.items()}
    told: list[dict[str, str]] = [{}] * distributed.get_world_size()
    distributed.all_gather_object(told, own)
    for rank, other in enumerate(told):
        for name in values:
            if other[name] != told[0][name]:
                raise ValueError(
                    f"rank {rank} searches with other {name} than rank 0: start all ranks with "
                    "the same arguments and files"
                )


def _gather(
    wave: Wave, store: Store, config: SearchConfig, blocks_per_exchange: int
) -> NeighbourLists:
    """One wave on all ranks. Collective."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    rows = [part.rows for part in store.parts]
    dealt = deal(rows, ranks)
    # Everybody knows everybody's blocks, so all exchange equally often without asking.
    blocks_of = [0] * ranks
    for part, owner in enumerate(dealt):
        blocks_of[owner] += -(-rows[part] // config.rows_per_block)
    exchanges = max(1, -(-max(blocks_of) // blocks_per_exchange))
    blocks = _blocks(wave, store, config, [owner == rank for owner in dealt])
    scan: Scan | None = None
    for exchange in range(exchanges):
        failure: Exception | None = None
        bound = np.full(len(wave.seeds), -np.inf, dtype=np.float32)
        try:
            if scan is None:
                share = -(-len(store) // ranks)
                scan = open_scan(wave.seeds, wave.limit, wave.floor, config, rows=share)
            for block in islice(blocks, blocks_per_exchange):
                scan.add(block)
            bound = np.asarray(scan.bound, dtype=np.float32)
            if exchange == exchanges - 1:
                lists = scan.lists()
                assert next(blocks, None) is None, "a rank has blocks left"
        except Exception as error:
            failure = error
        bound = _exchange(bound, failure)
        if scan is not None:
            scan.raise_bound(bound)
    keep = lists.score >= bound[lists.query]
    lists = NeighbourLists(
        lists.queries,
        lists.limit,
        lists.query[keep],
        lists.score[keep],
        lists.id[keep],
        lists.row[keep],
    )
    return _merged(lists)


def _blocks(
    wave: Wave, store: Store, config: SearchConfig, mine: Sequence[bool]
) -> Iterator[Block]:
    first_row = 0
    for part, own in zip(store.parts, mine, strict=True):
        if own:
            yield from part_blocks(part, first_row, config.rows_per_block, wave.excluded)
        first_row += part.rows


def _exchange(bound_Q: FloatArray, failure: Exception | None) -> FloatArray:
    """The best bound of each seed on any rank. Collective.

    Raises:
        ValueError: on all ranks, if one failed.
    """
    told = torch.from_numpy(np.append(bound_Q, np.float32(failure is not None)))
    distributed.all_reduce(told, distributed.ReduceOp.MAX)
    if told[-1] > 0:
        _raise_together(failure)
    return np.asarray(told[:-1].numpy(), dtype=np.float32)


def _merged(lists: NeighbourLists) -> NeighbourLists:
    """The lists of all ranks, on all ranks. Collective."""
    rank, ranks = distributed.get_rank(), distributed.get_world_size()
    merged = NeighbourLists(lists.queries, lists.limit)
    merge_part(merged, lists)
    step = 1
    while step < ranks:
        if rank % (2 * step) == step:
            _send(_packed(merged), rank - step)
            break
        if rank + step < ranks:
            merge_part(merged, _unpacked(_receive(rank + step), lists.queries, lists.limit))
        step *= 2
    count = torch.tensor([len(merged.query)])
    distributed.broadcast(count, 0)
    pairs = _packed(merged) if rank == 0 else np.empty(int(count), dtype=PAIR)
    if len(pairs):
        distributed.broadcast(_as_tensor(pairs), 0)
    return _unpacked(pairs, lists.queries, lists.limit)


def _packed(lists: NeighbourLists) -> PairArray:
    pairs = np.empty(len(lists.query), dtype=PAIR)
    pairs["query"], pairs["score"] = lists.query, lists.score
    pairs["id"], pairs["row"] = lists.id, lists.row
    return pairs


def _unpacked(pairs: PairArray, queries: int, limit: int) -> NeighbourLists:
    query = pairs["query"].astype(np.intp)
    score, ids, row = (np.ascontiguousarray(pairs[name]) for name in ("score", "id", "row"))
    return NeighbourLists(queries, limit, query, score, ids, row)


def _as_tensor(pairs: PairArray) -> torch.Tensor:
    return torch.from_numpy(pairs.view(np.uint8))


def _send(pairs: PairArray, rank: int) -> None:
    distributed.send(torch.tensor([len(pairs)]), rank)
    if len(pairs):
        distributed.send(_as_tensor(pairs), rank)


def _receive(rank: int) -> PairArray:
    count = torch.empty(1, dtype=torch.int64)
    distributed.recv(count, rank)
    pairs = np.empty(int(count), dtype=PAIR)
    if len(pairs):
        distributed.recv(_as_tensor(pairs), rank)
    return pairs
