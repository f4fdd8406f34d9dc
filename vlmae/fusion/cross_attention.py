"""Mid-fusion by cross-attention, in both directions or in one.

Source: Sun et al. 2025 (arXiv 2503.17551) describe a learnable attention that adjusts the audio
    side and the VL side until the modalities mix; the block structure and the product term are
    ours.
"""

from __future__ import annotations

import torch
from torch import nn

from vlmae.fusion.attention import AttentionBlock, check_heads
from vlmae.fusion.base import Fusion, check_count, check_share
from vlmae.tokens import Fused, Tokens

DIRECTIONS = ("both", "audio_to_vl", "vl_to_audio")


class CrossAttentionFusion(Fusion):
    """VL tokens attend to audio and audio tokens to VL, `layers` times; then both are averaged.

    The embedding (B, 3D) is [v, a, v * a]: a task that asks whether two modalities agree needs
    their product, which a sum cannot give. Every block starts as the identity (tanh gates at zero,
    as in Flamingo, arXiv 2204.14198), so that training starts from the plain product of both towers
    and adds attention as far as the labels support it.

    Args:
        width: D of the tokens.
        heads: attention heads; must divide `width`.
        layers: how often the towers attend to each other.
        dropout: in attention and feed-forward, in [0, 1).
        direction: which way information flows. "audio_to_vl": VL tokens ask (queries) and audio
            tokens answer (keys and values); audio tokens stay as they are. "vl_to_audio": audio
            tokens ask and VL tokens answer. "both": each asks the other as it stood before the
            layer.
    """

    def __init__(
        self, width: int, heads: int, layers: int, dropout: float, direction: str = "both"
    ) -> None:
        super().__init__(width, embedding_width=3 * width)
        check_heads(heads, width)
        check_count("layers", layers)
        check_share("dropout", dropout)
        if direction not in DIRECTIONS:
            raise ValueError(f"fusion.direction is {direction!r}: give one of {DIRECTIONS}")
        self.direction = direction
        vl_layers = 0 if direction == "vl_to_audio" else layers
        audio_layers = 0 if direction == "audio_to_vl" else layers
        self.vl_blocks, self.audio_blocks = (
            nn.ModuleList(AttentionBlock(width, heads, dropout) for _ in range(count))
            for count in (vl_layers, audio_layers)
        )
        self.vl_norm = nn.LayerNorm(width)
        self.audio_norm = nn.LayerNorm(width)

    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        """See `Fusion.forward`."""
        vl, audio = vl.zero_masked(), audio.zero_masked()
        for layer in range(max(len(self.vl_blocks), len(self.audio_blocks))):
            vl_before, audio_before = vl, audio
            if len(self.vl_blocks):
                vl = self.vl_blocks[layer](vl_before, audio_before)
            if len(self.audio_blocks):
                audio = self.audio_blocks[layer](audio_before, vl_before)
        v, a = self.vl_norm(vl.mean()), self.audio_norm(audio.mean())
        return Fused(torch.cat([v, a, v * a], dim=-1))
