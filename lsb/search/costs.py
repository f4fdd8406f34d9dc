"""What the steps of a search cost on a machine, in CPU seconds of one thread.

`lsb.search.calibration` measures them, `lsb.search.ways` adds them up, docs/plan.md has the sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class KernelCosts:
    """Of the compiled scan, for one instruction set. A product is that of two codes.

    Attributes:
        encode_row, encode_coordinate: codes of a row, at once and for each coordinate.
        half_coordinate: added for each coordinate of a float16 row.
        prefix_coordinate, encode_product: prefix of a row, for each of its coordinates and for each
            product that makes them.
        pair, product: first bound of a (row, seed), at once and for each product.
        code_pair, code_coordinate: second bound of a pair that passed the first.
        float_pair, float_coordinate: float32 product of a pair that passed both.
        score_pair, score_coordinate: rescoring one and putting it into its list.
        seed_coordinate: preparing a seed, for each coordinate.
        kept_byte: reading a byte of stored codes, on top of `Costs.read_byte`.
    """

    encode_row: float
    encode_coordinate: float
    half_coordinate: float
    prefix_coordinate: float
    encode_product: float
    pair: float
    product: float
    code_pair: float
    code_coordinate: float
    float_pair: float
    float_coordinate: float
    score_pair: float
    score_coordinate: float
    seed_coordinate: float
    kept_byte: float


@dataclass(frozen=True)
class TorchCosts:
    """Of `lsb.search.int_mm` on a CPU; see `KernelCosts`."""

    encode_coordinate: float
    pair: float
    product: float
    score_pair: float
    score_coordinate: float
    seed_coordinate: float


@dataclass(frozen=True)
class KnnCosts:
    """Of `lsb.search.knn`.

    Attributes:
        row_coordinate: reading, or widening, a coordinate of a row.
        pair, product: of `faiss.knn`, at once and for each float32 product.
        entry: of a row that enters a seed's list for a while, see `entries`.
        proposal: deciding on one proposed neighbour of a seed in a block.
    """

    row_coordinate: float
    pair: float
    product: float
    entry: float
    proposal: float


@dataclass(frozen=True)
class IvfCosts:
    """Of an inverted file over float32 vectors.

    Attributes:
        train_product: of k-means, for each product of a sampled row and a centre.
        add_product: of adding rows, likewise.
        scan_product: of a search, for each product of a seed and a row of a probed list.
        byte: writing a byte of the index.
    """

    train_product: float
    add_product: float
    scan_product: float
    byte: float


@dataclass(frozen=True)
class Costs:
    """Of everything, on one machine.

    Attributes:
        kernels: by name, those that run here.
        torch: of `int_mm`.
        knn: of `faiss.knn`.
        ivf: of the index.
        read_byte: first touch of a mapped byte that is in the page cache.
        id_row: reading a row's id.
        hit: ordering, cutting and tabulating one hit.
        merge: merging one hit of another process into the lists.
        fit: choosing a projection, at once.
        fit_square: the same, times the dimension squared.
        machine: what they were measured on.
    """

    kernels: Mapping[str, KernelCosts]
    torch: TorchCosts
    knn: KnnCosts
    ivf: IvfCosts
    read_byte: float
    id_row: float
    hit: float
    merge: float
    fit: float
    fit_square: float
    machine: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """JSON-like."""
        return asdict(self)

    @classmethod
    def from_json(cls, told: Mapping[str, Any]) -> Costs:
        """The reverse of `to_json`.

        Raises:
            TypeError, KeyError: something is missing, or unknown.
        """
        return cls(
            **{
                **told,
                "kernels": {name: KernelCosts(**of) for name, of in told["kernels"].items()},
                "torch": TorchCosts(**told["torch"]),
                "knn": KnnCosts(**told["knn"]),
                "ivf": IvfCosts(**told["ivf"]),
            }
        )


def entries(rows: float, width: float) -> float:
    """How many rows enter the list of the `width` best, if they come in random order."""
    return width * (1 + math.log(rows / width)) if rows > width else rows
