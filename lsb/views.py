"""Similarity in views: how alike two clips are in one stream, or in each of several at once.

A pooled vector holds the mean tokens of its streams end to end. Its cosine averages over all of
them: a clip with the right picture and any sound is near a seed, and a faint sound that decides a
task counts for nothing beside what varies more. Here every stream is compared for itself,
decorrelated (exemplar LDA: Hariharan, Malik and Ramanan 2012), in standard deviations of the pool.
A view is a set of streams; in it two clips are as alike as in the stream where they are least so.
Views, and that minimum, are ours.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import cast

import numpy as np
import numpy.typing as npt
from scipy.linalg import cho_factor, cho_solve, solve_triangular

from lsb.decorrelation import SAMPLE, covariance_sample
from lsb.store import Store, VectorArray

FloatArray = npt.NDArray[np.floating]
Float64Array = npt.NDArray[np.float64]
View = tuple[str, ...]
"""Names of streams, sorted."""


@dataclass(frozen=True)
class StreamQueries:
    """Seeds as one stream sees them.

    Attributes:
        weight: (Q, d) float64; its product with a clip's part, less `offset`, is the similarity.
        offset: (Q,) float64.
    """

    weight: Float64Array
    offset: Float64Array


@dataclass(frozen=True)
class _Stream:
    part: slice
    mean: Float64Array
    covariance: Float64Array
    factor: tuple[Float64Array, bool]

    def queries(self, vectors_QD: VectorArray) -> StreamQueries:
        centred = np.asarray(vectors_QD[:, self.part], np.float64) - self.mean
        weight = cho_solve(self.factor, centred.T).T
        spread = np.sqrt(((weight @ self.covariance) * weight).sum(axis=1))
        weight = weight / np.where(spread > 0, spread, 1.0)[:, None]
        return StreamQueries(weight, weight @ self.mean)

    def whitened(self, vectors_ND: VectorArray) -> Float64Array:
        centred = np.asarray(vectors_ND[:, self.part], np.float64) - self.mean
        return cast(Float64Array, solve_triangular(self.factor[0], centred.T, lower=True)).T


@dataclass(frozen=True)
class Views:
    """Streams of a store's vectors with the mean and covariance of its clips in each."""

    streams: Mapping[str, _Stream]

    @property
    def all(self) -> list[View]:
        """Every set of streams: single ones first, then by name."""
        names = sorted(self.streams)
        return [view for size in range(1, len(names) + 1) for view in combinations(names, size)]

    def whitened(self, vectors_ND: VectorArray) -> Float64Array:
        """Clips (N, D) with every direction of every stream about as large: norms are about 1."""
        parts = [stream.whitened(vectors_ND) for stream in self.streams.values()]
        return np.concatenate(parts, axis=1) / math.sqrt(sum(part.shape[1] for part in parts))

    def unwhitened(self, weight_D: FloatArray) -> tuple[Float64Array, float]:
        """A linear map of whitened clips as one of stored clips: (D,) weights, and a constant."""
        weights, constant, start = [], 0.0, 0
        for stream in self.streams.values():
            width = len(stream.mean)
            own = weight_D[start : start + width] / math.sqrt(len(weight_D))
            start += width
            weights.append(solve_triangular(stream.factor[0], own, lower=True, trans="T"))
            constant -= float(weights[-1] @ stream.mean)
        return np.concatenate(weights), constant

    def queries(self, vectors_QD: VectorArray, view: View) -> dict[str, StreamQueries]:
        """Seeds (Q, D) as the streams of a view see them."""
        return {name: self.streams[name].queries(vectors_QD) for name in view}

    def similarity(
        self,
        queries: Mapping[str, StreamQueries],
        vectors_ND: VectorArray,
        dtype: type[np.floating] = np.float64,
    ) -> FloatArray:
        """How alike seeds and clips are: (Q, N), in standard deviations of the pool.

        Args:
            queries: seeds, see `queries`.
            vectors_ND: (N, D) clips.
            dtype: of the products; float32 is faster and errs by about 1e-4.
        """
        least: FloatArray | None = None
        for name, seeds in queries.items():
            part = np.asarray(vectors_ND[:, self.streams[name].part], dtype)
            product = seeds.weight.astype(dtype) @ part.T - seeds.offset.astype(dtype)[:, None]
            least = product if least is None else np.minimum(least, product)
        if least is None:
            raise ValueError("a view has no stream: name at least one")
        return least


def fit_views(
    store: Store,
    widths: Mapping[str, int],
    *,
    shrinkage: float,
    seed: int = 0,
    sample: int = SAMPLE,
) -> Views:
    """Mean and covariance of each stream over a sample of a store, which depends on ids alone.

    Args:
        store: of kind "pooled".
        widths: stream -> elements, in the order in which they lie in a vector.
        shrinkage: share of a stream's mean variance that is added to each of its directions, in
            (0, 1]; a small one follows the sample closely.
        seed: of the sample.
        sample: clips.

    Raises:
        ValueError: the shrinkage is out of range, the widths are not those of the store, or it has
            fewer than two clips.
    """
    if sum(widths.values()) != store.dimension:
        raise ValueError(
            f"streams {dict(widths)} have {sum(widths.values())} elements, store {store.place} has "
            f"dimension {store.dimension}: give the streams of the towers that embedded it"
        )
    vectors = covariance_sample(store, shrinkage=shrinkage, seed=seed, sample=sample)
    streams, start = {}, 0
    for name, width in widths.items():
        part = slice(start, start + width)
        start += width
        values = vectors[:, part].astype(np.float64)
        mean = values.mean(axis=0)
        covariance = np.cov(values, rowvar=False).reshape(width, width)
        spread = float(np.trace(covariance)) / width
        shrunk = covariance + shrinkage * (spread or 1.0) * np.eye(width)
        streams[name] = _Stream(part, mean, covariance, cho_factor(shrunk, lower=True))
    return Views(streams)
