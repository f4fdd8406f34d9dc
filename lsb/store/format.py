"""What the files of a store's part are called and what their headers say."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lsb.ids import ID_TYPE

FORMAT = "vlmae-store"
VERSION = 1
METADATA_KEY = b"vlmae_store"
KINDS = ("pooled", "fused")
DTYPES = ("float32", "float16")
CODES_ENDING = ".codes.safetensors"
ROWS_PER_GROUP = 65_536
"""Rows that are read together where a few are wanted."""
ROW_FIELDS = {
    "id": ID_TYPE,
    "key": pa.string(),
    "shard": pa.string(),
    "offset": pa.int64(),
    "size": pa.int64(),
}

VectorArray = npt.NDArray[np.floating[Any]]


def part_files(name: str, codes: bool = False) -> tuple[str, ...]:
    """Names of the files of one part, as `lsb.artifact.Part.files` wants them.

    Args:
        name: of the part.
        codes: also the third file, with int8 codes of the vectors.
    """
    files = (f"{name}.npy", f"{name}.parquet")
    return (*files, f"{name}{CODES_ENDING}") if codes else files


@dataclass(frozen=True)
class Header:
    """What the rows file of a part says; parts of one store agree in all but `rows` and `file`.

    Attributes:
        kind: "pooled" or "fused".
        dimension: of the vectors.
        dtype: of the vectors, "float32" or "float16".
        columns: "name: type" of each column of the rows.
        rows: how many.
        file: the rows file, for messages.
    """

    kind: str
    dimension: int
    dtype: str
    columns: tuple[str, ...]
    rows: int
    file: str

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.split(": ", 1)[0] for column in self.columns)


def header_metadata(kind: str, vectors_ND: VectorArray) -> dict[bytes, bytes]:
    """Metadata of the rows file of a part with these vectors."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "kind": kind,
        "dimension": int(vectors_ND.shape[1]),
        "dtype": vectors_ND.dtype.name,
    }
    return {METADATA_KEY: json.dumps(header).encode()}


def read_header(file: pq.ParquetFile, name: str, place: str) -> Header:
    """The header of an open rows file.

    Args:
        file: of which the footer was read.
        name: of the file.
        place: the file's path or URL.

    Raises:
        ValueError: it is of another format or version.
    """
    schema = file.schema_arrow
    try:
        told = json.loads((schema.metadata or {}).get(METADATA_KEY, b"{}"))
    except ValueError:
        told = {}
    if told.get("format") != FORMAT or told.get("version") != VERSION:
        raise ValueError(
            f"{place} has format {told.get('format')!r} version {told.get('version')!r}, this "
            f"release reads {FORMAT!r} version {VERSION}: delete {place.rsplit('/', 1)[0]} and "
            "embed the pool again"
        )
    return Header(
        kind=str(told["kind"]),
        dimension=int(told["dimension"]),
        dtype=str(told["dtype"]),
        columns=tuple(f"{field.name}: {field.type}" for field in schema),
        rows=int(file.metadata.num_rows),
        file=name,
    )


def dtype_name(dtype: np.dtype[Any]) -> str:
    """How messages and headers name a dtype; little-endian floats by their short name."""
    return str(dtype.name if dtype.str in ("<f4", "<f2") else dtype.str)
