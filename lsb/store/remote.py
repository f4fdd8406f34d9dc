"""Vectors that lie behind a URL, read by byte range."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lsb.arrays import ArrayHeader
from lsb.order import IndexArray

GAP_BYTES = 1 << 16
"""Unwanted bytes between two wanted rows that are cheaper to read than to leave out."""
RANGE_BYTES = 1 << 23
"""Most bytes of one range where rows are gathered; ranges are fetched side by side."""

Fetch = Callable[[Sequence[tuple[int, int]]], list[bytes]]


@dataclass(frozen=True)
class RemoteArray:
    """A (N, D) array of an .npy file of which only what is asked for is fetched.

    `array[start:stop]` fetches one range, `array[rows]` (integers, any order, repeats allowed) the
    ranges around the rows; both give a numpy array in memory.

    Attributes:
        header: of the file.
        fetch: (start, stop) of byte ranges -> their bytes.
    """

    header: ArrayHeader
    fetch: Fetch

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, D)."""
        return self.header.shape

    @property
    def ndim(self) -> int:
        """2."""
        return len(self.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the values."""
        return self.header.dtype

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | int | npt.ArrayLike) -> npt.NDArray[Any]:
        if isinstance(index, slice):
            start, stop, step = index.indices(len(self))
            if step == 1:
                (block,) = self._blocks([(start, max(start, stop))])
                return block
            return self._rows(np.arange(start, stop, step))
        rows = np.asarray(index)
        if rows.dtype == np.bool_:
            if rows.shape != (len(self),):
                raise IndexError(f"a mask of shape {rows.shape} for {len(self)} rows")
            rows = np.flatnonzero(rows)
        if rows.size == 0:
            rows = rows.astype(np.intp)
        if rows.dtype.kind not in "iu" or rows.ndim > 1:
            raise IndexError(
                f"rows are {rows.dtype} of shape {rows.shape}: index remote vectors by a slice or "
                "by (P,) integers"
            )
        return self._rows(rows.reshape(-1)).reshape(*rows.shape, *self.shape[1:])

    def _rows(self, rows: npt.NDArray[Any]) -> npt.NDArray[Any]:
        outside = np.flatnonzero((rows < -len(self)) | (rows >= len(self)))
        if outside.size:
            raise IndexError(f"row {rows[outside[0]]} is not among {len(self)} rows")
        out = np.empty((len(rows), *self.shape[1:]), dtype=self.dtype)
        if len(rows) == 0:
            return out
        wanted, place = np.unique(np.where(rows < 0, rows + len(self), rows), return_inverse=True)
        spans = self._spans(wanted)
        number = np.searchsorted([start for start, _ in spans], wanted, side="right") - 1
        for index, block in enumerate(self._blocks(spans)):
            here = np.flatnonzero(number[place] == index)
            out[here] = block[wanted[place[here]] - spans[index][0]]
        return out

    def _spans(self, wanted: IndexArray) -> list[tuple[int, int]]:
        """Rows to fetch together, as (first, behind the last), for ascending rows."""
        size = max(1, self._row_bytes)
        spans: list[tuple[int, int]] = []
        for row in wanted.tolist():
            if spans:
                first, stop = spans[-1]
                if (row - stop) * size <= GAP_BYTES and (row + 1 - first) * size <= RANGE_BYTES:
                    spans[-1] = (first, row + 1)
                    continue
            spans.append((row, row + 1))
        return spans

    @property
    def _row_bytes(self) -> int:
        return int(self.dtype.itemsize * np.prod(self.shape[1:], dtype=np.int64))

    def _blocks(self, spans: Sequence[tuple[int, int]]) -> list[npt.NDArray[Any]]:
        size, offset = self._row_bytes, self.header.offset
        ranges = [(offset + first * size, offset + stop * size) for first, stop in spans]
        return [
            np.frombuffer(data, dtype=self.dtype).reshape(-1, *self.shape[1:])
            for data in self.fetch(ranges)
        ]
