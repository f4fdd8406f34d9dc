from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lsb.acquisition.typiclust import cluster, typicality, typiclust
from lsb.ids import sample_ids

Unit = Callable[..., np.ndarray]
NONE = sample_ids([])
SIZES = (30, 20, 10)


def blobs(dimension: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Clusters of 30, 20 and 10 clips around three axes, and each clip's cluster."""
    number = np.repeat(np.arange(3), SIZES)
    noise = np.random.default_rng(0).normal(size=(sum(SIZES), dimension))
    x = np.eye(dimension)[number] + 0.03 * noise
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32), number


VECTORS, NUMBER = blobs()
IDS = sample_ids([f"clip-{row}" for row in range(sum(SIZES))])


def test_typicality_worked_by_hand() -> None:
    angles = np.radians([0, 1, 2, 60])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    found = typicality(vectors.astype(np.float32))
    # Two neighbours of each count; chords are 2 sin(angle / 2).
    chord = 2 * np.sin(np.radians([0.5, 1, 29, 29.5]))
    assert found == pytest.approx(
        1
        / np.asarray([(chord[0] + chord[1]) / 2, chord[0], (chord[0] + chord[1]) / 2, 1])
        * np.asarray([1, 1, 1, 1 / ((chord[2] + chord[3]) / 2)]),
        rel=1e-2,
    )
    assert typicality(vectors[:1].astype(np.float32)).tolist() == [0.0]
    twice = np.repeat(vectors[:1].astype(np.float32), 2, axis=0)
    assert typicality(twice)[0] > 1e3


def test_one_of_each_cluster_the_largest_first() -> None:
    rows = typiclust(IDS, VECTORS, 3, covered_ids=NONE, covered_MD=VECTORS[:0], seed=0, round=1)
    assert NUMBER[rows[:6]].tolist() == [0, 1, 2, 0, 1, 2]
    assert sorted(rows.tolist()) == list(range(60))
    for blob in range(3):
        members = np.flatnonzero(blob == NUMBER)
        inside = typicality(VECTORS[members])
        picked = [row for row in rows if NUMBER[row] == blob]
        best = members[np.argmax(inside)]
        assert picked[0] == best


def test_clusters_with_labels_wait() -> None:
    labelled = np.asarray([0, 1, 35])  # two in the largest, one in the second
    free = np.setdiff1d(np.arange(60), labelled)
    clusters = np.unique(cluster(np.sort(IDS), VECTORS[np.argsort(IDS)], 3, seed=0, round=1))
    assert len(clusters) == 3
    rows = typiclust(
        IDS[free],
        VECTORS[free],
        0,
        covered_ids=IDS[labelled],
        covered_MD=VECTORS[labelled],
        seed=0,
        round=1,
    )
    assert NUMBER[free][rows[:3]].tolist() == [2, 1, 0]


def test_small_clusters_come_last() -> None:
    keep = np.concatenate([np.arange(50), [50, 51, 52]])
    rows = typiclust(
        IDS[keep], VECTORS[keep], 3, covered_ids=IDS[:0], covered_MD=VECTORS[:0], seed=0, round=1
    )
    assert NUMBER[keep][rows[:3]].tolist() == [0, 1, 2]
    labelled = np.asarray([0, 31])
    free = np.setdiff1d(keep, labelled)
    waits = typiclust(
        IDS[free],
        VECTORS[free],
        1,
        covered_ids=IDS[labelled],
        covered_MD=VECTORS[labelled],
        seed=0,
        round=1,
    )
    assert NUMBER[free][waits[:3]].tolist() == [0, 1, 2]


def test_order_of_clips_does_not_matter(unit: Unit) -> None:
    vectors = np.concatenate([unit(90, 8), unit(90, 8)[:10]])
    ids = sample_ids([f"clip-{row}" for row in range(100)])

    def chosen(order: np.ndarray, seed: int = 0) -> list[bytes]:
        free, held = order[order < 95], order[order >= 95]
        rows = typiclust(
            ids[free],
            vectors[free],
            10,
            covered_ids=ids[held],
            covered_MD=vectors[held],
            seed=seed,
            round=1,
        )
        return ids[free][rows].tolist()

    straight = np.arange(100)
    one = chosen(straight)
    assert one == chosen(np.random.default_rng(0).permutation(100))
    assert one != chosen(straight, seed=1)
    assert len(set(one)) == 95
    empty = typiclust(ids[:0], vectors[:0], 3, covered_ids=ids, covered_MD=vectors, seed=0, round=1)
    assert empty.size == 0
