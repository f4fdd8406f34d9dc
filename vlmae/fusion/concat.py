"""Fusion by concatenation: an MLP over both towers' pooled tokens.

The usual baseline of multimodal learning (Baltrušaitis et al. 2019, arXiv 1705.09406, early
fusion of features): it can learn any interaction of the two means, but no product is built in.
"""

from __future__ import annotations

import torch
from torch import nn

from vlmae.fusion.base import Fusion, check_count, check_share
from vlmae.tokens import Fused, Tokens


class ConcatFusion(Fusion):
    """The embedding (B, D) is the MLP's output; the mean of a missing modality is zero.

    Both means are normalised first, so that neither tower is the louder one at the start.

    Args:
        width: D of the tokens.
        hidden: units of the hidden layer.
        dropout: behind the hidden layer, in [0, 1).
    """

    def __init__(self, width: int, hidden: int, dropout: float) -> None:
        super().__init__(width, embedding_width=width)
        check_count("hidden", hidden)
        check_share("dropout", dropout)
        self.vl_norm = nn.LayerNorm(width)
        self.audio_norm = nn.LayerNorm(width)
        self.mix = nn.Sequential(
            nn.Linear(2 * width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, width)
        )

    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        """See `Fusion.forward`."""
        v, a = self.vl_norm(vl.mean()), self.audio_norm(audio.mean())
        return Fused(self.mix(torch.cat([v, a], dim=-1)))
