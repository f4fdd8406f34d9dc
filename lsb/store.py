"""Embedding store: unit vectors of clips (.npy, memory-mapped) and their rows (.parquet).

A store is a finished stage directory (`lsb.artifact`) with one part for each pool shard:

    <runs>/embed-3f2a.../
        manifest.json
        part-00000.npy       (n, D) float32 or float16, every row of norm 1
        part-00000.parquet   n rows: id, key, shard, offset, size, then any float columns

`offset` and `size` are the clip's byte range in `shard`, so that a chosen clip is read without a
scan of the pool. A store is "pooled" (frozen backbones, once for each clip) or "fused" (of one
checkpoint). Vectors are never all in memory: they are read block by block or gathered by id.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lsb.arrays import map_array
from lsb.artifact import Counts, Stage, open_stage
from lsb.ids import ID_TYPE, IdArray, from_arrow, require_unique, sample_ids, to_arrow, to_hex
from lsb.order import IndexArray

FORMAT = "vlmae-store"
VERSION = 1
METADATA_KEY = b"vlmae_store"
KINDS = ("pooled", "fused")
DTYPES = ("float32", "float16")
NORM_TOLERANCE = 1e-3
"""Largest deviation of a row's norm from 1; rounding to float16 moves a norm by at most 5e-4."""
CHECK_ROWS = 16384
ROW_FIELDS = {
    "id": ID_TYPE,
    "key": pa.string(),
    "shard": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
}

VectorArray = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class StorePart:
    """One part: where its two files are and how many rows they hold."""

    name: str
    vectors_path: Path
    rows_path: Path
    rows: int

    def vectors(self) -> VectorArray:
        """The part's vectors, (rows, D), memory-mapped."""
        return map_array(self.vectors_path)

    def ids(self) -> IdArray:
        """The part's ids, (rows,) S16."""
        return from_arrow(_read_rows(self.rows_path, ["id"])["id"])


def part_files(name: str) -> tuple[str, str]:
    """Names of the files that `write_part` makes, as `lsb.artifact.Part.files` wants them."""
    return f"{name}.npy", f"{name}.parquet"


def write_part(
    folder: Path, name: str, vectors_ND: VectorArray, rows: pa.Table, *, kind: str
) -> Counts:
    """Check and write one part of a store.

    Args:
        folder: existing folder, usually the one `lsb.artifact.run_stage` hands to a part.
        name: part name, e.g. "part-00000".
        vectors_ND: (N, D) float32 or float16, finite, rows of norm 1 within `NORM_TOLERANCE`.
        rows: N rows: key, shard (strings), offset, size (bytes, int64), then any number of float
            columns such as `probability_<task>`. An `id` column is added where it is absent.
        kind: "pooled" or "fused".

    Returns:
        Counts for the stage's manifest: {"rows": N}.

    Raises:
        ValueError: anything above does not hold; the message names the part, the value, the remedy.
    """
    if kind not in KINDS:
        raise ValueError(f"store kind {kind!r} is unknown: use one of {', '.join(KINDS)}")
    vectors_ND = np.ascontiguousarray(vectors_ND)
    if vectors_ND.ndim != 2 or vectors_ND.shape[1] == 0:
        raise ValueError(
            f"{name}: vectors have shape {vectors_ND.shape}, expected (N, D) with D > 0"
        )
    if vectors_ND.dtype.name not in DTYPES:
        raise ValueError(
            f"{name}: vectors are {vectors_ND.dtype.name}: convert them to {' or '.join(DTYPES)}"
        )
    if len(vectors_ND) != rows.num_rows:
        raise ValueError(
            f"{name}: {len(vectors_ND)} vectors but {rows.num_rows} rows: give one row each"
        )
    require_unit(vectors_ND, name)
    table = _checked_rows(name, rows)
    header = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "dimension": int(vectors_ND.shape[1]),
        "dtype": vectors_ND.dtype.name,
    }
    table = table.replace_schema_metadata({METADATA_KEY: json.dumps(header).encode()})
    vectors_name, rows_name = part_files(name)
    np.save(folder / vectors_name, vectors_ND, allow_pickle=False)
    pq.write_table(table, folder / rows_name, compression="zstd")
    return {"rows": len(vectors_ND)}


def require_unit(vectors_ND: VectorArray, name: str) -> None:
    """Refuse vectors that are not finite or not of norm 1.

    Args:
        vectors_ND: (N, D); read `CHECK_ROWS` rows at a time.
        name: what to call them in the message.

    Raises:
        ValueError: names the first bad row, its norm, and the remedy.
    """
    for start in range(0, len(vectors_ND), CHECK_ROWS):
        block = np.asarray(vectors_ND[start : start + CHECK_ROWS], dtype=np.float32)
        norm = np.sqrt(np.einsum("nd,nd->n", block, block))
        bad = np.flatnonzero(~(np.abs(norm - 1.0) <= NORM_TOLERANCE))
        if bad.size == 0:
            continue
        row = int(bad[0])
        if not np.isfinite(block[row]).all():
            raise ValueError(
                f"{name}: row {start + row} holds NaN or infinity: look for a diverged checkpoint "
                "or a clip that decodes to nothing"
            )
        raise ValueError(
            f"{name}: row {start + row} has norm {norm[row]:.6g}, expected 1 +- {NORM_TOLERANCE}: "
            "L2-normalise embeddings before they are stored or searched"
        )


class Store:
    """An embedding store that was checked when it was opened. Made by `Store.open`."""

    def __init__(self, stage: Stage, parts: Sequence[StorePart], header: dict[str, Any]):
        self.path = stage.path
        self.hash = stage.content
        self.parts = tuple(parts)
        self.kind = str(header["kind"])
        self.dimension = int(header["dimension"])
        self.dtype = str(header["dtype"])

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Store:
        """Open a finished store.

        Args:
            path: stage directory.
            verify: also check file hashes, that vectors are finite and of norm 1, and that no id
                occurs twice: one pass over the files. Without it only headers are read.

        Raises:
            ValueError: names the file, what was found, what was expected, and the remedy.
        """
        stage = open_stage(path, verify=verify)
        if not stage.manifest["parts"]:
            raise ValueError(f"{path} has no parts: embed at least one shard")
        parts: list[StorePart] = []
        first: dict[str, Any] = {}
        first_columns: list[str] = []
        for name, entry in stage.manifest["parts"].items():
            part, header, columns = _open_part(path, name, entry["counts"].get("rows"))
            if not parts:
                first, first_columns = header, columns
            _require_same(part, header, first, parts[0] if parts else part)
            if columns != first_columns:
                raise ValueError(
                    f"{part.rows_path} has columns {columns}, {parts[0].rows_path.name} has "
                    f"{first_columns}: delete {path} and embed the pool again with one config"
                )
            parts.append(part)
        store = cls(stage, parts, first)
        if verify:
            for part in parts:
                require_unit(part.vectors(), str(part.vectors_path))
            require_unique(store.ids)
        return store

    def __len__(self) -> int:
        return sum(part.rows for part in self.parts)

    @cached_property
    def ids(self) -> IdArray:
        """All ids in part order, (N,) S16: 16 bytes for each clip."""
        return np.concatenate([part.ids() for part in self.parts])

    @cached_property
    def columns(self) -> tuple[str, ...]:
        """Names of the row columns."""
        return tuple(pq.read_schema(self.parts[0].rows_path).names)

    def rows(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Rows of all parts, in part order, with the given columns (all by default).

        Raises:
            ValueError: a column is not in the store.
        """
        self._require_columns(columns or ())
        tables = [_read_rows(part.rows_path, columns) for part in self.parts]
        return pa.concat_tables(tables).replace_schema_metadata(None)

    def take(self, ids: IdArray, columns: Sequence[str]) -> pa.Table:
        """Rows of given clips in the order of `ids`; reads one part at a time.

        Raises:
            ValueError: an id or a column is not in the store.
        """
        self._require_columns(columns)
        pieces: list[pa.Table] = []
        places: list[IndexArray] = []
        for part, row, place in self._located(ids):
            table = _read_rows(part.rows_path, columns)
            pieces.append(table.take(row))
            places.append(place)
        if not pieces:
            pieces = [_read_rows(self.parts[0].rows_path, columns).slice(0, 0)]
            places = [np.empty(0, dtype=np.intp)]
        table = pa.concat_tables(pieces).replace_schema_metadata(None)
        return table.take(np.argsort(np.concatenate(places)))

    def keys(self, ids: IdArray) -> list[str]:
        """Keys of given clips, in the order of `ids`."""
        return [str(key) for key in self.take(ids, ["key"])["key"].to_pylist()]

    def vectors(self, ids: IdArray) -> npt.NDArray[np.float32]:
        """Vectors of given clips, (len(ids), D) float32, in the order of `ids`.

        Raises:
            ValueError: an id is not in the store.
        """
        out_ND = np.empty((len(ids), self.dimension), dtype=np.float32)
        for part, row, place in self._located(ids):
            out_ND[place] = part.vectors()[row]
        return out_ND

    def blocks(self, rows_per_block: int) -> Iterator[tuple[StorePart, int, VectorArray]]:
        """All vectors as (part, first row in it, (n, D) memory-mapped), n <= rows_per_block."""
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

    def _located(self, ids: IdArray) -> Iterator[tuple[StorePart, IndexArray, IndexArray]]:
        """For every part that holds some of `ids`: the part, rows in it, places in `ids`."""
        sorted_ids, order = self._sorted
        found = np.searchsorted(sorted_ids, ids)
        clipped = np.minimum(found, max(len(sorted_ids) - 1, 0))
        absent = (
            np.flatnonzero(sorted_ids[clipped] != ids) if len(sorted_ids) else np.arange(len(ids))
        )
        if absent.size:
            example = to_hex(ids[absent[:1]])[0]
            raise ValueError(
                f"{absent.size} of {len(ids)} ids are not in store {self.path}, first {example}: "
                "ask only for clips that this store has embedded"
            )
        position = order[clipped]
        ends = np.cumsum([part.rows for part in self.parts])
        number = np.searchsorted(ends, position, side="right")
        for index in np.unique(number):
            place = np.flatnonzero(number == index)
            part = self.parts[index]
            yield part, position[place] - (ends[index] - part.rows), place

    def _require_columns(self, columns: Sequence[str]) -> None:
        absent = [name for name in columns if name not in self.columns]
        if absent:
            raise ValueError(
                f"{self.path} has no column {absent[0]!r}, only {', '.join(self.columns)}: embed "
                "the pool with the stage that writes it (probabilities: stores of kind 'fused')"
            )


def _read_rows(path: Path, columns: Sequence[str] | None) -> pa.Table:
    return pq.read_table(path, columns=None if columns is None else list(columns))


def _checked_rows(name: str, rows: pa.Table) -> pa.Table:
    if "key" not in rows.column_names:
        raise ValueError(f"{name}: rows have no column 'key', only {rows.column_names}")
    keys = [str(key) for key in rows["key"].to_pylist()]
    ids = sample_ids(keys)
    require_unique(ids, keys)
    if "id" in rows.column_names:
        if not np.array_equal(from_arrow(rows["id"].cast(ID_TYPE)), ids):
            raise ValueError(f"{name}: column 'id' is not the id of 'key': use lsb.ids.sample_ids")
        rows = rows.drop_columns(["id"])
    rows = rows.add_column(0, "id", to_arrow(ids))
    absent = [field for field in ROW_FIELDS if field not in rows.column_names]
    if absent:
        raise ValueError(f"{name}: rows have no column {absent[0]!r}, only {rows.column_names}")
    scores = [column for column in rows.column_names if column not in ROW_FIELDS]
    for column in scores:
        if not pa.types.is_floating(rows.schema.field(column).type):
            raise ValueError(
                f"{name}: column {column!r} is {rows.schema.field(column).type}: columns after "
                f"{', '.join(ROW_FIELDS)} must be floats"
            )
    fields = [pa.field(field, kind) for field, kind in ROW_FIELDS.items()]
    fields += [rows.schema.field(column) for column in scores]
    # Same values, same bytes: the file must not remember how the table was put together.
    return rows.select([*ROW_FIELDS, *scores]).cast(pa.schema(fields)).combine_chunks()


def _open_part(
    path: Path, name: str, recorded_rows: int | None
) -> tuple[StorePart, dict[str, Any], list[str]]:
    vectors_name, rows_name = part_files(name)
    for file in (vectors_name, rows_name):
        if not (path / file).is_file():
            raise ValueError(f"{path / file} is missing: run the command that made {path} again")
    metadata = pq.read_metadata(path / rows_name)
    schema = pq.read_schema(path / rows_name)
    header = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    if header.get("format") != FORMAT or header.get("version") != VERSION:
        raise ValueError(
            f"{path / rows_name} has format {header.get('format')!r} version "
            f"{header.get('version')!r}, this release reads {FORMAT!r} version {VERSION}: delete "
            f"{path} and embed the pool again"
        )
    vectors = map_array(path / vectors_name)
    found = {
        "kind": header["kind"],
        "dimension": vectors.shape[1] if vectors.ndim == 2 else None,
        "dtype": vectors.dtype.name if vectors.dtype.str in ("<f4", "<f2") else vectors.dtype.str,
    }
    part = StorePart(name, path / vectors_name, path / rows_name, int(metadata.num_rows))
    for source, expected in (("its rows file", part.rows), ("the manifest", recorded_rows)):
        if expected is not None and len(vectors) != expected:
            raise ValueError(
                f"{part.vectors_path} has {len(vectors)} vectors, {source} says {expected}: delete "
                "both files of the part and run embed again, only this part is redone"
            )
    _require_same(part, found, {field: header[field] for field in found}, part)
    return part, header, [f"{field.name}: {field.type}" for field in schema]


def _require_same(
    part: StorePart, found: dict[str, Any], expected: dict[str, Any], reference: StorePart
) -> None:
    for field in ("kind", "dimension", "dtype"):
        if found[field] != expected[field]:
            raise ValueError(
                f"{part.vectors_path} has {field} {found[field]}, {reference.rows_path.name} says "
                f"{expected[field]}: delete {part.vectors_path.parent} and embed the pool again "
                "with one checkpoint and one config"
            )
