"""Exact scan of int8 codes by `torch._int_mm`: without a compiler, and on GPUs.

A tile of rows is multiplied with a tile of seeds, compared with what each seed wants, and
forgotten: the matrix of all scores never exists. Pairs that pass the bound are compared by float32,
then by the rescoring kernel in torch, which uses the same element-wise float64 operations as
`lsb.search.rescore` and gives the same bits on any device.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from lsb.search.lists import FloatArray, NeighbourLists
from lsb.search.projection import AUGMENTED, Projection, encode_seeds
from lsb.search.rescore import proposal_error
from lsb.search.scan import Block, Seeds

PAIR, PAIR_COORDINATE = 20_000.0, 150.0
"""What a pair that passes costs here, see `lsb.search.projection`: gathering its vectors."""
PREFIXES = (64, 128, 192, 256, 384)
SLACK = 2e-6
ALIGNMENT = 32
"""`_int_mm` wants shapes that are multiples of 8 on CUDA, and more than 16 rows."""
FIRST_ROWS = 128
TILES = {"cpu": (1024, 512), "cuda": (65_536, 4096)}
"""Rows and seeds multiplied at a time: what fits a core's cache, and what fills a GPU."""
PAIRS_AT_A_TIME = 1 << 23
MERGE_PAIRS = 1 << 20
SMALLEST_WANTED = -(2**30)


class IntMmScan:
    """See `lsb.search.scan.Scan`.

    Args:
        seeds: what is searched for.
        limit: most neighbours of a seed.
        floor: smallest score of a neighbour, -inf for none.
        projection: how rows become codes.
        device: "cpu" or "cuda".

    Raises:
        ValueError: there is no such device.
    """

    def __init__(
        self,
        seeds: Seeds,
        limit: int,
        floor: float,
        projection: Projection,
        device: str = "cpu",
    ):
        require_device(device)
        self.seeds = seeds
        self.floor = floor
        self.device = torch.device(device)
        self.projection = projection
        self._best = NeighbourLists(len(seeds), limit)
        codes = encode_seeds(projection, seeds.vectors)
        self._rows_at_a_time, self._seeds_at_a_time = TILES[device]
        self._vectors = torch.from_numpy(seeds.vectors).to(self.device)
        step1 = codes.prefix if projection.prefix else codes.codes
        self._codes = _aligned(torch.from_numpy(step1)).to(self.device)
        self._error = codes.prefix_error.astype(np.float64)
        row_step = projection.prefix_step if projection.prefix else projection.step
        self._scale = float(np.float64(row_step) * codes.prefix_step)
        self._norm = codes.norm
        self._weights = _aligned(torch.from_numpy(projection.weights)).to(self.device)
        self._float_error = proposal_error(projection.dimension)
        self._found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    @property
    def bound(self) -> FloatArray:
        """(Q,) see `Scan`."""
        return self._best.bound

    def raise_bound(self, bound_Q: FloatArray) -> None:
        """See `Scan`."""
        self._best.bound = np.maximum(self._best.bound, bound_Q)

    def lists(self) -> NeighbourLists:
        """See `Scan`."""
        return self._best

    def add(self, block: Block) -> None:
        """See `Scan`."""
        if not len(self.seeds):
            return
        # While lists are not full everything passes, so the first tiles are small.
        step = self._rows_at_a_time if self._best.is_full().all() else FIRST_ROWS
        start = 0
        waiting = 0
        while start < len(block):
            rows = np.array(block.vectors[start : start + step])
            waiting += self._tile(torch.from_numpy(rows).to(self.device), start)
            growing = step < self._rows_at_a_time
            start += len(rows)
            step = min(2 * step, self._rows_at_a_time)
            if growing or waiting >= MERGE_PAIRS or start >= len(block):
                self._merge(block)
                waiting = 0

    def _tile(self, stored_ND: torch.Tensor, start: int) -> int:
        """Compare some rows with all seeds; returns how many pairs were kept."""
        vectors_ND = stored_ND.float()
        codes_NP, error_N = self._encode(vectors_ND)
        extra_N = torch.ceil(error_N.clamp(max=4.0) * (self._norm / self._scale)) + 1
        wanted_Q = self._wanted()
        least = int(extra_N.max())
        kept = 0
        for first in range(0, len(self.seeds), self._seeds_at_a_time):
            last = min(first + self._seeds_at_a_time, len(self.seeds))
            product_NQ = torch._int_mm(
                codes_NP, self._codes[first : first + self._seeds_at_a_time].T
            )
            wanted = torch.from_numpy(wanted_Q[first:last]).to(self.device)
            passed = product_NQ[: len(vectors_ND), : last - first] >= wanted - least
            row_P, seed_P = passed.nonzero(as_tuple=True)
            product_P = product_NQ[row_P, seed_P]
            near = product_P + extra_N[row_P].to(torch.int64) >= wanted[seed_P]
            row_P, seed_P = row_P[near], seed_P[near] + first
            kept += self._decide(vectors_ND, row_P, seed_P, start)
        return kept

    def _wanted(self) -> np.ndarray:
        """(Q,) int32, the product of codes from which a pair passes, before its row's error."""
        least = np.maximum(self._best.bound.astype(np.float64), self.floor)
        wanted = np.floor((least - self._error - SLACK) / self._scale)
        return np.maximum(wanted, SMALLEST_WANTED).astype(np.int32)

    def _encode(self, vectors_ND: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes that are multiplied, (n, P) int8 aligned, and (n,) float64 errors."""
        projection = self.projection
        codes, missed = _quantised(vectors_ND.double(), projection.step)
        if not projection.prefix:
            return _aligned(codes), missed
        product = torch._int_mm(_aligned(codes), self._weights.T)
        inside = product[: len(codes), : len(projection.weights)].double()
        inside *= projection.weight_scale * projection.step
        whole = codes.double().square().sum(1) * projection.step**2
        outside = (whole - inside.square().sum(1)).clamp(min=0) + 1e-12
        each = (outside / AUGMENTED).sqrt() * (1 + 1e-5)
        coordinates = torch.cat([inside, each[:, None].expand(-1, AUGMENTED)], dim=1)
        prefix, missed_again = _quantised(coordinates, projection.prefix_step)
        return _aligned(prefix), missed + missed_again

    def _decide(
        self, vectors_ND: torch.Tensor, row_P: torch.Tensor, seed_P: torch.Tensor, start: int
    ) -> int:
        """Keep the pairs whose similarity may enter a list."""
        least_Q = torch.from_numpy(np.maximum(self._best.bound.astype(np.float64), self.floor))
        least_Q = least_Q.to(self.device)
        step = max(1, PAIRS_AT_A_TIME // vectors_ND.shape[1])
        kept = 0
        for first in range(0, len(row_P), step):
            row, seed = row_P[first : first + step], seed_P[first : first + step]
            a, b = vectors_ND[row], self._vectors[seed]
            near = torch.linalg.vecdot(a, b).double() + self._float_error >= least_Q[seed]
            a, b, row, seed = a[near], b[near], row[near], seed[near]
            score = _rescored(a, b)
            passed = score.double() >= least_Q[seed]
            if bool(passed.any()):
                self._found.append((seed[passed], score[passed], row[passed] + start))
                kept += len(self._found[-1][0])
        return kept

    def _merge(self, block: Block) -> None:
        """Put the pairs found so far into the lists."""
        if not self._found:
            return
        seed, score, row = (
            torch.cat([found[column] for found in self._found]).cpu().numpy() for column in range(3)
        )
        self._found = []
        keep = block.ids[row] != self.seeds.ids[seed]
        if block.excluded is not None:
            keep &= ~block.excluded[row]
        seed, score, row = seed[keep], score[keep], row[keep]
        self._best.merge(seed, score, block.ids[row], row + block.first_row)


def require_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        ValueError: the message says which.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "search.device is cuda but torch finds no CUDA device: set search.device=cpu"
        )


def _quantised(vectors_ND: torch.Tensor, step: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(N, D) int8 codes and the (N,) norms of what they leave out, rounded up."""
    codes = (vectors_ND / step).round_().clamp_(-127, 127)
    missed = torch.linalg.vector_norm(vectors_ND - codes * step, dim=1) * (1 + 1e-5)
    return codes.to(torch.int8), missed


def _aligned(codes_NP: torch.Tensor) -> torch.Tensor:
    """Codes with rows and columns of zeros up to the alignment."""
    rows, columns = (-size % ALIGNMENT for size in codes_NP.shape)
    return torch.nn.functional.pad(codes_NP, (0, columns, 0, rows)).contiguous()


def _rescored(left_PD: torch.Tensor, right_PD: torch.Tensor) -> torch.Tensor:
    """`lsb.search.rescore.similarity` in torch, bit for bit."""
    terms = left_PD.double() * right_PD.double()
    while terms.shape[1] > 1:
        half = 1 << math.ceil(math.log2(terms.shape[1])) - 1
        upper = terms[:, half:]
        terms = terms[:, :half]
        terms[:, : upper.shape[1]] += upper
    return (terms[:, 0] + 0.0).float()
