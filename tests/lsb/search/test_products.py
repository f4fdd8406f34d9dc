"""Large products of codes, tile by tile, against all products at once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lsb.search import int_mm
from lsb.search.int_mm import CachedProducts, DeviceProducts


@pytest.mark.parametrize("products", [CachedProducts, DeviceProducts])
@pytest.mark.parametrize(("rows", "seeds", "dimension"), [(1, 1, 8), (300, 700, 40), (515, 31, 64)])
@pytest.mark.parametrize("uneven", [False, True])
def test_all_pairs_that_reach_what_a_seed_wants_are_found(
    products: type[CachedProducts | DeviceProducts],
    rows: int,
    seeds: int,
    dimension: int,
    uneven: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(int_mm, "SEEDS_AT_A_TIME", 256)
    rng = np.random.default_rng(rows)
    codes_ND = rng.integers(-127, 128, (rows, dimension), np.int8)
    codes_QD = rng.integers(-127, 128, (seeds, dimension), np.int8)
    exact_NQ = codes_ND.astype(np.int32) @ codes_QD.T.astype(np.int32)
    extra_N = rng.integers(900, 5000 if uneven else 1000, rows, np.int32)
    # Some seeds want everything, as lists that are not full do, most want few.
    wanted_Q = np.quantile(exact_NQ, 0.98, axis=0).astype(np.int32)
    wanted_Q[::5] = int_mm.SMALLEST_WANTED
    reached = products(torch.from_numpy(codes_QD)).reached(
        torch.from_numpy(codes_ND), torch.from_numpy(extra_N), wanted_Q
    )
    row_P, seed_P = (column.numpy() for column in reached)
    found_NQ = np.zeros(exact_NQ.shape, int)
    np.add.at(found_NQ, (row_P, seed_P), 1)
    must_NQ = exact_NQ + extra_N[:, None] >= wanted_Q
    assert found_NQ.max() <= 1, "a pair is told once"
    assert not (must_NQ & (found_NQ == 0)).any()
    # What comes on top is what even rows may share.
    assert (exact_NQ + extra_N.max() >= wanted_Q)[row_P, seed_P].all()
    if uneven:
        np.testing.assert_array_equal(found_NQ == 1, must_NQ)
