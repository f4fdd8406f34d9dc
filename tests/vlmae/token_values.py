"""Tokens of one clip out of a table, for tests."""

from __future__ import annotations

import numpy as np
import torch

from vlmae.data.token_table import TokenTable


def tokens_of(table: TokenTable, row: int, stream: str) -> torch.Tensor:
    """(T, width) float32 tokens of one clip and stream."""
    tokens = table.batch(np.array([row]), stream)
    return tokens.values[0][tokens.mask[0]].float()
