"""Late fusion: each tower decides alone and the logits are averaged.

The arm that complex fusion has to beat ("Fusion or Confusion?", arXiv 2512.22991).
"""

from __future__ import annotations

from typing import ClassVar

import torch

from vlmae.fusion.base import Fusion
from vlmae.tokens import Fused, Tokens


class LateFusion(Fusion):
    """Mean of the unimodal logits; the embedding (B, 2D) joins both towers' pooled tokens."""

    averages_heads: ClassVar[bool] = True

    def __init__(self, width: int) -> None:
        super().__init__(width, embedding_width=2 * width)

    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        """See `Fusion.forward`."""
        return Fused(torch.cat([vl.mean(), audio.mean()], dim=-1))
