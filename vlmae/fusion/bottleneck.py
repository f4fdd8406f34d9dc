"""Fusion through a bottleneck: the towers exchange information through a few shared tokens only.

Source: MBT (Nagrani et al. 2021, arXiv 2107.00135), equations 8 and 9, mid fusion.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlmae.fusion.attention import AttentionBlock, check_heads
from vlmae.fusion.base import Fusion, check_count, check_share
from vlmae.tokens import Fused, Tokens, concatenate


class BottleneckFusion(Fusion):
    """A transformer encoder a modality; from `fusion_layer` on, both also read and write n tokens.

    In each of those layers a modality's tokens and the bottleneck tokens attend to each other, and
    the two versions of the bottleneck are averaged. The embedding (B, D) is the mean of both
    modalities' class tokens, whose logits the source averages. A missing modality is left out of
    either average; if both are missing the embedding is zero.

    Args:
        width: D of the tokens.
        heads: attention heads; must divide `width`.
        layers: of each encoder.
        fusion_layer: the first layer with the bottleneck, from 0; at least two layers must have it,
            as what one modality writes in a layer, the other reads in the next.
        bottlenecks: n, the source uses 4.
        dropout: in attention and feed-forward, in [0, 1).
    """

    def __init__(
        self,
        width: int,
        heads: int,
        layers: int,
        fusion_layer: int,
        bottlenecks: int,
        dropout: float,
    ) -> None:
        super().__init__(width, embedding_width=width)
        check_heads(heads, width)
        check_count("bottlenecks", bottlenecks)
        check_share("dropout", dropout)
        if not 0 <= fusion_layer <= layers - 2:
            raise ValueError(
                f"fusion.fusion_layer is {fusion_layer} of fusion.layers {layers}: leave at least "
                "two layers from it on, what one modality writes the other reads a layer later"
            )
        self.fusion_layer = fusion_layer
        self.vl_class = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.audio_class = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.bottleneck = nn.Parameter(0.02 * torch.randn(1, bottlenecks, width))
        self.vl_blocks, self.audio_blocks = (
            nn.ModuleList(AttentionBlock(width, heads, dropout, gated=False) for _ in range(layers))
            for _ in range(2)
        )
        self.vl_norm = nn.LayerNorm(width)
        self.audio_norm = nn.LayerNorm(width)

    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        """See `Fusion.forward`."""
        shares = _shares(vl.present, audio.present).to(vl.values.dtype)
        vl = concatenate([_always(self.vl_class, vl), vl.zero_masked()])
        audio = concatenate([_always(self.audio_class, audio), audio.zero_masked()])
        bottleneck = _always(self.bottleneck, vl)
        for number, (vl_block, audio_block) in enumerate(
            zip(self.vl_blocks, self.audio_blocks, strict=True)
        ):
            if number < self.fusion_layer:
                vl, audio = vl_block(vl, vl), audio_block(audio, audio)
            else:
                vl, from_vl = _with_bottleneck(vl_block, vl, bottleneck)
                audio, from_audio = _with_bottleneck(audio_block, audio, bottleneck)
                # Where both are missing the bottleneck is read by nobody.
                mixed = shares[:, 0] * from_vl + shares[:, 1] * from_audio
                bottleneck = Tokens(mixed, bottleneck.mask)
        v, a = self.vl_norm(vl.values[:, 0]), self.audio_norm(audio.values[:, 0])
        return Fused(shares[:, 0, 0] * v + shares[:, 1, 0] * a)


def _with_bottleneck(block: nn.Module, tokens: Tokens, bottleneck: Tokens) -> tuple[Tokens, Tensor]:
    """One layer over a modality's tokens and the bottleneck: both after it."""
    joined = concatenate([bottleneck, tokens])
    after = block(joined, joined).values
    count = bottleneck.values.shape[1]
    return Tokens(after[:, count:], tokens.mask), after[:, :count]


def _always(parameter: Tensor, tokens: Tokens) -> Tokens:
    """Learned tokens (1, n, D) for every clip of a batch, never masked."""
    values = parameter.expand(tokens.values.shape[0], -1, -1)
    return Tokens(values, torch.ones_like(values[..., 0], dtype=torch.bool))


def _shares(vl_present: Tensor, audio_present: Tensor) -> Tensor:
    """(B, 2, 1, 1) weights of the modalities that are there; they add up to 1, or to 0 if none."""
    present = torch.stack([vl_present, audio_present], dim=1).float()
    return (present / present.sum(dim=1, keepdim=True).clamp_min(1.0))[..., None, None]
