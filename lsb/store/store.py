"""An open store: rows and vectors by number or id, or block by block."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.files import StageError
from lsb.ids import IdArray, to_hex
from lsb.manifest import FILE, absent_manifest, parse_manifest
from lsb.order import IndexArray
from lsb.store.fault import Fault
from lsb.store.folder import Folder, open_folder
from lsb.store.format import CODES_ENDING, Header, VectorArray, part_files, read_header
from lsb.store.part import StorePart

RowNumbers = npt.NDArray[np.integer[Any]]


class Store:
    """An embedding store. Made by `Store.open`.

    Attributes:
        place: where it is: a path, or a URL.
        folder: access to its files.
        manifest: of its stage.
        hash: of its content, by which later stages refer to it.
        parts: in order.
        kind: "pooled" or "fused".
        dimension: D of its vectors.
        dtype: of its vectors, "float32" or "float16".
        columns: names of the row columns.
    """

    def __init__(
        self, folder: Folder, manifest: dict[str, Any], parts: Sequence[StorePart], header: Header
    ):
        self.place = folder.place
        self.folder = folder
        self.manifest = manifest
        self.hash = str(manifest["content"])
        self.parts = tuple(parts)
        self.kind = header.kind
        self.dimension = header.dimension
        self.dtype = header.dtype
        self.columns = header.names
        # Number of the row behind the last of each part.
        self._ends = np.cumsum([part.rows for part in parts], dtype=np.int64)

    @classmethod
    def open(
        cls,
        path: Path | str,
        *,
        verify: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> Store:
        """Open a finished store.

        Read are the manifest, one listing of the folder and the headers of the first part, whatever
        the number of rows. The headers of any other part are checked before it gives a vector or a
        row. Opening and reading block by block need no memory that grows with the rows.

        Args:
            path: stage directory, local or any URL that fsspec knows.
            verify: also read all of it: file hashes, headers, norms, NaN, ids of keys, duplicate
                ids (`lsb.store.checks`).
            options: of fsspec, e.g. `endpoint_url`; credentials belong in the environment.

        Raises:
            ValueError: names the file, what was found, what was expected, and the remedy.
        """
        if verify:
            from lsb.store.checks import find_faults

            faults = find_faults(path, options=options)
            if faults:
                more = f" (and {len(faults) - 1} more faults)" if len(faults) > 1 else ""
                raise StageError(f"{faults[0]}{more}")
        folder = open_folder(path, options)
        manifest, sizes = read_listing(folder)
        for fault in absent_files(folder, manifest, sizes):
            raise StageError(str(fault))
        rows_name = part_files(next(iter(manifest["parts"])))[1]
        with folder.parquet(rows_name) as file:
            header = read_header(file, rows_name, folder.file(rows_name))
        store = cls(folder, manifest, make_parts(folder, manifest, header), header)
        store.parts[0].require_fit()
        return store

    @property
    def path(self) -> Path:
        """Folder of a local store.

        Raises:
            ValueError: the store is remote.
        """
        path = self.folder.local("")
        if path is None:
            raise ValueError(
                f"{self.place} has no local path: copy the store to a local folder for this"
            )
        return path

    def __len__(self) -> int:
        return int(self._ends[-1])

    @cached_property
    def ids(self) -> IdArray:
        """All ids in part order, (N,) S16: 16 bytes for each clip, kept. For small stores."""
        return np.concatenate([part.ids() for part in self.parts])

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of all parts, in part order, with the given columns (all by default).

        Raises:
            ValueError: a column is not in the store.
        """
        self.require_columns(columns or ())
        return pa.concat_tables([part.read_rows(columns) for part in self.parts])

    def take_rows(self, rows_P: RowNumbers, columns: Sequence[str]) -> pa.Table:
        """Rows by their number, in the order of `rows_P`; repeats are allowed.

        Only the row groups that hold them are read, one after the other.

        Args:
            rows_P: (P,) numbers in the store, in part order (`StorePart.first_row`).
            columns: to read.

        Raises:
            ValueError: a number or a column is not in the store.
        """
        self.require_columns(columns)
        pieces: list[pa.Table] = []
        places: list[IndexArray] = []
        for part, row, place in self._dealt(rows_P):
            pieces.append(part.take_rows(row, columns))
            places.append(place)
        if not pieces:
            return self.parts[0].take_rows(np.empty(0, dtype=np.intp), columns)
        return pa.concat_tables(pieces).take(np.argsort(np.concatenate(places)))

    def take_vectors(self, rows_P: RowNumbers) -> npt.NDArray[np.float32]:
        """Vectors by their number, (P, D) float32, in the order of `rows_P`.

        Raises:
            ValueError: a number is not in the store.
        """
        out_PD = np.empty((len(rows_P), self.dimension), dtype=np.float32)
        for part, row, place in self._dealt(rows_P):
            out_PD[place] = part.vectors()[row]
        return out_PD

    def take(self, ids: IdArray, columns: Sequence[str]) -> pa.Table:
        """Rows of given clips in the order of `ids`. Sorts all ids once: for small stores.

        Raises:
            ValueError: an id or a column is not in the store.
        """
        self.require_columns(columns)
        return self.take_rows(self._rows_of(ids), columns)

    def keys(self, ids: IdArray) -> list[str]:
        """Keys of given clips, in the order of `ids`; see `take`."""
        return [str(key) for key in self.take(ids, ["key"])["key"].to_pylist()]

    def vectors(self, ids: IdArray) -> npt.NDArray[np.float32]:
        """Vectors of given clips, (len(ids), D) float32, in the order of `ids`; see `take`.

        Raises:
            ValueError: an id is not in the store.
        """
        return self.take_vectors(self._rows_of(ids))

    def blocks(self, rows_per_block: int) -> Iterator[tuple[StorePart, int, VectorArray]]:
        """All vectors as (part, first row in it, (n, D)), n <= rows_per_block.

        A block of a local store is memory-mapped, one of a remote store is fetched when it is its
        turn. Nothing else is mapped or kept.
        """
        if rows_per_block < 1:
            raise ValueError(f"rows_per_block is {rows_per_block}: give at least 1")
        for part in self.parts:
            vectors_ND = part.vectors()
            for start in range(0, part.rows, rows_per_block):
                yield part, start, vectors_ND[start : start + rows_per_block]

    @cached_property
    def _sorted(self) -> tuple[IdArray, IndexArray]:
        order = np.argsort(self.ids, kind="stable")
        return self.ids[order], order

    def _rows_of(self, ids: IdArray) -> IndexArray:
        """Numbers of the rows of `ids`."""
        sorted_ids, order = self._sorted
        found = np.searchsorted(sorted_ids, ids)
        clipped = np.minimum(found, max(len(sorted_ids) - 1, 0))
        absent = (
            np.flatnonzero(sorted_ids[clipped] != ids) if len(sorted_ids) else np.arange(len(ids))
        )
        if absent.size:
            example = to_hex(ids[absent[:1]])[0]
            raise ValueError(
                f"{absent.size} of {len(ids)} ids are not in store {self.place}, first {example}: "
                "ask only for clips that this store has embedded"
            )
        return order[clipped] if len(order) else order

    def _dealt(self, rows_P: RowNumbers) -> Iterator[tuple[StorePart, IndexArray, IndexArray]]:
        """For every part that holds some rows: the part, rows in it, places in `rows_P`."""
        rows = np.asarray(rows_P, dtype=np.int64)
        outside = np.flatnonzero((rows < 0) | (rows >= len(self)))
        if outside.size:
            raise ValueError(
                f"row {rows[outside[0]]} is not among the {len(self)} rows of store {self.place}: "
                "rows are numbered from 0 in part order"
            )
        number = np.searchsorted(self._ends, rows, side="right")
        for index in np.unique(number).tolist():
            place = np.flatnonzero(number == index)
            part = self.parts[index]
            yield part, rows[place] - part.first_row, place

    def require_columns(self, columns: Sequence[str]) -> None:
        """Refuse names of columns that the rows do not have.

        Raises:
            ValueError: names the first and says what writes it.
        """
        absent = [name for name in columns if name not in self.columns]
        if absent:
            raise ValueError(
                f"{self.place} has no column {absent[0]!r}, only {', '.join(self.columns)}: embed "
                "the pool with the stage that writes it (probabilities: stores of kind 'fused')"
            )


def read_listing(folder: Folder) -> tuple[dict[str, Any], dict[str, int]]:
    """The manifest of a store and the bytes of each file in its folder.

    Raises:
        StageError: the folder is no finished stage, or one without parts.
    """
    sizes = folder.sizes()
    if FILE not in sizes:
        raise absent_manifest(folder.place)
    manifest = parse_manifest(folder.read(FILE), folder.place)
    if not manifest["parts"]:
        raise StageError(f"{folder.place} has no parts: embed at least one shard")
    for name, entry in manifest["parts"].items():
        if not set(part_files(name)) <= set(entry["files"]) or "rows" not in entry["counts"]:
            raise StageError(
                f"{folder.place} is no store, its part {name!r} has the files "
                f"{', '.join(entry['files'])}: give the folder of an embed stage"
            )
    return manifest, sizes


def absent_files(
    folder: Folder, manifest: Mapping[str, Any], sizes: Mapping[str, int]
) -> Iterator[Fault]:
    """Files that are missing or of another size than the manifest says."""
    for entry in manifest["parts"].values():
        for name, recorded in entry["files"].items():
            if name not in sizes:
                yield Fault(
                    folder.file(name),
                    "is missing",
                    "run the command that made it again, only this part is redone",
                )
            elif sizes[name] != recorded["bytes"]:
                yield Fault(
                    folder.file(name),
                    f"is damaged (it has {sizes[name]} bytes, manifest.json says "
                    f"{recorded['bytes']})",
                    "delete this file and run again, only this part is redone",
                )


def make_parts(folder: Folder, manifest: Mapping[str, Any], header: Header) -> list[StorePart]:
    """The parts that a manifest names."""
    parts: list[StorePart] = []
    first_row = 0
    for name, entry in manifest["parts"].items():
        rows = int(entry["counts"]["rows"])
        has_codes = f"{name}{CODES_ENDING}" in entry["files"]
        parts.append(StorePart(name, folder, rows, first_row, header, has_codes))
        first_row += rows
    return parts
