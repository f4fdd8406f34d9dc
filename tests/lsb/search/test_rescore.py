from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lsb.search.rescore import EPSILON, proposal_error, rescore, similarity


def by_hand(left: np.ndarray, right: np.ndarray) -> np.float32:
    """The documented kernel in plain Python: halving sums of exact float64 products."""
    terms = [float(a) * float(b) for a, b in zip(left, right, strict=True)]
    while len(terms) > 1:
        half = 1 << ((len(terms) - 1).bit_length() - 1)
        upper = terms[half:]
        terms = [t + (upper[i] if i < len(upper) else 0.0) for i, t in enumerate(terms[:half])]
    return np.float32(terms[0])


@given(st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_equals_the_documented_sum_bit_for_bit(dimension: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    left = random.normal(size=(3, dimension)).astype(np.float32)
    right = random.normal(size=(3, dimension)).astype(np.float32)
    expected = [by_hand(a, b) for a, b in zip(left, right, strict=True)]
    assert similarity(left, right).tobytes() == np.asarray(expected).tobytes()


@pytest.mark.parametrize("dimension", [1, 3, 256, 768, 1000])
def test_is_within_epsilon_of_the_exact_inner_product(dimension: int) -> None:
    random = np.random.default_rng(dimension)
    x = random.normal(size=(50, dimension))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    scores = similarity(x[:-1], x[1:])
    faiss_like = np.einsum("pd,pd->p", x[:-1], x[1:])
    for row in range(49):
        pairs = zip(x[row].tolist(), x[row + 1].tolist(), strict=True)
        exact = sum(Fraction(a) * Fraction(b) for a, b in pairs)
        assert abs(float(Fraction(float(scores[row])) - exact)) <= EPSILON
        assert abs(float(Fraction(float(faiss_like[row])) - exact)) <= proposal_error(dimension)


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_bits_do_not_depend_on_blocking_layout_or_type(seed: int) -> None:
    random = np.random.default_rng(seed)
    queries = random.normal(size=(5, 37)).astype(np.float16)
    vectors = random.normal(size=(9, 37)).astype(np.float16)
    query, row = np.repeat(np.arange(5), 9), np.tile(np.arange(9), 5)
    whole = rescore(queries, vectors, query, row).tobytes()
    single = b"".join(
        similarity(queries[q : q + 1], vectors[r : r + 1]).tobytes()
        for q, r in zip(query, row, strict=True)
    )
    wide = rescore(
        np.asfortranarray(queries.astype(np.float32)), vectors.astype(np.float32), query, row
    )
    swapped = rescore(vectors, queries, row, query)
    assert whole == single == wide.tobytes() == swapped.tobytes()


def test_zero_has_one_sign() -> None:
    zero = similarity(np.asarray([[1.0, 0.0]], "f4"), np.asarray([[-0.0, -1.0]], "f4"))
    assert math.copysign(1, zero[0]) == 1
