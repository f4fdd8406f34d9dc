"""Exact scan of int8 codes by `torch._int_mm`: without a compiler, and on GPUs.

A tile of rows is multiplied with a tile of seeds, compared with what each seed wants, and
forgotten: the matrix of all scores never exists. Codes are of whole vectors: gathering what passes
a prefix costs torch more than a shorter product saves. Pairs that pass are compared by float32,
then by the rescoring kernel in torch, which uses the same element-wise float64 operations as
`lsb.search.rescore` and gives the same bits on any device.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from lsb.search.lists import FloatArray, NeighbourLists
from lsb.search.projection import encode_seeds, without_prefix
from lsb.search.rescore import proposal_error
from lsb.search.scan import Block, Seeds

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
        step: of the codes of rows.
        device: "cpu" or "cuda".

    Raises:
        ValueError: there is no such device.
    """

    def __init__(
        self,
        seeds: Seeds,
        limit: int,
        floor: float,
        step: float,
        device: str = "cpu",
    ):
        require_device(device)
        self.seeds = seeds
        self.floor = floor
        self.device = torch.device(device)
        self._best = NeighbourLists(len(seeds), limit)
        self._step = step
        codes = encode_seeds(without_prefix(seeds.vectors.shape[1], step), seeds.vectors)
        self._rows_at_a_time, self._seeds_at_a_time = TILES[device]
        self._vectors = torch.from_numpy(seeds.vectors).to(self.device)
        self._codes = _aligned(torch.from_numpy(codes.codes)).to(self.device)
        self._error = codes.code_error.astype(np.float64)
        self._scale = float(np.float64(step) * codes.code_step)
        self._norm = codes.norm
        self._float_error = proposal_error(seeds.vectors.shape[1])
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
        codes_ND, error_N = _quantised(vectors_ND, self._step)
        codes_ND = _aligned(codes_ND)
        extra_N = torch.ceil(error_N.clamp(max=4.0) * (self._norm / self._scale)) + 1
        wanted_Q = torch.from_numpy(self._wanted()).to(self.device)
        least_Q = wanted_Q - int(extra_N.max())
        pairs: list[tuple[torch.Tensor, torch.Tensor]] = []
        for first in range(0, len(self.seeds), self._seeds_at_a_time):
            last = min(first + self._seeds_at_a_time, len(self.seeds))
            codes_QD = self._codes[first : first + self._seeds_at_a_time]
            product_NQ = torch._int_mm(codes_ND, codes_QD.T)
            row_P, seed_P = _reached(
                product_NQ[: len(vectors_ND), : last - first], least_Q[first:last]
            )
            # A row with a larger error than others made all wait for it: look again at each.
            near = product_NQ[row_P, seed_P] + extra_N[row_P] >= wanted_Q[seed_P + first]
            pairs.append((row_P[near], seed_P[near] + first))
        row_P, seed_P = (torch.cat(column) for column in zip(*pairs, strict=True))
        return self._decide(vectors_ND, row_P, seed_P, start)

    def _wanted(self) -> np.ndarray:
        """(Q,) int32, the product of codes from which a pair passes, before its row's error."""
        least = np.maximum(self._best.bound.astype(np.float64), self.floor)
        wanted = np.floor((least - self._error - SLACK) / self._scale)
        return np.maximum(wanted, SMALLEST_WANTED).astype(np.int32)

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
    codes = (vectors_ND * (1 / step)).round_().clamp_(-127, 127)
    left = torch.addcmul(vectors_ND, codes, torch.full_like(codes[:1], -step))
    return codes.to(torch.int8), torch.linalg.vector_norm(left, dim=1) * (1 + 1e-5)


def _reached(product_NQ: torch.Tensor, least_Q: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows and columns where a product is at least what its column wants."""
    if product_NQ.device.type != "cpu":
        row, column = (product_NQ >= least_Q).nonzero(as_tuple=True)
        return row, column
    # numpy finds the few true ones of many several times as fast.
    passed = np.greater_equal(product_NQ.numpy(), least_Q.numpy())
    places = np.divmod(np.flatnonzero(passed), passed.shape[1])
    return torch.from_numpy(places[0]), torch.from_numpy(places[1])


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
