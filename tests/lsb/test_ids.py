from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsb.ids import (
    from_arrow,
    from_bytes,
    from_hex,
    require_unique,
    sample_id,
    sample_ids,
    to_arrow,
    to_bytes,
    to_hex,
)
from lsb.order import descending, id_words, member

sixteen = st.one_of(
    st.binary(min_size=16, max_size=16),
    st.binary(min_size=0, max_size=15).map(lambda value: value.ljust(16, b"\0")),
    st.binary(min_size=0, max_size=2).map(lambda value: value.rjust(16, b"\0")),
)


def test_id_is_the_128_bit_blake2b_of_the_key() -> None:
    assert sample_id("клип 7") == hashlib.blake2b("клип 7".encode(), digest_size=16).digest()
    assert sample_ids([]).shape == (0,)


@given(st.lists(sixteen))
def test_round_trips_keep_trailing_nul_bytes(ids: list[bytes]) -> None:
    packed = from_bytes(ids)
    assert to_bytes(packed) == ids
    assert to_bytes(from_arrow(to_arrow(packed))) == ids
    assert to_bytes(from_hex(to_hex(packed))) == ids
    assert to_arrow(packed).type == pa.binary(16)


@given(st.lists(sixteen, unique=True))
def test_arrays_sort_as_bytes_do(ids: list[bytes]) -> None:
    packed = from_bytes(ids)
    assert to_bytes(np.sort(packed)) == sorted(ids)
    high, low = id_words(packed)
    assert [ids[i] for i in np.lexsort((low, high))] == sorted(ids)
    require_unique(packed)


@given(st.lists(st.tuples(st.sampled_from([0.0, -0.0, 0.5, -1.0]), sixteen), min_size=1))
def test_descending_is_by_score_then_id(rows: list[tuple[float, bytes]]) -> None:
    score = np.asarray([score for score, _ in rows], dtype=np.float32)
    order = descending(score, from_bytes([name for _, name in rows]))
    ordered = sorted(rows, key=lambda row: (-row[0], row[1]))
    assert [rows[index][1] for index in order] == [name for _, name in ordered]


def test_member_finds_ids_that_differ_only_in_trailing_nuls() -> None:
    present = from_bytes([b"a" + b"\0" * 15, b"b".ljust(16, b"\0")])
    asked = from_bytes([b"a" + b"\0" * 14 + b"\1", b"b".ljust(16, b"\0")])
    assert member(asked, np.sort(present)).tolist() == [False, True]
    assert member(asked, present[:0]).tolist() == [False, False]


def test_wrong_length_is_refused() -> None:
    with pytest.raises(ValueError, match="has 3 bytes, expected 16: 616263"):
        from_bytes([b"abc"])


def test_duplicates_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"1 of 2 ids occur more than once, first 'b'"):
        require_unique(sample_ids(["b", "a", "b"]), ["b", "a", "b"])
