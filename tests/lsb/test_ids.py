from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lsb.ids import (
    ID_TYPE,
    duplicate_positions,
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


@given(st.lists(st.lists(sixteen, max_size=5), max_size=4), st.integers(0, 5), st.integers(0, 5))
def test_columns_read_as_lists_do(chunks: list[list[bytes]], start: int, count: int) -> None:
    for kind in (ID_TYPE, pa.binary(), pa.large_binary(), pa.dictionary(pa.int32(), ID_TYPE)):
        whole = pa.chunked_array([pa.array(chunk, kind) for chunk in chunks], kind)
        for column in (whole, whole.slice(start, count), *whole.slice(start, count).chunks):
            assert to_bytes(from_arrow(column)) == column.to_pylist()


def test_a_column_does_not_change_with_the_array_it_was_made_from() -> None:
    ids = sample_ids(["a", "b"]).copy()
    column = to_arrow(ids)
    ids[0] = ids[1]
    assert to_bytes(from_arrow(column)) == to_bytes(sample_ids(["a", "b"]))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (pa.array([b"a" * 16, None], ID_TYPE), "has 1 nulls, the first in row 1: every clip"),
        (pa.array([b"a" * 16, b"abc"], pa.binary()), "an id has 3 bytes, expected 16: 616263"),
        (pa.array([b"a" * 16, b"abc", b"x"], pa.binary()).slice(2), "has 1 bytes, expected 16: 78"),
        (pa.array([b"abc"], pa.binary(3)), "an id has 3 bytes, expected 16: 616263"),
        (pa.array([b""], pa.binary()), "an id has 0 bytes, expected 16"),
        (pa.array(["abc"]), "a column of ids is string, expected fixed_size_binary"),
    ],
)
def test_columns_that_hold_no_ids_are_refused(column: pa.Array, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_arrow(column)
    rest = pa.array([], column.type)
    with pytest.raises(ValueError, match=message):
        from_arrow(pa.chunked_array([rest, column]))
    assert from_arrow(rest).shape == (0,)


@given(st.lists(st.sampled_from([bytes(16), b"a" * 16, b"a" * 15 + b"b", b"b" * 16, b"c" * 16])))
def test_duplicates_are_found_where_halves_collide(ids: list[bytes]) -> None:
    packed = from_bytes(ids)
    expected = [row for row, value in enumerate(ids) if ids.count(value) > 1]
    assert duplicate_positions(packed).tolist() == expected
    if expected:
        twice = {ids[row] for row in expected}
        message = f"{len(twice)} of {len(set(ids))} ids .* first '{min(twice).hex()}'"
        with pytest.raises(ValueError, match=message):
            require_unique(packed)


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
