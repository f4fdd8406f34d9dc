"""Sample identity: the 128-bit blake2b of a clip's key (design, contract 1).

On disk an id is 16 fixed bytes (`pyarrow.binary(16)`); in memory a column of ids is a `(N,)` numpy
array of dtype `S16`. numpy strips trailing NUL bytes from single `S16` items, which is harmless for
sorting, searching and equality of whole columns but not for printing: go through `to_hex`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

ID_BYTES = 16
ID_TYPE = pa.binary(ID_BYTES)
IdArray = npt.NDArray[np.bytes_]


def sample_id(key: str) -> bytes:
    """The 16-byte id of one clip key."""
    return hashlib.blake2b(key.encode("utf-8"), digest_size=ID_BYTES).digest()


def sample_ids(keys: Iterable[str]) -> IdArray:
    """Ids of many keys, `(N,)` of dtype S16."""
    return from_bytes([sample_id(key) for key in keys])


def from_bytes(ids: Sequence[bytes]) -> IdArray:
    """Pack 16-byte ids into a `(N,)` S16 array.

    Raises:
        ValueError: an id is not 16 bytes long.
    """
    for value in ids:
        if len(value) != ID_BYTES:
            raise ValueError(f"an id has {len(value)} bytes, expected {ID_BYTES}: {value.hex()}")
    return np.frombuffer(b"".join(ids), dtype=f"S{ID_BYTES}")


def to_bytes(ids: IdArray) -> list[bytes]:
    """Unpack a `(N,)` S16 array into 16-byte ids, trailing NUL bytes kept."""
    raw = np.ascontiguousarray(ids, dtype=f"S{ID_BYTES}").tobytes()
    return [raw[start : start + ID_BYTES] for start in range(0, len(raw), ID_BYTES)]


def to_hex(ids: IdArray) -> list[str]:
    """Ids as 32 hexadecimal digits each, the form in which ledgers and messages show them."""
    return [value.hex() for value in to_bytes(ids)]


def from_hex(ids: Iterable[str]) -> IdArray:
    """Inverse of `to_hex`."""
    return from_bytes([bytes.fromhex(value) for value in ids])


def to_arrow(ids: IdArray) -> pa.Array[Any]:
    """Ids as a pyarrow column of 16 fixed bytes."""
    return pa.array(to_bytes(ids), type=ID_TYPE)


def from_arrow(column: pa.Array[Any] | pa.ChunkedArray[Any]) -> IdArray:
    """Inverse of `to_arrow`."""
    values: list[Any] = column.to_pylist()
    return from_bytes(values)


def texts(column: pa.Array[Any] | pa.ChunkedArray[Any]) -> list[str]:
    """A column of strings, such as keys, as a list."""
    return [str(value) for value in column.to_pylist()]


def require_unique(ids: IdArray, keys: Sequence[str] | None = None) -> None:
    """Refuse duplicate ids.

    Raises:
        ValueError: names the first duplicate (its key where `keys` is given) and how many there
            are.
    """
    values, first, counts = np.unique(ids, return_index=True, return_counts=True)
    duplicated = np.flatnonzero(counts > 1)
    if duplicated.size == 0:
        return
    index = int(first[duplicated[0]])
    name = keys[index] if keys is not None else to_hex(ids[index : index + 1])[0]
    raise ValueError(
        f"{duplicated.size} of {values.size} ids occur more than once, first {name!r}: every clip "
        "key must be unique in a data set; rename or drop the copies"
    )
