"""The best clips of a store by a score, block by block: memory does not grow with the pool.

Order is (-score, id), so that neither the cut into parts nor the order of rows shows in the result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from lsb.ids import IdArray, from_arrow, to_hex
from lsb.order import descending, member
from lsb.store import Store, StorePart, VectorArray

FloatArray = npt.NDArray[np.float64]
RowArray = npt.NDArray[np.int64]
BLOCK_ROWS = 65_536


@dataclass(frozen=True)
class PoolBlock:
    """Some rows of a store that follow each other.

    Attributes:
        ids: (n,) S16.
        columns: name -> (n,) float64.
        part: of the store.
        start: number in the part of the first row.
    """

    ids: IdArray
    columns: dict[str, FloatArray]
    part: StorePart
    start: int

    @property
    def first_row(self) -> int:
        """Number in the store of the first row."""
        return self.part.first_row + self.start

    def vectors(self) -> VectorArray:
        """(n, D) as stored: a memory-mapped view, of a remote store read now.

        The part is mapped anew for each block: pages of a mapping count as memory until it goes.
        """
        return self.part.vectors()[self.start : self.start + len(self.ids)]


Score = Callable[[PoolBlock], FloatArray]


@dataclass(frozen=True)
class Ranked:
    """Clips in the order (-score, id).

    Attributes:
        ids: (K,) S16.
        score: (K,) float64.
        row: (K,) their numbers in the store.
    """

    ids: IdArray
    score: FloatArray
    row: RowArray

    def __getitem__(self, rows: npt.NDArray[np.intp] | slice) -> Ranked:
        return Ranked(self.ids[rows], self.score[rows], self.row[rows])


@dataclass
class Best:
    """Keeps the `count` best of all clips it is shown; at most twice as many and a block are held.

    Attributes:
        count: clips to keep.
    """

    count: int
    _held: list[Ranked] = field(default_factory=list)
    _waiting: int = 0
    _bound: float = -np.inf

    def add(self, clips: Ranked) -> None:
        """Show some clips, in any order.

        Raises:
            ValueError: a score is NaN; names the clip.
        """
        bad = np.flatnonzero(np.isnan(clips.score))
        if bad.size:
            raise ValueError(
                f"{bad.size} of {len(clips.score)} scores are NaN, first of clip "
                f"{to_hex(clips.ids[bad[:1]])[0]}: embed the pool again with a checkpoint that "
                "did not diverge"
            )
        # Of equal scores the smaller id wins, so that one at the bound may still come in.
        good = clips[np.flatnonzero(clips.score >= self._bound)]
        self._held.append(good)
        self._waiting += len(good.ids)
        if self._waiting > 2 * self.count:
            self._held = [self.ranked()]
            self._waiting = len(self._held[0].ids)
            if self.count:
                self._bound = float(self._held[0].score[-1])

    def ranked(self) -> Ranked:
        """The best `count` of those shown, fewer where there were fewer."""
        if not self._held:
            return Ranked(np.empty(0, "S16"), np.empty(0), np.empty(0, np.int64))
        joined = Ranked(
            np.concatenate([clips.ids for clips in self._held]),
            np.concatenate([clips.score for clips in self._held]),
            np.concatenate([clips.row for clips in self._held]),
        )
        return joined[descending(joined.score, joined.ids)[: self.count]]


@dataclass(frozen=True)
class PoolRanking:
    """What one pass over a store found.

    Attributes:
        best: the best clips that are not excluded.
        excluded: (E,) ascending numbers of the store's excluded rows.
        free: clips of the store that are not excluded.
    """

    best: Ranked
    excluded: RowArray
    free: int


def rank_pool(
    store: Store,
    columns: Sequence[str],
    score: Score,
    count: int,
    exclude: IdArray,
    *,
    block_rows: int = BLOCK_ROWS,
) -> PoolRanking:
    """The `count` best clips of a store by a score of each clip's own.

    Args:
        store: local or remote; opened by `lsb.store.Store.open`.
        columns: float columns of its rows that `score` reads.
        score: (n,) float64 of a block's clips, from nothing but a clip's own values.
        count: clips wanted.
        exclude: ids to leave out.
        block_rows: rows that are held at a time.

    Raises:
        ValueError: the store has no such column, or a score is NaN.
    """
    best, excluded, free = Best(count), np.unique(exclude), 0
    left_out: list[RowArray] = []
    for block in pool_blocks(store, columns, block_rows):
        out = member(block.ids, excluded)
        row = block.first_row + np.arange(len(block.ids), dtype=np.int64)
        kept = np.flatnonzero(~out)
        left_out.append(row[out])
        free += len(kept)
        score_n = score(block)
        best.add(Ranked(block.ids[kept], score_n[kept], row[kept]))
    rows = np.concatenate([np.empty(0, np.int64), *left_out])
    return PoolRanking(best.ranked(), rows, free)


def pool_blocks(store: Store, columns: Sequence[str], block_rows: int) -> Iterator[PoolBlock]:
    """All rows of a store, some at a time; a block ends with its part.

    Raises:
        ValueError: the store has no such column.
    """
    store.require_columns(columns)
    for part in store.parts:
        start = 0
        for batch in part.row_blocks(["id", *columns], block_rows):
            values = {
                name: np.asarray(
                    batch.column(name).to_numpy(zero_copy_only=False), dtype=np.float64
                )
                for name in columns
            }
            ids = from_arrow(batch.column("id"))
            yield PoolBlock(ids, values, part, start)
            start += batch.num_rows
