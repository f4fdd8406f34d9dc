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
import numpy.typing as npt
import torch

from lsb.search.lists import FloatArray, NeighbourLists
from lsb.search.projection import encode_seeds, without_prefix
from lsb.search.rescore import proposal_error
from lsb.search.scan import Block, Seeds

SLACK = 2e-6
ALIGNMENT = 32
"""`_int_mm` wants shapes that are multiples of 8 on CUDA, and more than 16 rows."""
FIRST_ROWS = 128
ROWS_AT_A_TIME = {"cpu": 2048, "cuda": 65_536}
PAIRS_AT_A_TIME = {"cpu": 1 << 24, "cuda": 1 << 28}
"""Rows times seeds: while nothing bounds a list all of them are candidates, and are held."""
CACHED_TILE = (256, 512)
"""Rows and seeds multiplied at a time on a CPU: their products stay in a core's cache."""
SEEDS_AT_A_TIME = 4096
"""On other devices."""
TERMS_AT_A_TIME = {"cpu": 1 << 17, "cuda": 1 << 25}
"""Coordinates of pairs that are rescored at a time."""
MERGE_PAIRS = 1 << 20
SMALLEST_WANTED = -(2**30)
NEVER = np.iinfo(np.int32).max
UNEVEN = 1.25
"""From this ratio of the errors of neighbouring rows on, each row is compared by its own."""

PlaceArray = npt.NDArray[np.int64]
CountArray = npt.NDArray[np.int32]


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
        tiles = PAIRS_AT_A_TIME[device] // max(1, len(seeds)) // CACHED_TILE[0]
        held = max(FIRST_ROWS, CACHED_TILE[0] * tiles)
        self._rows_at_a_time = min(ROWS_AT_A_TIME[device], held)
        self._rows = FIRST_ROWS
        self._vectors = torch.from_numpy(seeds.vectors).to(self.device)
        products = CachedProducts if device == "cpu" else DeviceProducts
        self._products = products(torch.from_numpy(codes.codes).to(self.device))
        self._terms_at_a_time = TERMS_AT_A_TIME[device]
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
        start = 0
        waiting = 0
        while start < len(block):
            rows = np.array(block.vectors[start : start + self._rows])
            waiting += self._compare(torch.from_numpy(rows).to(self.device), start)
            start += len(rows)
            # Without LT all rows enter lists that are not full, so the first steps are small.
            growing = self._rows < self._rows_at_a_time
            self._rows = min(2 * self._rows, self._rows_at_a_time)
            if growing or waiting >= MERGE_PAIRS or start >= len(block):
                self._merge(block)
                waiting = 0

    def _compare(self, stored_ND: torch.Tensor, start: int) -> int:
        """Compare some rows with all seeds; returns how many pairs were kept."""
        vectors_ND = stored_ND.float()
        codes_ND, error_N = _quantised(vectors_ND, self._step)
        extra_N = torch.ceil(error_N.clamp(max=4.0) * (self._norm / self._scale)).int() + 1
        row_P, seed_P = self._products.reached(codes_ND, extra_N, self._wanted())
        return self._decide(vectors_ND, row_P, seed_P, start)

    def _wanted(self) -> CountArray:
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
        step = max(1, self._terms_at_a_time // vectors_ND.shape[1])
        kept = 0
        for first in range(0, len(row_P), step):
            row, seed = row_P[first : first + step], seed_P[first : first + step]
            a, b = vectors_ND.index_select(0, row), self._vectors.index_select(0, seed)
            least = least_Q.index_select(0, seed)
            near = torch.linalg.vecdot(a, b).double() + self._float_error >= least
            places = near.nonzero()[:, 0]
            if 2 * len(places) < len(near):
                a, b, row, seed, least = (
                    x.index_select(0, places) for x in (a, b, row, seed, least)
                )
            score = _rescored(a, b)
            passed = (score.double() >= least).nonzero()[:, 0]
            if len(passed):
                seed, score, row = (x.index_select(0, passed) for x in (seed, score, row))
                self._found.append((seed, score, row + start))
                kept += len(passed)
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


class CachedProducts:
    """Finds large products of codes on a CPU, tile by tile, with memory that is made once.

    Args:
        codes_QD: (Q, D) int8 codes of seeds.
    """

    def __init__(self, codes_QD: torch.Tensor):
        self._seeds = len(codes_QD)
        rows, columns = CACHED_TILE
        self._codes = _padded(codes_QD, min(columns, _up(len(codes_QD), ALIGNMENT)))
        self._shape = rows, min(columns, len(self._codes))
        self._product = torch.empty(self._shape, dtype=torch.int32)
        self._passed = np.empty(self._shape, dtype=bool)

    def reached(
        self, codes_ND: torch.Tensor, extra_N: torch.Tensor, wanted_Q: CountArray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows and seeds whose product, with what a row's error may add, is what a seed wants.

        Args:
            codes_ND: (N, D) int8.
            extra_N: (N,) int32.
            wanted_Q: (Q,) int32.

        Returns:
            (P,) int64 each, of all such pairs and perhaps of some whose product is a little less.
        """
        rows, columns = self._shape
        wanted = np.full(len(self._codes), NEVER, np.int64)
        wanted[: self._seeds] = wanted_Q
        codes = _padded(codes_ND, rows)
        product = self._product.numpy()
        found: list[PlaceArray] = []
        tiles = len(self._codes) // columns
        for first in range(0, len(codes_ND), rows):
            extra = extra_N[first : first + rows].numpy()
            most = int(extra.max())
            uneven = most > UNEVEN * int(extra.min())
            least = (wanted - most).astype(np.int32)
            for tile in range(tiles):
                seeds = slice(tile * columns, (tile + 1) * columns)
                torch._int_mm(codes[first : first + rows], self._codes[seeds].T, out=self._product)
                np.greater_equal(product[: len(extra)], least[seeds], self._passed[: len(extra)])
                place = np.flatnonzero(self._passed[: len(extra)])
                if uneven:
                    row, seed = np.divmod(place, columns)
                    near = product[row, seed] + extra[row] >= wanted[seeds][seed]
                    place = place[near]
                if len(place):
                    found.append(place + (first * tiles + tile * rows) * columns)
        places = np.concatenate(found) if found else np.empty(0, np.int64)
        tile_P, place_P = np.divmod(places, rows * columns)
        block_P, tile_P = np.divmod(tile_P, tiles)
        row_P, seed_P = np.divmod(place_P, columns)
        row_P += block_P * rows
        seed_P += tile_P * columns
        return torch.from_numpy(row_P), torch.from_numpy(seed_P)


class DeviceProducts:
    """The same as `CachedProducts` for tensors on any device, in tiles that fill a GPU.

    Args:
        codes_QD: (Q, D) int8 codes of seeds.
    """

    def __init__(self, codes_QD: torch.Tensor):
        self._seeds = len(codes_QD)
        self._codes = _padded(codes_QD, ALIGNMENT)

    def reached(
        self, codes_ND: torch.Tensor, extra_N: torch.Tensor, wanted_Q: CountArray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `CachedProducts.reached`."""
        device = codes_ND.device
        codes = _padded(codes_ND, ALIGNMENT)
        wanted = torch.from_numpy(wanted_Q).to(device)
        least = wanted - extra_N.max()
        rows, seeds = [], []
        for first in range(0, self._seeds, SEEDS_AT_A_TIME):
            last = min(first + SEEDS_AT_A_TIME, self._seeds)
            product = torch._int_mm(codes, self._codes[first : first + SEEDS_AT_A_TIME].T)
            product = product[: len(codes_ND), : last - first]
            row, seed = (product >= least[first:last]).nonzero(as_tuple=True)
            # A row with a larger error than others made all wait for it: look again at each.
            near = product[row, seed] + extra_N[row] >= wanted[seed + first]
            rows.append(row[near])
            seeds.append(seed[near] + first)
        return torch.cat(rows), torch.cat(seeds)


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
    codes = torch.empty(vectors_ND.shape, dtype=torch.int8, device=vectors_ND.device)
    error = torch.empty(len(codes), device=codes.device)
    rows = CACHED_TILE[0] if codes.device.type == "cpu" else max(1, len(codes))
    for first in range(0, len(codes), rows):
        part = slice(first, first + rows)
        vectors = vectors_ND[part]
        rounded = (vectors * (1 / step)).round_().clamp_(-127, 127)
        codes[part] = rounded
        # The product is rounded to 2^-24 of its size, which `SLACK` covers.
        error[part] = torch.linalg.vector_norm(rounded.mul_(-step).add_(vectors), dim=1)
    return codes, error * (1 + 1e-5)


def _up(size: int, multiple: int) -> int:
    return -(-size // multiple) * multiple


def _padded(codes_ND: torch.Tensor, rows: int) -> torch.Tensor:
    """Codes with zeros up to a multiple of some rows, and of `ALIGNMENT` columns."""
    count, columns = codes_ND.shape
    more = (0, _up(columns, ALIGNMENT) - columns, 0, _up(count, rows) - count)
    return torch.nn.functional.pad(codes_ND, more).contiguous() if any(more) else codes_ND


def _rescored(left_PD: torch.Tensor, right_PD: torch.Tensor) -> torch.Tensor:
    """`lsb.search.rescore.similarity` in torch, bit for bit."""
    terms = left_PD.double().mul_(right_PD)
    while terms.shape[1] > 1:
        half = 1 << math.ceil(math.log2(terms.shape[1])) - 1
        upper = terms[:, half:]
        terms = terms[:, :half]
        terms[:, : upper.shape[1]] += upper
    return (terms[:, 0] + 0.0).float()
