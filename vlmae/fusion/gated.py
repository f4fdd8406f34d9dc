"""Gated multimodal unit: for every feature, a gate decides how much of each modality is seen.

Source: Arevalo et al. 2017 (arXiv 1702.01992), section 3.1, the unit for two modalities.
"""

from __future__ import annotations

import torch
from torch import nn

from vlmae.fusion.base import Fusion, check_share
from vlmae.tokens import Fused, Tokens


class GatedFusion(Fusion):
    """h = z * tanh(W_v v) + (1 - z) * tanh(W_a a), with z = sigmoid(W_z [v, a]), of pooled tokens.

    The embedding (B, D) is h, as in the source. What the source has no answer to is a missing
    modality: the gate then opens fully to the one that is there, and h is zero if neither is.
    Pooled tokens are normalised first, else tanh saturates with the towers' scale.

    Args:
        width: D of the tokens.
        dropout: on h, in [0, 1).
    """

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__(width, embedding_width=width)
        check_share("dropout", dropout)
        self.vl_norm = nn.LayerNorm(width)
        self.audio_norm = nn.LayerNorm(width)
        self.vl = nn.Linear(width, width, bias=False)
        self.audio = nn.Linear(width, width, bias=False)
        self.gate = nn.Linear(2 * width, width, bias=False)
        self.dropout = nn.Dropout(dropout)

    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        """See `Fusion.forward`."""
        v, a = self.vl_norm(vl.mean()), self.audio_norm(audio.mean())
        share = self.gate(torch.cat([v, a], dim=-1)).sigmoid()
        seen, heard = vl.present[:, None], audio.present[:, None]
        vl_share = torch.where(heard, share, 1.0) * seen
        audio_share = torch.where(seen, 1.0 - share, 1.0) * heard
        mixed = vl_share * self.vl(v).tanh() + audio_share * self.audio(a).tanh()
        return Fused(self.dropout(mixed))
