"""Everything that can be wrong with a store, found in one pass over its files.

Each file is read once, from its start to its end: its hash, the vectors' norms and the rows' ids
come from the same bytes. Memory is bounded by a block of vectors, a row group, and one bucket of
ids (`lsb.store.duplicates`), whatever the number of rows; rows of a remote part are spooled to
$TMPDIR, one part at a time.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lsb.arrays import ArrayHeader, array_header
from lsb.ids import IdArray, from_arrow, sample_ids, texts, to_hex
from lsb.store.duplicates import Duplicates
from lsb.store.fault import Fault
from lsb.store.folder import Folder, LocalFolder, open_folder
from lsb.store.format import DTYPES, ROW_FIELDS, ROWS_PER_GROUP, Header, dtype_name, part_files
from lsb.store.format import read_header as read_rows_header
from lsb.store.norms import CHECK_ROWS, bad_rows
from lsb.store.part import StorePart, header_faults, refusal
from lsb.store.store import absent_files, make_parts, read_listing

LISTED = 100
"""Faults of one kind that are listed for each file; of the others only the number is told."""
READ_BYTES = 1 << 20


def find_faults(place: Path | str, *, options: Mapping[str, Any] | None = None) -> list[Fault]:
    """All faults of a store.

    Args:
        place: path or URL.
        options: of fsspec.

    Returns:
        Faults in part order, duplicate ids last; at most `LISTED` of one kind for each file, then
        one that says how many more there are. Empty for a store that is whole.

    Raises:
        StageError: there is no store at all, or its file system cannot be reached.
    """
    folder = open_folder(place, options)
    manifest, sizes = read_listing(folder)
    faults = list(absent_files(folder, manifest, sizes))
    wrong = {fault.file for fault in faults}
    expected = _expected(folder, manifest)
    if expected is None:
        parts = make_parts(folder, manifest, Header("", 0, "", (), 0, ""))
    else:
        parts = make_parts(folder, manifest, expected)
    with Duplicates(sum(part.rows for part in parts)) as duplicates:
        ends: list[int] = []
        for part in parts:
            files = manifest["parts"][part.name]["files"]
            check = _PartCheck(part, files, sizes, wrong)
            faults += check.faults(duplicates, ends[-1] if ends else 0, fit=expected is not None)
            ends.append((ends[-1] if ends else 0) + check.rows)
        faults += _listed(_duplicate_faults(parts, ends, duplicates), duplicates_of=folder)
    return faults


def _expected(folder: Folder, manifest: Mapping[str, Any]) -> Header | None:
    """Header of the first part that has a readable one."""
    for name in manifest["parts"]:
        rows_name = part_files(name)[1]
        try:
            with folder.parquet(rows_name) as file:
                return read_rows_header(file, rows_name, folder.file(rows_name))
        except (ValueError, OSError):
            continue
    return None


@dataclass
class _Hashed:
    """A stream whose bytes are hashed as they are read."""

    stream: BinaryIO
    sha256: Any = field(default_factory=hashlib.sha256)

    def read(self, count: int = -1, /) -> bytes:
        data = self.stream.read(count)
        self.sha256.update(data)
        return data

    def drain(self, target: BinaryIO | None = None) -> str:
        """Read to the end, into a file if there is one; returns the hash of the whole."""
        while data := self.read(READ_BYTES):
            if target is not None:
                target.write(data)
        return str(self.sha256.hexdigest())


@dataclass
class _PartCheck:
    """The pass over one part.

    Attributes:
        part: to check.
        files: of the part, as recorded.
        sizes: of all files in the folder.
        wrong: files of which a fault is known, so that their hash need not be told.
        rows: of its rows file, once it was read.
    """

    part: StorePart
    files: Mapping[str, Mapping[str, Any]]
    sizes: Mapping[str, int]
    wrong: set[str]
    rows: int = 0

    def faults(self, duplicates: Duplicates, first_row: int, *, fit: bool) -> Iterator[Fault]:
        """All faults but duplicate ids, which are only collected."""
        vectors_name, rows_name = part_files(self.part.name)
        folder, header = self.part.folder, None
        local: Folder | None = None
        with tempfile.TemporaryDirectory(prefix="vlmae-verify-") as spool:
            if rows_name in self.sizes:
                local, digest = self._rows_at_hand(rows_name, Path(spool))
                yield from self._hash_fault(rows_name, digest)
                try:
                    with local.parquet(rows_name) as file:
                        header = read_rows_header(file, rows_name, folder.file(rows_name))
                        self.rows = header.rows
                        yield from _listed(self._row_faults(file, duplicates, first_row))
                except (ValueError, OSError) as error:
                    if folder.file(rows_name) not in self.wrong:
                        yield refusal(error, folder.file(rows_name))
            if vectors_name in self.sizes:
                yield from self._vector_faults(vectors_name, local, header if fit else None)
        for name in self.files:
            if name in self.sizes and name not in (vectors_name, rows_name):
                with folder.stream(name) as stream:
                    yield from self._hash_fault(name, _Hashed(stream).drain())

    def _rows_at_hand(self, name: str, spool: Path) -> tuple[Folder, str]:
        """The rows file on a local disk, and its hash."""
        folder = self.part.folder
        with folder.stream(name) as stream:
            if folder.local(name) is not None:
                return folder, _Hashed(stream).drain()
            with open(spool / name, "wb") as target:
                return LocalFolder(spool), _Hashed(stream).drain(target)

    def _hash_fault(self, name: str, digest: str) -> Iterator[Fault]:
        place = self.part.folder.file(name)
        if digest != self.files[name]["sha256"] and place not in self.wrong:
            self.wrong.add(place)
            yield Fault(
                place,
                f"is damaged (its sha256 is {digest[:16]}..., manifest.json says "
                f"{self.files[name]['sha256'][:16]}...)",
                "delete this file and run the command that made it again, only this part is redone",
            )

    def _row_faults(
        self, file: pq.ParquetFile, duplicates: Duplicates, first_row: int
    ) -> Iterator[Fault]:
        place = self.part.folder.file(part_files(self.part.name)[1])
        types = {field.name: field.type for field in file.schema_arrow}
        for name, kind in ROW_FIELDS.items():
            if types.get(name) != kind:
                yield Fault(
                    place,
                    f"has column {name!r} of type {types.get(name)}, expected {kind}",
                    "write it with lsb.store.write_part",
                )
        if types.get("id") != ROW_FIELDS["id"] or types.get("key") != ROW_FIELDS["key"]:
            return
        start = 0
        fields = [name for name in ROW_FIELDS if name in types]
        for batch in file.iter_batches(batch_size=ROWS_PER_GROUP, columns=fields):
            nulls = {name: batch.column(name).is_null().to_numpy(False) for name in fields}
            for name, null in nulls.items():
                for row in np.flatnonzero(null).tolist():
                    remedy = "write it with lsb.store.write_part"
                    yield Fault(place, f"has no {name}", remedy, row=start + row)
            if not (nulls["id"].any() or nulls["key"].any()):
                ids, keys = from_arrow(batch.column("id")), texts(batch.column("key"))
                duplicates.add(ids, first_row + start)
                yield from self._id_faults(place, ids, keys, start)
            start += batch.num_rows

    def _id_faults(self, place: str, ids: IdArray, keys: list[str], start: int) -> Iterator[Fault]:
        right = sample_ids(keys)
        for row in np.flatnonzero(ids != right).tolist():
            yield Fault(
                place,
                f"has id {to_hex(ids[row : row + 1])[0]}, the id of its key is "
                f"{to_hex(right[row : row + 1])[0]}",
                "write it with lsb.store.write_part, which makes ids of keys",
                row=start + row,
                key=keys[row],
            )

    def _vector_faults(
        self, name: str, rows: Folder | None, header: Header | None
    ) -> Iterator[Fault]:
        """Header, hash and norms in one reading of the vectors."""
        place = self.part.folder.file(name)
        with self.part.folder.stream(name) as stream:
            hashed = _Hashed(stream)
            try:
                array: ArrayHeader | None = array_header(hashed, place)
            except ValueError as error:
                array = None
                if place not in self.wrong:
                    yield refusal(error, place)
                    self.wrong.add(place)
            found: list[Fault] = []
            if array is not None:
                if header is not None:
                    found += header_faults(self.part, header, array)
                found += _listed(self._norm_faults(hashed, array, place, rows))
            yield from self._hash_fault(name, hashed.drain())
            yield from found

    def _norm_faults(
        self, stream: _Hashed, array: ArrayHeader, place: str, rows: Folder | None
    ) -> Iterator[Fault]:
        if len(array.shape) != 2 or array.fortran or dtype_name(array.dtype) not in DTYPES:
            return
        row_bytes = array.shape[1] * array.dtype.itemsize
        for start in range(0, array.shape[0] if row_bytes else 0, CHECK_ROWS):
            count = min(CHECK_ROWS, array.shape[0] - start)
            data = _read_whole(stream, count * row_bytes)
            whole = len(data) // row_bytes
            block = np.frombuffer(data, array.dtype, whole * array.shape[1])
            for row, found, remedy in bad_rows(block.reshape(whole, -1)):
                yield Fault(
                    place, found, remedy, row=start + row, key=_key(rows, self.part, start + row)
                )
            if whole < count:
                return  # the file ends here, which its size has told


def _read_whole(stream: _Hashed, count: int) -> bytes:
    """`count` bytes, fewer only at the end of the file."""
    pieces = []
    while count and (data := stream.read(count)):
        pieces.append(data)
        count -= len(data)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _key(folder: Folder | None, part: StorePart, row: int) -> str | None:
    """Key of the clip in a row, None where it cannot be read."""
    if folder is None:
        return None
    try:
        keys = replace(part, folder=folder).unchecked_rows(np.asarray([row]), ["key"])["key"]
    except (ValueError, OSError, KeyError, pa.ArrowException):
        return None
    return str(keys[0].as_py()) if len(keys) else None


def _duplicate_faults(
    parts: list[StorePart], ends: list[int], duplicates: Duplicates
) -> Iterator[Fault]:
    for rows in duplicates.groups():
        number = np.searchsorted(ends, rows, side="right")
        first = parts[number[0]]
        inner = rows - np.asarray([0, *ends])[number]
        key = _key(first.folder, first, int(inner[0]))
        for index, row in zip(number[1:].tolist(), inner[1:].tolist(), strict=True):
            part = parts[index]
            yield Fault(
                part.folder.file(part_files(part.name)[1]),
                f"has the id of row {inner[0]} of {part_files(first.name)[1]}",
                "every clip key must be unique in a data set; rename or drop the copies",
                row=row,
                key=key,
            )


def _listed(faults: Iterable[Fault], duplicates_of: Folder | None = None) -> Iterator[Fault]:
    """The first faults, and one that says how many more there are."""
    last, more = None, 0
    for number, fault in enumerate(faults):
        if number < LISTED:
            yield fault
        else:
            last, more = fault, more + 1
    if last is not None:
        place = last.file if duplicates_of is None else duplicates_of.place
        yield Fault(place, f"has {more} more such rows", last.remedy)
