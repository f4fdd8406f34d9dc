"""Mid-fusion by cross-attention in both directions.

Source: Sun et al. 2025 (arXiv 2503.17551) describe a learnable attention that adjusts the audio
    side and the VL side until the modalities mix; the block structure and the product term are
    ours.
"""

from __future__ import annotations

import torch
from torch import nn

from vlmae.fusion.base import Fusion
from vlmae.tokens import Fused, Tokens


class CrossAttentionFusion(Fusion):
    """VL tokens attend to audio and audio tokens to VL, `layers` times; then both are averaged.

    The embedding (B, 3D) is [v, a, v * a]: a task that asks whether two modalities agree needs
    their product, which a sum cannot give. Every block starts as the identity (tanh gates at zero,
    as in Flamingo, arXiv 2204.14198), so that training starts from the plain product of both towers
    and adds attention as far as the labels support it.

    Args:
        width: D of the tokens.
        heads: attention heads; must divide `width`.
        layers: how often both towers attend to each other.
        dropout: in attention and feed-forward, in [0, 1).
    """

    def __init__(self, width: int, heads: int, layers: int, dropout: float) -> None:
        super().__init__(width, embedding_width=3 * width)
        if width % heads:
            raise ValueError(f"fusion.heads {heads} must divide fusion.width {width}")
        if layers < 1:
            raise ValueError(f"fusion.layers must be at least 1, got {layers}")
        self.vl_blocks = nn.ModuleList(_CrossBlock(width, heads, dropout) for _ in range(layers))
        self.audio_blocks = nn.ModuleList(_CrossBlock(width, heads, dropout) for _ in range(layers))
        self.vl_norm = nn.LayerNorm(width)
        self.audio_norm = nn.LayerNorm(width)

    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        """See `Fusion.forward`."""
        for vl_block, audio_block in zip(self.vl_blocks, self.audio_blocks, strict=True):
            vl, audio = vl_block(vl, audio), audio_block(audio, vl)
        v, a = self.vl_norm(vl.mean()), self.audio_norm(audio.mean())
        return Fused(torch.cat([v, a, v * a], dim=-1))


class _CrossBlock(nn.Module):
    """Pre-norm cross-attention and feed-forward, both residual behind a gate.

    The keys hold one learned token besides the context, so that a query whose whole context is
    masked still attends to something and its result does not depend on what stands under the mask.
    """

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.query_norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(width)
        self.nothing = nn.Parameter(torch.zeros(1, 1, width))
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.Dropout(dropout),
        )
        # (1,) and not 0-dimensional: DeepSpeed cannot partition those.
        self.attention_gate = nn.Parameter(torch.zeros(1))
        self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def forward(self, queries: Tokens, context: Tokens) -> Tokens:
        batch = queries.values.shape[0]
        keys = torch.cat(
            [self.nothing.expand(batch, -1, -1), self.context_norm(context.values)], dim=1
        )
        ignored = torch.cat([context.mask.new_zeros(batch, 1), ~context.mask], dim=1)
        mixed, _ = self.attention(
            self.query_norm(queries.values),
            keys,
            keys,
            key_padding_mask=ignored,
            need_weights=False,
        )
        values = queries.values + self.attention_gate.tanh() * mixed
        values = values + self.feed_forward_gate.tanh() * self.feed_forward(values)
        return Tokens(values, queries.mask)
