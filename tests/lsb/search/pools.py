"""Vectors around centres with copies, as pools with near-duplicates have them."""

from __future__ import annotations

import numpy as np


def clustered(count: int, dimension: int, copies: int, seed: int) -> np.ndarray:
    """Unit vectors around few centres, every one `copies` times over."""
    random = np.random.default_rng(seed)
    distinct = -(-count // copies)
    centres = random.normal(size=(max(1, distinct // 20), dimension))
    x = centres[random.integers(len(centres), size=distinct)]
    x = x + 0.3 * random.normal(size=(distinct, dimension))
    x = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return np.tile(x, (copies, 1))[:count]
