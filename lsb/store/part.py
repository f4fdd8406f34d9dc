"""One part of a store: its vectors, its rows and, where they were written, its codes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.arrays import ArrayHeader
from lsb.ids import IdArray, from_arrow
from lsb.order import IndexArray
from lsb.store.fault import Fault
from lsb.store.folder import Folder
from lsb.store.format import (
    CODES_ENDING,
    ROWS_PER_GROUP,
    Header,
    VectorArray,
    dtype_name,
    part_files,
    read_header,
)


@dataclass(frozen=True)
class StorePart:
    """One part. Its headers are checked when it is first used, not when the store is opened.

    Attributes:
        name: unique in the store.
        folder: where its files are.
        rows: how many, as the manifest says.
        first_row: number of its first row in the store, in part order.
        expected: header of the store's first part, with which this one must agree.
        has_codes: whether it has the third file.
    """

    name: str
    folder: Folder
    rows: int
    first_row: int
    expected: Header
    has_codes: bool = False

    @property
    def dimension(self) -> int:
        """D of the vectors."""
        return self.expected.dimension

    @property
    def dtype(self) -> str:
        """Of the vectors, "float32" or "float16"."""
        return self.expected.dtype

    @property
    def vectors_path(self) -> Path:
        """The .npy file of a local part."""
        return self._path(part_files(self.name)[0])

    @property
    def rows_path(self) -> Path:
        """The .parquet file of a local part."""
        return self._path(part_files(self.name)[1])

    @property
    def codes_path(self) -> Path | None:
        """The codes file of a local part; None where there are no codes or the part is remote."""
        return self.folder.local(f"{self.name}{CODES_ENDING}") if self.has_codes else None

    def read_codes(self) -> bytes | None:
        """The whole codes file, local or remote; None where there are no codes."""
        return self.folder.read(f"{self.name}{CODES_ENDING}") if self.has_codes else None

    def vectors(self) -> VectorArray:
        """The part's vectors, (rows, D): memory-mapped, of a remote part a `RemoteArray`, which is
        indexed by rows and slices alike and fetches no more than that.

        Raises:
            ValueError: the part's headers do not fit the store; so for all methods below.
        """
        self.require_fit()
        return self.folder.array(part_files(self.name)[0])

    def ids(self) -> IdArray:
        """The part's ids, (rows,) S16."""
        return from_arrow(self.read_rows(["id"])["id"])

    def id_blocks(self, rows: int) -> Iterator[IdArray]:
        """All ids, `rows` at a time and the rest at the end, without all of them in memory."""
        waiting = np.empty(0, dtype="S16")
        for batch in self.row_blocks(["id"], rows):
            waiting = np.concatenate([waiting, from_arrow(batch.column(0))])
            while len(waiting) >= rows:
                yield waiting[:rows]
                waiting = waiting[rows:]
        if len(waiting):
            yield waiting

    def row_blocks(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """All rows with some columns, at most `rows` at a time, in order."""
        self.require_fit()
        with self.folder.parquet(part_files(self.name)[1]) as file:
            yield from file.iter_batches(
                batch_size=min(rows, ROWS_PER_GROUP),
                columns=list(columns),
                use_threads=file.metadata.num_row_groups > 1,  # small ones wait for the threads
            )

    def read_rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """All rows with some columns (all by default)."""
        self.require_fit()
        wanted = list(self.expected.names if columns is None else columns)
        with self.folder.parquet(part_files(self.name)[1]) as file:
            table = file.read(columns=wanted)
        return table.select(wanted).replace_schema_metadata(None)

    def take_rows(self, rows_P: IndexArray, columns: Sequence[str]) -> pa.Table:
        """Some rows, in the order of `rows_P` (numbers in this part); only the row groups that hold
        them are read, one after the other."""
        self.require_fit()
        return self.unchecked_rows(rows_P, columns)

    def unchecked_rows(self, rows_P: IndexArray, columns: Sequence[str]) -> pa.Table:
        """As `take_rows`, whatever the headers say."""
        wanted = list(columns)
        with self.folder.parquet(part_files(self.name)[1]) as file:
            told = file.metadata
            sizes = [told.row_group(group).num_rows for group in range(told.num_row_groups)]
            ends = np.cumsum(sizes, dtype=np.int64)
            group_P = np.searchsorted(ends, rows_P, side="right")
            pieces: list[pa.Table] = []
            places: list[npt.NDArray[np.intp]] = []
            for group in np.unique(group_P).tolist():
                place = np.flatnonzero(group_P == group)
                table = file.read_row_group(group, columns=wanted).select(wanted)
                pieces.append(table.take(rows_P[place] - (ends[group] - sizes[group])))
                places.append(place)
            if not pieces:
                return file.schema_arrow.empty_table().select(wanted).replace_schema_metadata(None)
        table = pa.concat_tables(pieces).replace_schema_metadata(None)
        return table.take(np.argsort(np.concatenate(places)))

    def header_faults(self) -> Iterator[Fault]:
        """What its headers say that does not fit the store; reads no vector and no row."""
        vectors_name, rows_name = part_files(self.name)
        place = self.folder.file(rows_name)
        try:
            with self.folder.parquet(rows_name) as file:
                header = read_header(file, rows_name, place)
            place = self.folder.file(vectors_name)
            array = self.folder.header(vectors_name)
        except ValueError as error:
            yield refusal(error, place)
            return
        yield from header_faults(self, header, array)

    @cached_property
    def _fault(self) -> Fault | None:
        return next(self.header_faults(), None)

    def require_fit(self) -> None:
        """Check the headers once; raises ValueError if they do not fit."""
        if self._fault is not None:
            raise ValueError(str(self._fault))

    def _path(self, name: str) -> Path:
        path = self.folder.local(name)
        if path is None:
            raise ValueError(
                f"{self.folder.file(name)} has no local path: read the part by its methods, or "
                "copy the store to a local folder"
            )
        return path


def header_faults(part: StorePart, header: Header, array: ArrayHeader) -> Iterator[Fault]:
    """What the two headers of a part say that does not fit each other or the store."""
    vectors_name, rows_name = part_files(part.name)
    folder, vectors = part.folder.place, part.folder.file(vectors_name)
    anew = f"delete {folder} and embed the pool again with one checkpoint and one config"
    if array.fortran and min(array.shape, default=0) > 1:
        yield Fault(vectors, "is stored column by column", "write it with lsb.store.write_part")
    for source, rows in (("its rows file", header.rows), ("the manifest", part.rows)):
        if array.shape[:1] != (rows,):
            found = array.shape[0] if array.shape else "no"
            yield Fault(
                vectors,
                f"has {found} vectors, {source} says {rows}",
                "delete both files of the part and run embed again, only this part is redone",
            )
    dimension = array.shape[1] if len(array.shape) == 2 else None
    for source, expected in ((rows_name, header), (part.expected.file, part.expected)):
        told = {"kind": expected.kind, "dimension": expected.dimension, "dtype": expected.dtype}
        has = {"kind": header.kind, "dimension": dimension, "dtype": dtype_name(array.dtype)}
        faults = [
            Fault(vectors, f"has {field} {has[field]}, {source} says {value}", anew)
            for field, value in told.items()
            if has[field] != value
        ]
        yield from faults
        if faults or source == part.expected.file:
            break
    if header.columns != part.expected.columns:
        yield Fault(
            part.folder.file(rows_name),
            f"has columns {list(header.columns)}, {part.expected.file} has "
            f"{list(part.expected.columns)}",
            f"delete {folder} and embed the pool again with one config",
        )


def refusal(error: Exception, place: str) -> Fault:
    """An error that tells why a file cannot be read, as a fault of this file."""
    text = str(error).removeprefix(f"{place} ")
    if ": " not in text:
        return Fault(place, f"cannot be read ({text})", "run the command that made it again")
    found, remedy = text.rsplit(": ", 1)
    return Fault(place, found, remedy)
