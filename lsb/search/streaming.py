"""Search while embedding: each batch is compared with the seeds while it is at hand.

`StreamingSearch` needs no stored pool. `SeedSearch` is what an embedding stage is given: each part
then also holds its partial lists (`lsb.search.partial`), and `finish` makes of them the hits that
`lsb.search.exact.search` finds in the finished store.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from lsb.ids import IdArray
from lsb.order import member
from lsb.search.array import merge_wave
from lsb.search.ask import Hits, ask, seeds_of
from lsb.search.backends import open_scan, store_sample
from lsb.search.config import SearchConfig
from lsb.search.exact import gather_blocks, part_blocks, require_dimension
from lsb.search.lists import FloatArray, NeighbourLists
from lsb.search.partial import Wave, lists_file, write_lists
from lsb.search.scan import Block, Seeds
from lsb.store import Store, VectorArray, require_unit


class StreamingSearch:
    """Exact search of a pool that goes by batch by batch and need not be kept.

    Seeds cannot be asked again, so all are asked for `max_neighbours` from the start.

    Args:
        seeds: what `lsb.search.ask.seeds_of` returned.
        config: `max_neighbours`, backend.
        lookalike_threshold: smallest similarity of a hit; None takes the nearest `max_neighbours`.
        exclude: ids that must not be found.
        rows: about how many will be added, None if nobody knows; decides speed only.
    """

    def __init__(
        self,
        seeds: Seeds,
        config: SearchConfig,
        *,
        lookalike_threshold: float | None,
        exclude: IdArray,
        rows: int | None = None,
    ):
        self.seeds = seeds
        self.config = config
        self.lookalike_threshold = lookalike_threshold
        self.rows = 0
        self._excluded = np.unique(exclude)
        floor = -np.inf if lookalike_threshold is None else lookalike_threshold
        self._scan = open_scan(seeds, config.max_neighbours + 1, floor, config, rows=rows)

    def add(self, ids: IdArray, vectors_ND: VectorArray) -> None:
        """Compare a batch with all seeds.

        Args:
            ids: (n,) S16, in no other batch.
            vectors_ND: (n, D) of norm 1, as they are or would be stored: cast to float16 first if
                that is how the store keeps them.

        Raises:
            ValueError: another dimension than the seeds', or a vector is not of norm 1.
        """
        if vectors_ND.shape != (len(ids), self.seeds.vectors.shape[1]):
            raise ValueError(
                f"a batch of {len(ids)} clips has vectors of shape {vectors_ND.shape}, seeds have "
                f"dimension {self.seeds.vectors.shape[1]}: embed both with the same checkpoint"
            )
        require_unit(vectors_ND, "batch")
        excluded = member(ids, self._excluded) if len(self._excluded) else None
        self._scan.add(Block(ids, vectors_ND, self.rows, excluded))
        self.rows += len(ids)

    def lists(self) -> NeighbourLists:
        """The neighbours so far; rows count all that was added."""
        return self._scan.lists()

    def hits(self) -> Hits:
        """The hits so far, as `lsb.search.exact.search` over a store of all that was added."""
        return ask(
            self.seeds,
            lambda seeds, limit, floor: self.lists(),
            neighbours=self.config.max_neighbours,
            max_neighbours=self.config.max_neighbours,
            lookalike_threshold=self.lookalike_threshold,
        )


@dataclass(frozen=True)
class SeedSearch:
    """A search that is made while a pool is embedded, and finished over the store.

    Attributes:
        seeds: what `lsb.search.ask.seeds_of` returned.
        config: widths and backend.
        lookalike_threshold: smallest similarity of a hit; None takes the nearest `max_neighbours`.
        excluded: ascending ids that must not be found.
    """

    seeds: Seeds
    config: SearchConfig
    lookalike_threshold: float | None
    excluded: IdArray

    @classmethod
    def of(
        cls,
        seed_ids: IdArray,
        seeds_QD: FloatArray,
        config: SearchConfig,
        *,
        lookalike_threshold: float | None,
        exclude: IdArray,
    ) -> SeedSearch:
        """With checked seeds, see `lsb.search.ask.seeds_of`."""
        seeds = seeds_of(seed_ids, seeds_QD)
        return cls(seeds, config, lookalike_threshold, np.unique(exclude))

    @cached_property
    def wave(self) -> Wave:
        """The first wave: what is asked of a part when it is embedded."""
        first = self.config.neighbours
        if self.lookalike_threshold is None:
            return Wave(self.seeds, self.config.max_neighbours + 1, -np.inf, self.excluded)
        return Wave(self.seeds, first + 1, self.lookalike_threshold, self.excluded)

    @property
    def key(self) -> dict[str, Any]:
        """What determines the files of parts, JSON-like."""
        return self.wave.key

    @staticmethod
    def files(part: str) -> tuple[str, ...]:
        """Names of the files that `write` makes."""
        return (lists_file(part),)

    def write(self, folder: Path, part: str, ids: IdArray, vectors_ND: VectorArray) -> None:
        """Search one part and write its lists.

        Args:
            folder: to write into.
            part: its name.
            ids: (n,) of its rows.
            vectors_ND: (n, D) as stored.
        """
        wave = self.wave
        if vectors_ND.shape[1] != wave.seeds.vectors.shape[1]:
            raise ValueError(
                f"{part} has vectors of dimension {vectors_ND.shape[1]}, the seeds of "
                f"{wave.seeds.vectors.shape[1]}: embed the seeds with the same towers or checkpoint"
            )
        scan = open_scan(wave.seeds, wave.limit, wave.floor, self.config, rows=len(ids))
        for start in range(0, len(ids), self.config.rows_per_block):
            rows = slice(start, start + self.config.rows_per_block)
            excluded = member(ids[rows], wave.excluded) if len(wave.excluded) else None
            scan.add(Block(ids[rows], vectors_ND[rows], start, excluded))
        write_lists(folder / lists_file(part), wave, scan.lists())

    def finish(self, store: Store) -> Hits:
        """Hits of a store whose parts hold the lists of this search.

        Seeds that are cut short are asked again over the store.

        Returns:
            Byte for byte what `lsb.search.exact.search` returns for the store.

        Raises:
            ValueError: the lists of a part are missing or of another search.
        """
        require_dimension(self.seeds.vectors, store)
        scan = gather_blocks(
            lambda: _blocks(store, self.config, self.excluded),
            self.config,
            len(store),
            partial(store_sample, store),
        )
        first = self.wave

        def gather(seeds: Seeds, limit: int, floor: float) -> NeighbourLists:
            if len(seeds) == len(first.seeds) and (limit, floor) == (first.limit, first.floor):
                return merge_wave(store.path, first, store, self.config)
            return scan(seeds, limit, floor)

        return ask(
            self.seeds,
            gather,
            neighbours=self.config.neighbours,
            max_neighbours=self.config.max_neighbours,
            lookalike_threshold=self.lookalike_threshold,
        )


def _blocks(store: Store, config: SearchConfig, excluded: IdArray) -> Iterator[Block]:
    first_row = 0
    for part in store.parts:
        yield from part_blocks(part, first_row, config.rows_per_block, excluded)
        first_row += part.rows
