"""Feature-wise linear modulation: audio scales and shifts what the VL side computes.

Source: FiLM (Perez et al. 2018, arXiv 1709.07871): residual blocks whose normalised features are
    modulated by a conditioning input, here the mean of the audio tokens; pooled features are read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlmae.fusion.base import Fusion, check_count, check_share
from vlmae.tokens import Fused, Tokens, concatenate


class FilmFusion(Fusion):
    """`layers` residual blocks over VL tokens, modulated by audio; the embedding (B, D) is a mean.

    Scale and shift start at 1 and 0 and are so for a clip without audio. One learned token stands
    beside the VL tokens: in a clip without any VL token it carries what audio says.

    Args:
        width: D of the tokens.
        layers: residual blocks.
        dropout: on each block's residual, in [0, 1).
    """

    def __init__(self, width: int, layers: int, dropout: float) -> None:
        super().__init__(width, embedding_width=width)
        check_count("layers", layers)
        check_share("dropout", dropout)
        self.token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.audio_norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(_ModulatedBlock(width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        """See `Fusion.forward`."""
        condition = self.audio_norm(audio.mean())
        token = self.token.expand(vl.values.shape[0], -1, -1)
        always = torch.ones_like(token[..., 0], dtype=torch.bool)
        tokens = concatenate([Tokens(token, always), vl.zero_masked()])
        values = tokens.values
        for block in self.blocks:
            values = block(values, condition, audio.present)
        return Fused(self.norm(Tokens(values, tokens.mask).mean()))


class _ModulatedBlock(nn.Module):
    """x + relu(scale * norm(linear(x)) + shift); the norm has no scale and shift of its own."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = _ZeroLinear(width, 2 * width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, values: Tensor, condition: Tensor, heard: Tensor) -> Tensor:
        """(B, T, D) values, changed by a (B, D) condition where `heard` (B,) bool."""
        modulation = self.modulation(condition) * heard[:, None]
        scale, shift = modulation[:, None].chunk(2, dim=-1)
        modulated = (1.0 + scale) * self.norm(self.linear(values)) + shift
        result: Tensor = values + self.dropout(modulated.relu())
        return result


class _ZeroLinear(nn.Linear):
    """Starts at zero. Under ZeRO-3 weights are partitioned once built and cannot be set later."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)
