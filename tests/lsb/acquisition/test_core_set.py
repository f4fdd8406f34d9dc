from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lsb.acquisition.core_set import k_centre
from lsb.ids import IdArray, sample_ids
from lsb.search.rescore import similarity

Unit = Callable[..., np.ndarray]
NONE = sample_ids([])


def brute_force(
    ids: IdArray, vectors: np.ndarray, count: int, covered: np.ndarray, first: int | None
) -> list[int]:
    """Every distance anew in each step."""
    picks = [] if first is None else [first]
    while len(picks) < count:
        centres = np.concatenate([covered, vectors[picks]])
        nearest = [similarity(centres, vector[None]).max() for vector in vectors]
        left = [row for row in range(len(ids)) if row not in picks]
        picks.append(min(left, key=lambda row: (nearest[row], ids[row])))
    return picks


def choose(ids: IdArray, vectors: np.ndarray, count: int, covered: np.ndarray) -> list[int]:
    covered_ids = sample_ids([f"covered-{row}" for row in range(len(covered))])
    rows = k_centre(
        ids, vectors, count, covered_ids=covered_ids, covered_MD=covered, seed=0, round=1
    )
    return rows.tolist()


@pytest.mark.parametrize("covered", [0, 1, 5, 40])
def test_is_brute_force_also_among_duplicates(unit: Unit, covered: int) -> None:
    vectors = np.concatenate([unit(40, 6), unit(40, 6)[:30], unit(40, 6)[:30]])
    ids = sample_ids([f"clip-{row}" for row in range(len(vectors))])
    labelled = unit(covered, 6, seed=1)
    picks = choose(ids, vectors, 100, labelled)
    first = None if covered else picks[0]
    assert picks == brute_force(ids, vectors, 100, labelled, first)
    assert choose(ids, vectors, 7, labelled) == picks[:7]
    assert sorted(choose(ids, vectors, 500, labelled)) == list(range(100))


def test_order_of_clips_and_of_labels_does_not_matter(unit: Unit) -> None:
    vectors = np.concatenate([unit(60, 8), unit(60, 8)[:20]])
    ids = sample_ids([f"clip-{row}" for row in range(80)])
    labelled = unit(9, 8, seed=1)
    shuffled = np.random.default_rng(0).permutation(80)
    for covered in (labelled, labelled[:0]):
        one = ids[choose(ids, vectors, 30, covered)]
        other = ids[shuffled][choose(ids[shuffled], vectors[shuffled], 30, covered[::-1])]
        assert (one == other).all()


def test_chance_starts_where_nothing_is_labelled(unit: Unit) -> None:
    ids, vectors = sample_ids([f"clip-{row}" for row in range(50)]), unit(50, 4)

    def first(seed: int, round: int) -> int:
        rows = k_centre(
            ids, vectors, 1, covered_ids=NONE, covered_MD=vectors[:0], seed=seed, round=round
        )
        return int(rows[0])

    assert len({first(seed, round) for seed in range(4) for round in range(4)}) > 8
    assert choose(ids[:0], vectors[:0], 3, vectors[:0]) == []
