"""The order of the project against a sort by all keys at once."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lsb.order import descending


def by_all_keys(score_N: Any, ids: Any, group_N: Any) -> list[int]:
    rows = range(len(ids))
    group = np.zeros(len(ids), int) if group_N is None else group_N
    return sorted(rows, key=lambda row: (group[row], -score_N[row], ids[row], row))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("values", [1, 7, 10**6])  # how many scores there are: ties, or none
@pytest.mark.parametrize("groups", [None, 4, 1 << 40])
def test_larger_scores_first_then_smaller_ids_within_groups(
    kind: type, values: int, groups: int | None
) -> None:
    rng = np.random.default_rng(values)
    for count in (0, 1, 2, 400):
        score_N = (rng.integers(-values, values + 1, count) / values).astype(kind)
        score_N[1::9], score_N[2::9] = 0.0, -0.0
        score_N[3::11], score_N[4::11] = np.inf, -np.inf
        ids = np.sort(rng.integers(0, 256, (count, 16), dtype=np.uint8)).view("S16")[:, 0]
        ids[5::6] = ids[:1]
        group_N = None if groups is None else rng.integers(0, groups, count)
        assert descending(score_N, ids, group_N).tolist() == by_all_keys(score_N, ids, group_N)
