"""Local scaling: a higher lookalike threshold for seeds in dense neighbourhoods.

Where clips of all kinds lie close together (one uploader's studio, one template), the similarity
that elsewhere marks a lookalike marks nothing. So LT moves with the density around the seed:

    LT(q) = LT' + density(q) - centre,    density(q) = mean similarity of q to its k nearest clips

LT' is calibrated on scaled similarities, s - (density(q) - centre), of labelled pairs, by the same
rule of evidence as an unscaled LT; centre, the mean density of the seeds it is calibrated on, only
keeps LT' in the range of similarities. Subtracting mean similarities of neighbourhoods is known
from cross-domain similarity local scaling (Conneau et al. 2018, arXiv 1710.04087), which corrects
both sides; that it sets LT, and on the seed's side alone, is ours.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.ids import ID_TYPE, IdArray, from_arrow, to_arrow
from lsb.search.ask import Hits

FloatArray = npt.NDArray[np.floating[Any]]
SEED_THRESHOLDS_FIELDS: dict[str, pa.DataType] = {
    "seed_id": ID_TYPE,
    "density": pa.float64(),
    "lookalike_threshold": pa.float64(),
}
SEED_THRESHOLDS = pa.schema(SEED_THRESHOLDS_FIELDS)
"""LT of every seed; density is null for a seed without any neighbour."""

H = TypeVar("H", bound=Hits)


@dataclass(frozen=True)
class LocalScaling:
    """How similarities around a seed are shifted.

    Attributes:
        centre: density that shifts nothing.
        neighbours: k, nearest clips that a density is the mean of.
        among: "pool" or "labelled", where they were looked for.
    """

    centre: float
    neighbours: int
    among: str

    def shift(self, density_Q: FloatArray) -> npt.NDArray[np.float64]:
        """What is added to LT of each seed, (Q,) float64; 0 where there is no density (NaN)."""
        shift = np.asarray(density_Q, dtype=np.float64) - self.centre
        return np.where(np.isnan(shift), 0.0, shift)

    def scaled(self, similarity_P: FloatArray, density_P: FloatArray) -> npt.NDArray[np.float32]:
        """Similarities less the shift of their seeds, (P,) float32."""
        scaled = similarity_P.astype(np.float64) - self.shift(density_P)
        return np.asarray(scaled, dtype=np.float32)


def density(hits: pa.Table, seed_ids: IdArray) -> npt.NDArray[np.float64]:
    """Mean similarity of each seed to its neighbours, (Q,) float64, NaN for a seed without any.

    Args:
        hits: schema `lsb.search.exact.HITS`, the k nearest clips of the seeds.
        seed_ids: (Q,) S16, ascending and unique.
    """
    place = np.searchsorted(seed_ids, from_arrow(hits["seed_id"]))
    similarity = np.asarray(hits["similarity"].to_numpy(), dtype=np.float64)
    # Summed one after the other in the order of ranks, so that bits depend on the seed alone.
    total = np.bincount(place, weights=similarity, minlength=len(seed_ids))
    count = np.bincount(place, minlength=len(seed_ids))
    empty: npt.NDArray[np.float64] = np.full(len(seed_ids), np.nan)
    return np.divide(total, count, out=empty, where=count > 0)


def cut(hits: H, seed_ids: IdArray, threshold_Q: npt.NDArray[np.float64]) -> H:
    """Hits that reach the LT of their own seed.

    Args:
        hits: of a search at the smallest LT of all.
        seed_ids: (Q,) S16, ascending and unique.
        threshold_Q: (Q,) LT of each.

    Returns:
        The same without the others. A seed counts as saturated only if all it found passed: else
        its list is whole.
    """
    place = np.searchsorted(seed_ids, from_arrow(hits.table["seed_id"]))
    similarity = np.asarray(hits.table["similarity"].to_numpy(), dtype=np.float64)
    passed = similarity >= threshold_Q[place]
    whole = np.bincount(place[~passed], minlength=len(seed_ids)) > 0
    saturated = hits.table["saturated"].to_numpy(zero_copy_only=False) & ~whole[place]
    column = hits.table.schema.get_field_index("saturated")
    table = hits.table.set_column(column, "saturated", pa.array(saturated, pa.bool_()))
    row = hits.row[passed] if len(hits.row) else hits.row
    left = len(np.unique(place[saturated]))
    return replace(hits, table=table.filter(pa.array(passed)), saturated=left, row=row)


def seed_thresholds(
    seed_ids: IdArray, density_Q: npt.NDArray[np.float64], threshold_Q: npt.NDArray[np.float64]
) -> pa.Table:
    """Schema `SEED_THRESHOLDS`, by id."""
    columns = [
        to_arrow(seed_ids),
        pa.array(density_Q, mask=np.isnan(density_Q)),
        pa.array(threshold_Q),
    ]
    return pa.table(columns, schema=SEED_THRESHOLDS)
