"""Vectors are finite and of norm 1."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lsb.store.format import VectorArray

NORM_TOLERANCE = 1e-3
"""Largest deviation of a row's norm from 1; rounding to float16 moves a norm by at most 5e-4."""
CHECK_ROWS = 16384


def bad_rows(block_ND: VectorArray) -> Iterator[tuple[int, str, str]]:
    """Rows that are not finite or not of norm 1: (row, what is wrong, remedy).

    Args:
        block_ND: (N, D), in memory at once as float32.
    """
    block = np.asarray(block_ND, dtype=np.float32)
    norm = np.sqrt(np.einsum("nd,nd->n", block, block))
    for row in np.flatnonzero(~(np.abs(norm - 1.0) <= NORM_TOLERANCE)).tolist():
        if not np.isfinite(block[row]).all():
            yield (
                row,
                "holds NaN or infinity",
                "look for a diverged checkpoint or a clip that decodes to nothing",
            )
        else:
            yield (
                row,
                f"has norm {norm[row]:.6g}, expected 1 +- {NORM_TOLERANCE}",
                "L2-normalise embeddings before they are stored or searched",
            )


def require_unit(vectors_ND: VectorArray, name: str) -> None:
    """Refuse vectors that are not finite or not of norm 1.

    Args:
        vectors_ND: (N, D); read `CHECK_ROWS` rows at a time.
        name: what to call them in the message.

    Raises:
        ValueError: names the first bad row, its norm, and the remedy.
    """
    for start in range(0, len(vectors_ND), CHECK_ROWS):
        for row, found, remedy in bad_rows(vectors_ND[start : start + CHECK_ROWS]):
            raise ValueError(f"{name}: row {start + row} {found}: {remedy}")
