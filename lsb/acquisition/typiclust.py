"""TypiClust: the most typical clip of each cluster that holds no label yet.

Source: Hacohen et al. 2022 (arXiv 2202.02794): k-means into as many clusters as there are labelled
clips and clips to choose, at most 500; clusters with the fewest labels first, then the largest;
from each the clip with the smallest mean distance to its neighbours in the cluster. As in the
authors' code, clusters of five clips or fewer come last.

What differs here: vectors are the store's, not self-supervised ones; typicality is computed once a
cluster and not anew after each pick.
"""

from __future__ import annotations

import warnings

import numpy as np
import numpy.typing as npt
from scipy.cluster.vq import kmeans2, vq

from lsb.acquisition.plus_plus import plus_plus
from lsb.acquisition.random import uniform
from lsb.ids import IdArray
from lsb.order import IndexArray, descending

FloatArray = npt.NDArray[np.float32]
MOST_CLUSTERS = 500
SMALL_CLUSTER = 5
NEIGHBOURS = 20
RUNS = 3
ITERATIONS = 20
ROWS_AT_A_TIME = 1024


def typiclust(
    ids: IdArray,
    vectors_ND: FloatArray,
    budget: int,
    *,
    covered_ids: IdArray,
    covered_MD: FloatArray,
    seed: int,
    round: int,
) -> IndexArray:
    """Order clips by turns of their clusters.

    The order depends on the clips alone, not on the order in which they are given.

    Args:
        ids: (N,) S16, unique.
        vectors_ND: (N, D) float32 of norm 1.
        budget: clips to choose; with the labelled ones it sets the number of clusters.
        covered_ids: (M,) S16, unique, of labelled clips, none of `ids`.
        covered_MD: (M, D) float32 of norm 1, their vectors.
        seed: of chance, by which clusters are started.
        round: of data growth; changes what chance draws.

    Returns:
        (N,) all rows of `vectors_ND`: first one of each cluster, then a second of each, and so on.
    """
    if not len(ids):
        return np.empty(0, dtype=np.intp)
    all_ids = np.concatenate([ids, covered_ids])
    by_id = np.argsort(all_ids, kind="stable")
    joined_ID = np.concatenate([vectors_ND, covered_MD])[by_id]
    clusters = min(len(covered_ids) + budget, MOST_CLUSTERS, len(all_ids))
    cluster_I = cluster(all_ids[by_id], joined_ID, clusters, seed=seed, round=round)
    labelled_I = by_id >= len(ids)
    queues: list[tuple[tuple[bool, int, int, int], IndexArray]] = []
    for number in np.unique(cluster_I).tolist():
        members = np.flatnonzero(cluster_I == number)
        labelled = int(labelled_I[members].sum())
        # Members are in the order of ids: the first of them settles ties between clusters.
        place = (len(members) <= SMALL_CLUSTER, labelled, -len(members), int(members[0]))
        typical = members[descending(typicality(joined_ID[members]), all_ids[by_id][members])]
        queues.append((place, typical[~labelled_I[typical]]))
    ordered = [queue for _, queue in sorted(queues, key=lambda entry: entry[0])]
    turn = np.concatenate([np.arange(len(queue)) for queue in ordered])
    rows = np.concatenate(ordered)[np.argsort(turn, kind="stable")]
    return by_id[rows]


def typicality(vectors_MD: FloatArray) -> npt.NDArray[np.float64]:
    """1 / mean Euclidean distance to the nearest neighbours, (M,) float64, inf at distance 0.

    Args:
        vectors_MD: (M, D) float32 of norm 1, of one cluster. Of up to 20 neighbours as many count
            as make up half the cluster; in a cluster of one the clip has typicality 0.
    """
    count = min(NEIGHBOURS, max(1, len(vectors_MD) // 2))
    if len(vectors_MD) == 1:
        return np.zeros(1)
    mean_M = np.empty(len(vectors_MD))
    for start in range(0, len(vectors_MD), ROWS_AT_A_TIME):
        block = vectors_MD[start : start + ROWS_AT_A_TIME]
        squared = 2.0 - 2.0 * (block @ vectors_MD.T).astype(np.float64)
        squared[np.arange(len(block)), start + np.arange(len(block))] = np.inf
        near = np.sort(np.partition(squared, count - 1, axis=1)[:, :count], axis=1)
        mean_M[start : start + len(block)] = np.sqrt(np.maximum(near, 0.0)).mean(axis=1)
    typical_M: npt.NDArray[np.float64] = np.full(len(mean_M), np.inf)
    return np.divide(1.0, mean_M, out=typical_M, where=mean_M > 0)


def cluster(
    ids: IdArray, vectors_ND: FloatArray, count: int, *, seed: int, round: int
) -> npt.NDArray[np.intp]:
    """k-means: the closest fit of a few runs of scipy's Lloyd iterations from k-means++ seeds.

    Args:
        ids: (N,) S16, ascending.
        vectors_ND: (N, D) float32 of norm 1, in the same order.
        count: clusters, at most N; some may end without clips.
        seed: of chance.
        round: of data growth; changes what chance draws.

    Returns:
        (N,) number of each clip's cluster.
    """
    fits: list[tuple[float, int, npt.NDArray[np.intp]]] = []
    for run in range(RUNS):
        salt = ("clusters", seed, round, run)
        first = int(np.argmax(uniform(ids, *salt)))
        start = plus_plus(vectors_ND, np.ones((len(ids), 1)), count, first=first, salt=salt)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="One of the clusters is empty")
            centres, _ = kmeans2(vectors_ND, vectors_ND[start], iter=ITERATIONS, minit="matrix")
        cluster_N, distance_N = vq(vectors_ND, centres)
        fits.append((float((distance_N.astype(np.float64) ** 2).sum()), run, cluster_N))
    return np.asarray(min(fits, key=lambda fit: fit[:2])[2], dtype=np.intp)
