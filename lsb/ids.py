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
import pyarrow.compute as pc

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
    packed = np.ascontiguousarray(ids, dtype=f"S{ID_BYTES}")
    # A copy: a column must not change with the array that it was made from.
    buffers = [None, pa.py_buffer(packed.tobytes())]
    return pa.Array.from_buffers(ID_TYPE, packed.size, buffers)


def from_arrow(column: pa.Array[Any] | pa.ChunkedArray[Any]) -> IdArray:
    """Inverse of `to_arrow`; also reads columns of variable bytes. One chunk is not copied.

    Raises:
        ValueError: a value is null or not 16 bytes long, or the column holds no bytes.
    """
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    start, views = 0, []
    for chunk in chunks:
        if len(chunk):
            views.append(_packed(chunk, start))
        start += len(chunk)
    if not views:
        return np.empty(0, dtype=f"S{ID_BYTES}")
    if len(views) == 1:
        return views[0]
    # As numbers: numpy joins strings six times slower.
    whole: IdArray = np.concatenate([view.view(np.uint8) for view in views]).view(f"S{ID_BYTES}")
    return whole


def _packed(chunk: Any, start: int) -> IdArray:
    """The bytes of one chunk that is not empty, whose first row has the number `start`."""
    if chunk.null_count:
        row = start + int(pc.index(chunk.is_null(), True).as_py())
        raise ValueError(
            f"a column of ids has {chunk.null_count} nulls, the first in row {row}: every clip has "
            "an id; write the table with lsb.ids.to_arrow"
        )
    if pa.types.is_dictionary(chunk.type):
        return _packed(chunk.dictionary_decode(), start)
    if pa.types.is_fixed_size_binary(chunk.type):
        width, first = chunk.type.byte_width, chunk.offset * chunk.type.byte_width
        data = chunk.buffers()[1]
    elif pa.types.is_binary(chunk.type) or pa.types.is_large_binary(chunk.type):
        lengths = pc.binary_length(chunk).to_numpy(zero_copy_only=False)
        other = np.flatnonzero(lengths != ID_BYTES)
        width = int(lengths[other[0]]) if other.size else ID_BYTES
        chunk = chunk.slice(int(other[0])) if other.size else chunk
        offset_type = np.int32 if pa.types.is_binary(chunk.type) else np.int64
        offsets = np.frombuffer(chunk.buffers()[1], dtype=offset_type)
        first, data = int(offsets[chunk.offset]), chunk.buffers()[2]
    else:
        raise ValueError(
            f"a column of ids is {chunk.type}, expected {ID_TYPE}: write the table with "
            "lsb.ids.to_arrow"
        )
    if width != ID_BYTES:
        value = b"" if data is None else data.to_pybytes()[first : first + width]
        raise ValueError(f"an id has {width} bytes, expected {ID_BYTES}: {value.hex()}")
    ids: IdArray = np.frombuffer(data, dtype=f"S{ID_BYTES}", count=len(chunk), offset=first)
    return ids


def texts(column: pa.Array[Any] | pa.ChunkedArray[Any]) -> list[str]:
    """A column of strings, such as keys, as a list."""
    return [str(value) for value in column.to_pylist()]


def require_unique(ids: IdArray, keys: Sequence[str] | None = None) -> None:
    """Refuse duplicate ids.

    Raises:
        ValueError: names the first duplicate (its key where `keys` is given) and how many there
            are.
    """
    positions = duplicate_positions(ids)
    if positions.size == 0:
        return
    values, first = np.unique(ids[positions], return_index=True)
    index = int(positions[first[0]])
    name = keys[index] if keys is not None else to_hex(ids[index : index + 1])[0]
    different = len(ids) - positions.size + values.size
    raise ValueError(
        f"{values.size} of {different} ids occur more than once, first {name!r}: every clip "
        "key must be unique in a data set; rename or drop the copies"
    )


def duplicate_positions(ids: IdArray) -> npt.NDArray[np.intp]:
    """Ascending positions of all ids that occur more than once.

    Ids are hashes, so that equal first halves are rare unless the ids are equal: sorting integers
    settles nearly all of them, at a twentieth of what sorting bytes costs.
    """
    half = np.ascontiguousarray(ids, dtype=f"S{ID_BYTES}").view(np.uint64).reshape(-1, 2)[:, 0]
    ordered = np.sort(half)
    repeated = np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
    if repeated.size == 0:
        return np.empty(0, dtype=np.intp)
    near = np.flatnonzero(np.isin(half, repeated))
    _, inverse, counts = np.unique(ids[near], return_inverse=True, return_counts=True)
    return np.asarray(near[counts[inverse] > 1], dtype=np.intp)
