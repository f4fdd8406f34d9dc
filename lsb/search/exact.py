"""Exact threshold search: every neighbour of a seed with similarity >= LT, up to a cap.

What compares vectors stands behind `lsb.search.scan.Scan` (see `lsb.search.backends`); every
implementation gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import numpy as np

from lsb.ids import IdArray
from lsb.order import member
from lsb.progress import progressed
from lsb.search.ask import HITS, Gather, Hits, ask, seeds_of
from lsb.search.backends import Sample, open_scan, store_sample
from lsb.search.codes import PartCodes
from lsb.search.config import SearchConfig
from lsb.search.lists import FloatArray, NeighbourLists
from lsb.search.scan import Block, Seeds
from lsb.store import Store, StorePart, VectorArray

__all__ = ["HITS", "Hits", "SearchConfig", "nearest", "part_blocks", "search"]

Blocks = Callable[[], Iterable[tuple[IdArray, VectorArray]]]


def search(
    seed_ids: IdArray,
    seeds_QD: FloatArray,
    store: Store,
    config: SearchConfig,
    *,
    lookalike_threshold: float | None,
    exclude: IdArray,
) -> Hits:
    """Neighbours of seeds in a store.

    The table's bytes do not depend on the number, size or order of parts, nor on the order of
    seeds. Memory beyond the result is bounded by one block.

    Args:
        seed_ids: (Q,) S16, unique. A seed that is in the store is never its own neighbour.
        seeds_QD: (Q, D) float32 of norm 1.
        store: what to search.
        config: widths and backend.
        lookalike_threshold: smallest similarity of a hit; None takes the nearest `max_neighbours`.
        exclude: ids that must not be found (labelled clips); removed before the cut at k.

    Raises:
        ValueError: dimensions differ, a seed occurs twice or is not of norm 1.
    """
    require_dimension(seeds_QD, store)
    excluded = np.unique(exclude)

    def blocks() -> Iterator[Block]:
        first_row = 0
        for part in store.parts:
            yield from part_blocks(part, first_row, config.rows_per_block, excluded)
            first_row += part.rows

    gather = gather_blocks(blocks, config, len(store), partial(store_sample, store))
    return _ask(seed_ids, seeds_QD, gather, config, lookalike_threshold)


def nearest(
    seed_ids: IdArray,
    seeds_QD: FloatArray,
    blocks: Blocks,
    config: SearchConfig,
    *,
    lookalike_threshold: float | None,
    exclude: IdArray,
    rows: int | None = None,
) -> Hits:
    """As `search`, over anything that yields (ids (n,), vectors (n, D)) each time it is called.

    `rows` says how many there will be, where that is known: few are compared without codes.
    """
    excluded = np.unique(exclude)

    def numbered() -> Iterator[Block]:
        first_row = 0
        for ids, vectors_ND in blocks():
            yield Block(ids, vectors_ND, first_row, _excluded(ids, excluded))
            first_row += len(ids)

    return _ask(
        seed_ids, seeds_QD, gather_blocks(numbered, config, rows), config, lookalike_threshold
    )


def require_dimension(seeds_QD: FloatArray, store: Store) -> None:
    """Refuse seeds of another dimension than a store's.

    Raises:
        ValueError: the message says what the remedy is.
    """
    if seeds_QD.ndim != 2 or seeds_QD.shape[1] != store.dimension:
        raise ValueError(
            f"seeds have shape {seeds_QD.shape} but store {store.place} has dimension "
            f"{store.dimension}: embed the seeds with the checkpoint of the store"
        )


def part_blocks(
    part: StorePart, first_row: int, rows_per_block: int, excluded: IdArray
) -> Iterator[Block]:
    """Blocks of one part of a store.

    Args:
        part: the part.
        first_row: number of its first row in the store.
        rows_per_block: most rows of a block.
        excluded: ascending ids that must not be found.
    """
    vectors_ND = part.vectors()
    codes = None
    if part.codes_path is not None:
        codes = PartCodes.open(part.codes_path, part.vectors_path)
    start = 0
    for ids in part.id_blocks(rows_per_block):
        end = start + len(ids)
        yield Block(
            ids,
            vectors_ND[start:end],
            first_row + start,
            _excluded(ids, excluded),
            None if codes is None else partial(codes.block, start, end),
        )
        progressed(f"part {part.name}: {end} rows searched")
        start = end


def gather_blocks(
    blocks: Callable[[], Iterable[Block]],
    config: SearchConfig,
    rows: int | None = None,
    sample: Sample | None = None,
) -> Gather:
    """A `Gather` that compares all blocks in this process.

    Args:
        blocks: the pool, from the start each time it is called.
        config: backend, threads, device.
        rows: of the pool, None if nobody knows.
        sample: see `lsb.search.backends.open_scan`.
    """

    def gather(seeds: Seeds, limit: int, floor: float) -> NeighbourLists:
        scan = open_scan(seeds, limit, floor, config, rows=rows, sample=sample)
        for block in blocks():
            scan.add(block)
        return scan.lists()

    return gather


def _ask(
    seed_ids: IdArray,
    seeds_QD: FloatArray,
    gather: Gather,
    config: SearchConfig,
    lookalike_threshold: float | None,
) -> Hits:
    return ask(
        seeds_of(seed_ids, seeds_QD),
        gather,
        neighbours=config.neighbours,
        max_neighbours=config.max_neighbours,
        lookalike_threshold=lookalike_threshold,
    )


def _excluded(ids: IdArray, excluded: IdArray) -> np.ndarray | None:
    return member(ids, excluded) if len(excluded) else None
