"""Decorrelated seeds: queries that look for what is unusual about a seed, in an unchanged store.

Source: exemplar LDA (Hariharan, Malik and Ramanan 2012, "Discriminative decorrelation for
clustering and classification"): with the mean and the covariance of all clips, S^-1 (q - mean) is
the linear discriminant of one example q against everything. Pooled vectors of frozen backbones vary
most in what no task asks for (background, light, the speaker); decorrelation takes that back. Only
seeds are changed, so the search stays exact over the vectors as they are stored. Using it for the
seeds of a broadening is ours.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve

from lsb.acquisition.random import uniform
from lsb.acquisition.ranking import PoolBlock, rank_pool
from lsb.store import Store, VectorArray

FloatArray = npt.NDArray[np.float32]
SAMPLE = 10_000


@dataclass(frozen=True)
class Decorrelation:
    """Mean and covariance of a store's clips.

    Attributes:
        mean: (D,) float64.
        factor: Cholesky factor of the covariance, as `scipy.linalg.cho_factor` returns it.
    """

    mean: npt.NDArray[np.float64]
    factor: tuple[npt.NDArray[np.float64], bool]

    def seeds(self, vectors_QD: VectorArray) -> FloatArray:
        """Seeds as the search is to see them: (Q, D) float32 of norm 1.

        A hit's similarity is the product of this and the stored vector, no longer a cosine of two
        clips; LT is to be calibrated on the same.
        """
        centred = np.asarray(vectors_QD, np.float64) - self.mean
        solved = cho_solve(self.factor, centred.T).T
        norm = np.linalg.norm(solved, axis=1, keepdims=True)
        return np.asarray(solved / np.where(norm > 0, norm, 1.0), np.float32)


def fit_decorrelation(
    store: Store, *, shrinkage: float, seed: int = 0, sample: int = SAMPLE
) -> Decorrelation:
    """Mean and covariance of a sample of a store, which depends on ids alone.

    Args:
        store: whose clips vary.
        shrinkage: share of the mean variance that is added to every direction, in (0, 1]; a small
            one follows the sample closely.
        seed: of the sample.
        sample: clips.

    Raises:
        ValueError: the shrinkage is out of range, or the store has fewer than two clips.
    """
    vectors = covariance_sample(store, shrinkage=shrinkage, seed=seed, sample=sample).astype(
        np.float64
    )
    mean = vectors.mean(axis=0)
    centred = vectors - mean
    covariance = centred.T @ centred / (len(vectors) - 1)
    spread = float(np.trace(covariance)) / len(mean)
    covariance[np.diag_indices_from(covariance)] += shrinkage * (spread or 1.0)
    return Decorrelation(mean, cho_factor(covariance))


def covariance_sample(store: Store, *, shrinkage: float, seed: int, sample: int) -> VectorArray:
    """The clips that a mean and a covariance are fitted on: (at most `sample`, D) as stored.

    Args:
        store: whose clips vary.
        shrinkage: that the covariance is to have; only checked.
        seed: of the sample, which depends on it and on ids alone.
        sample: clips.

    Raises:
        ValueError: the shrinkage is out of range, or the store has fewer than two clips.
    """
    if not 0 < shrinkage <= 1:
        raise ValueError(f"the shrinkage of a covariance is {shrinkage}: give one in (0, 1]")
    if len(store) < 2:
        raise ValueError(f"store {store.place} has {len(store)} clips: a covariance needs two")

    def chance(block: PoolBlock) -> npt.NDArray[np.float64]:
        return uniform(block.ids, "covariance", seed)

    drawn = rank_pool(store, [], chance, sample, np.empty(0, "S16")).best
    return store.take_vectors(drawn.row)
