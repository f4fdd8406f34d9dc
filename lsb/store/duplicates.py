"""Ids that occur more than once among any number of rows, in bounded memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import numpy as np

from lsb.ids import IdArray, duplicate_positions
from lsb.order import IndexArray

RECORD = np.dtype([("id", "S16"), ("row", "<i8")])
ROWS_PER_BUCKET = 1 << 21
MOST_BUCKETS = 512


class Duplicates(AbstractContextManager["Duplicates"]):
    """Collects ids in temporary files by their leading bits, then looks into one file at a time.

    Needs 24 bytes of temporary disk a row ($TMPDIR) and memory for one bucket: about 2M rows and
    200 MB, up to 1 billion rows; beyond that a 512th of the rows.

    Args:
        rows: how many will come, about.
    """

    def __init__(self, rows: int):
        buckets = 1
        while buckets < MOST_BUCKETS and rows > buckets * ROWS_PER_BUCKET:
            buckets *= 2
        self._shift = 16 - (buckets.bit_length() - 1)
        self._buckets = buckets
        self._folder = tempfile.TemporaryDirectory(prefix="vlmae-duplicates-")

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._folder.cleanup()

    def add(self, ids: IdArray, first_row: int) -> None:
        """Add ids (n,) of consecutive rows."""
        records = np.empty(len(ids), dtype=RECORD)
        records["id"] = ids
        records["row"] = np.arange(first_row, first_row + len(ids))
        words = np.ascontiguousarray(ids, dtype="S16").view(">u2").reshape(-1, 8)[:, 0]
        bucket = words.astype(np.uint32) >> self._shift
        order = np.argsort(bucket, kind="stable")
        records, bucket = records[order], bucket[order]
        for number in np.unique(bucket).tolist():
            start, stop = np.searchsorted(bucket, [number, number + 1])
            with open(self._file(number), "ab") as file:
                file.write(records[start:stop].tobytes())

    def groups(self) -> Iterator[IndexArray]:
        """Rows of each id that occurs more than once, ascending, ids in order."""
        for number in range(self._buckets):
            if not self._file(number).is_file():
                continue
            records = np.fromfile(self._file(number), dtype=RECORD)
            ids = np.ascontiguousarray(records["id"])
            rows = records["row"]
            twice = duplicate_positions(ids)
            if twice.size == 0:
                continue
            order = twice[np.lexsort((rows[twice], ids[twice]))]
            starts = np.flatnonzero(ids[order][1:] != ids[order][:-1]) + 1
            for group in np.split(order, starts):
                yield rows[group].astype(np.intp)

    def _file(self, number: int) -> Path:
        return Path(self._folder.name) / str(number)
