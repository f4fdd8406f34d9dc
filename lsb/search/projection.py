"""Int8 codes of vectors, and prefixes of codes that bound an inner product from above.

What the scans multiply instead of vectors (docs/search.md has the proof in full). For a row x and a
seed q, with codes x~ and q~, measured rounding errors |x - x~|, and a matrix W of spectral norm at
most 1:

    <x, q>   <=  <x~, q> + |x - x~| |q|
    <x~, q>  <=  <W x~, W q> + r(x~) r(q),   r(v)^2 = |v|^2 - |W v|^2

The second line is the inequality of Cauchy and Schwarz for the form I - W'W, which has no negative
eigenvalue; W need not be orthogonal, so it may itself be int8. Writing r behind W x~ makes the
right side one inner product of P coordinates, which is quantised in turn with its measured error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from lsb.search.lists import FloatArray
from lsb.store import NORM_TOLERANCE

CODE_LIMIT = 127
AUGMENTED = 4
PREFIXES = (64, 128, 192, 256)
ALIGNMENT = 64
SMALLEST_STEP = 1e-4
SPREADS = (2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 6.0, 8.0)
LONGEST = 1 + NORM_TOLERANCE + 1e-5
SEEDS_AT_A_TIME = 1024
PAIR = 6000.0
PAIR_COORDINATE = 4.0
"""Cost of a pair that passes prefixes, in products of two codes: at once, and a coordinate."""

CodeArray = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Projection:
    """How rows become codes.

    Attributes:
        dimension: D.
        step: of codes of whole vectors.
        weights: (P - `AUGMENTED`, D) int8, or (0, D): no prefix.
        weight_scale: weights are `weights * weight_scale`, of spectral norm at most 1.
        prefix_step: of prefix codes.
    """

    dimension: int
    step: float
    weights: CodeArray
    weight_scale: float
    prefix_step: float

    @property
    def padded(self) -> int:
        """D rounded up to the alignment of codes."""
        return -(-self.dimension // ALIGNMENT) * ALIGNMENT

    @property
    def prefix(self) -> int:
        """P, 0 without a prefix."""
        return len(self.weights) + AUGMENTED if len(self.weights) else 0


@dataclass(frozen=True)
class SeedCodes:
    """Seeds under a projection.

    Attributes:
        codes: (Q, D) int8 of whole vectors.
        code_step: of these.
        code_error: (Q,) largest error of a product that rounding the seed causes.
        prefix: (Q, P) int8.
        prefix_step: of these.
        prefix_error: (Q,) the same for products of prefixes.
        norm: what a row's rounding error is multiplied by: no seed or its codes are longer.
    """

    codes: CodeArray
    code_step: float
    code_error: FloatArray
    prefix: CodeArray
    prefix_step: float
    prefix_error: FloatArray
    norm: float


def fit(
    sample_MD: FloatArray,
    seeds_QD: FloatArray,
    *,
    wanted: float,
    prefixes: Sequence[int] = PREFIXES,
    seeds: int | None = None,
) -> Projection:
    """A projection for a pool, its prefix as long as pays for these seeds.

    Args:
        sample_MD: (M, D) rows of the pool.
        seeds_QD: (Q, D) all seeds; how many there are decides, too.
        wanted: score that a pair has to reach, as far as is known.
        prefixes: lengths to choose from; none of them, or none that pays, gives no prefix.
        seeds: how many there will be; None: as many as `seeds_QD`.
    """
    dimension = sample_MD.shape[1]
    step = best_step(sample_MD)
    whole = without_prefix(dimension, step)
    lengths = [length for length in prefixes if length <= 0.75 * whole.padded]
    if not lengths or not len(sample_MD):
        return whole
    axes = principal_axes(sample_MD)
    rows, some = thinned(sample_MD, 1024), thinned(seeds_QD, 256)
    count = float(len(seeds_QD) if seeds is None else seeds)
    best, cheapest = whole, count * whole.padded
    for length in lengths:
        projection = _projection(rows, axes, length, step)
        passing = passing_share(projection, rows, some, wanted)
        pairs = count * passing * (PAIR + PAIR_COORDINATE * whole.padded)
        cost = length * (count + whole.padded) + pairs
        if cost >= cheapest and projection.prefix > best.prefix > 0:
            break  # longer ones only cost more from here
        if cost < cheapest:
            best, cheapest = projection, cost
    return best


def without_prefix(dimension: int, step: float) -> Projection:
    """A projection that makes codes of whole vectors only."""
    return Projection(dimension, step, np.zeros((0, dimension), np.int8), 1.0, 1.0)


def thinned(vectors_ND: FloatArray, most: int) -> FloatArray:
    """Every n-th of the rows, about `most` of them."""
    return vectors_ND[:: max(1, len(vectors_ND) // most)]


def principal_axes(sample_MD: FloatArray) -> FloatArray:
    """(D, D) axes of the sample's second moments, the largest first."""
    sample = torch.from_numpy(np.ascontiguousarray(sample_MD, dtype=np.float32))
    _, axes = torch.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(axes.flip(1).numpy())


def passing_share(
    projection: Projection, rows_MD: FloatArray, seeds_QD: FloatArray, wanted: float
) -> float:
    """Share of pairs that the bound by prefixes does not drop."""
    prefix, error = encode_prefix(projection, rows_MD)
    seeds = encode_seeds(projection, seeds_QD)
    product = prefix.astype(np.float32) @ seeds.prefix.astype(np.float32).T
    bound = product * np.float32(projection.prefix_step * seeds.prefix_step)
    bound += (error * seeds.norm)[:, None] + seeds.prefix_error
    return float(np.mean(bound >= wanted))


def _projection(sample_MD: FloatArray, axes_DD: FloatArray, length: int, step: float) -> Projection:
    inside = length - AUGMENTED
    # Rotated at random within the kept axes, all coordinates have the same spread: one step fits.
    random = np.random.default_rng(length)
    rotation = np.linalg.qr(random.normal(size=(inside, inside)))[0].astype(np.float32)
    wanted = (axes_DD[:, :inside] @ rotation).T
    scale = float(np.abs(wanted).max()) / CODE_LIMIT
    weights = np.rint(wanted / scale).astype(np.int8)
    gram = weights.astype(np.float64) @ weights.T.astype(np.float64)
    largest = float(np.sqrt(np.linalg.eigvalsh(gram)[-1]))
    weight_scale = float(np.float32((1 - 1e-6) / largest))
    first = Projection(sample_MD.shape[1], step, weights, weight_scale, 1.0)
    coordinates = augmented(first, dequantised(sample_MD, step))
    return Projection(
        first.dimension, step, weights, weight_scale, best_step(coordinates.astype(np.float32))
    )


def augmented(
    projection: Projection, vectors_ND: npt.NDArray[np.floating[Any]]
) -> npt.NDArray[np.float64]:
    """(N, P) coordinates inside the prefix and what lies outside, spread over the last ones."""
    vectors = vectors_ND.astype(np.float64)
    inside = vectors @ (projection.weights.T.astype(np.float64) * projection.weight_scale)
    outside = np.einsum("nd,nd->n", vectors, vectors) - np.einsum("np,np->n", inside, inside)
    each = np.sqrt((np.maximum(outside, 0) + 1e-12) / AUGMENTED)
    return np.concatenate([inside, np.repeat(each[:, None], AUGMENTED, axis=1)], axis=1)


def encode_whole(projection: Projection, vectors_ND: FloatArray) -> tuple[CodeArray, FloatArray]:
    """(N, D) codes of whole rows and the (N,) norms of what they leave out."""
    codes = quantised(vectors_ND, projection.step)
    return codes, _missed(vectors_ND, codes, projection.step).astype(np.float32)


def encode_prefix(projection: Projection, vectors_ND: FloatArray) -> tuple[CodeArray, FloatArray]:
    """Prefix codes of rows and the errors of both roundings together; the reference of scan.cpp."""
    whole, missed = encode_whole(projection, vectors_ND)
    coded = whole * np.float64(projection.step)
    coordinates = augmented(projection, coded)
    codes = quantised(coordinates, projection.prefix_step)
    left = coordinates - codes * np.float64(projection.prefix_step)
    return codes, ((np.linalg.norm(left, axis=1) + missed) * (1 + 1e-5)).astype(np.float32)


def encode_seeds(projection: Projection, seeds_QD: FloatArray) -> SeedCodes:
    """Codes and prefixes of seeds."""
    code_step = best_step(seeds_QD)
    prefix_step = code_step
    if projection.prefix:
        prefix_step = best_step(augmented(projection, thinned(seeds_QD, 512)).astype(np.float32))
    longest = 1.0
    whole: list[tuple[CodeArray, npt.NDArray[np.float64]]] = []
    prefixes: list[tuple[CodeArray, npt.NDArray[np.float64]]] = []
    for start in range(0, max(1, len(seeds_QD)), SEEDS_AT_A_TIME):
        seeds = seeds_QD[start : start + SEEDS_AT_A_TIME]
        whole.append(_coded(seeds, code_step))
        if projection.prefix:
            prefixes.append(_coded(augmented(projection, seeds), prefix_step))
        missed = np.maximum(whole[-1][1], (prefixes or whole)[-1][1])
        longest = max(longest, float((np.linalg.norm(seeds, axis=1) + missed).max(initial=0)))
    codes, code_missed = (np.concatenate(column) for column in zip(*whole, strict=True))
    prefix, prefix_missed = (
        np.concatenate(column) for column in zip(*(prefixes or whole), strict=True)
    )
    return SeedCodes(
        codes,
        code_step,
        (code_missed * LONGEST).astype(np.float32),
        prefix,
        prefix_step,
        (prefix_missed * LONGEST).astype(np.float32),
        longest * (1 + 1e-5),
    )


def quantised(vectors_ND: npt.NDArray[np.floating[Any]], step: float) -> CodeArray:
    """(N, D) int8 codes, by the float32 operations of scan.cpp."""
    scaled = vectors_ND.astype(np.float32) * (np.float32(1) / np.float32(step))
    codes: CodeArray = np.clip(np.rint(scaled), -CODE_LIMIT, CODE_LIMIT).astype(np.int8)
    return codes


def dequantised(vectors_ND: FloatArray, step: float) -> npt.NDArray[np.float64]:
    """What the codes of vectors stand for."""
    return quantised(vectors_ND.astype(np.float32), step) * np.float64(np.float32(step))


def best_step(vectors_ND: FloatArray) -> float:
    """The step whose codes miss a sample of vectors least, at the 99th percentile of rows."""
    sample = thinned(vectors_ND, 512).astype(np.float32)
    spread = float(sample.std()) if sample.size else 0.0
    best, least = SMALLEST_STEP, np.inf
    for wide in SPREADS:
        step = float(np.float32(max(wide * spread / CODE_LIMIT, SMALLEST_STEP)))
        missed = _missed(sample, quantised(sample, step), step)
        worst = float(np.quantile(missed, 0.99)) if len(missed) else 0.0
        if worst < least:
            best, least = step, worst
    return best


def _coded(
    vectors_ND: npt.NDArray[np.floating[Any]], step: float
) -> tuple[CodeArray, npt.NDArray[np.float64]]:
    codes = quantised(vectors_ND, step)
    return codes, _missed(vectors_ND, codes, step)


def _missed(
    vectors_ND: npt.NDArray[np.floating[Any]], codes_ND: CodeArray, step: float
) -> npt.NDArray[np.float64]:
    """(N,) norm of what codes leave out, rounded up."""
    left = vectors_ND.astype(np.float64) - codes_ND * np.float64(step)
    return np.asarray(np.linalg.norm(left, axis=1) * (1 + 1e-5), np.float64)
