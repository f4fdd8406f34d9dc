"""Fusion by self-attention: one transformer encoder over the tokens of both towers.

Source: a learned embedding per modality is added and all tokens attend to all, as in ViLT (Kim et
    al. 2021, arXiv 2102.03334). The read-out is ours: ViLT's class token learns from millions of
    pairs, we have few labels, so both modalities' means and their product are read, as in
    `cross_attention`, which makes the two comparable in how they mix.
"""

from __future__ import annotations

import torch
from torch import nn

from vlmae.fusion.attention import AttentionBlock, check_heads
from vlmae.fusion.base import Fusion, check_count, check_share
from vlmae.tokens import Fused, Tokens, concatenate


class SelfAttentionFusion(Fusion):
    """All tokens attend to all, `layers` times; the embedding (B, 3D) is [v, a, v * a] of means.

    Args:
        width: D of the tokens.
        heads: attention heads; must divide `width`.
        layers: of the encoder.
        dropout: in attention and feed-forward, in [0, 1).
    """

    def __init__(self, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__(width, embedding_width=3 * width)
        check_heads(heads, width)
        check_count("layers", layers)
        check_share("dropout", dropout)
        self.vl_modality = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.audio_modality = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.blocks = nn.ModuleList(
            AttentionBlock(width, heads, dropout, gated=False) for _ in range(layers)
        )
        self.vl_norm = nn.LayerNorm(width)
        self.audio_norm = nn.LayerNorm(width)

    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        """See `Fusion.forward`."""
        vl, audio = vl.zero_masked(), audio.zero_masked()
        joined = concatenate(
            [
                Tokens(vl.values + self.vl_modality, vl.mask),
                Tokens(audio.values + self.audio_modality, audio.mask),
            ]
        )
        for block in self.blocks:
            joined = block(joined, joined)
        border = vl.values.shape[1]
        v = self.vl_norm(Tokens(joined.values[:, :border], vl.mask).mean())
        a = self.audio_norm(Tokens(joined.values[:, border:], audio.mask).mean())
        return Fused(torch.cat([v, a, v * a], dim=-1))
