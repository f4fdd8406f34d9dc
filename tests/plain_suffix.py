"""The smallest suffix of the transformer kind: layers, a norm, a mean over groups of positions.

Towers are cut by `vlmae.backbones.stream.StreamEncoder`; this one needs no encoder around it.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from vlmae.backbones.suffix import (
    MASKED_SCORE,
    Between,
    StreamSuffix,
    mean_of_groups,
    without_masked,
)
from vlmae.tokens import Tokens


class TransformerSuffix(StreamSuffix):
    """Transformer layers of transformers, a final norm and a mean over groups of positions.

    Args:
        layers: original number -> layer, called with hidden states and an additive mask.
        norm: what follows the last layer; `nn.Identity` for none.
        pool: positions averaged into one token; None for all of them.
        width: of the hidden states.
    """

    def __init__(
        self, layers: nn.ModuleDict, norm: nn.Module, pool: int | None, width: int
    ) -> None:
        super().__init__()
        self.layers, self.norm = layers, norm
        self.pool, self.width, self.blocks = pool, width, len(layers)
        self.hidden_width = width
        self.checkpointing = False

    def forward(self, tokens: Tokens, between: Between | None = None) -> Tokens:
        """See `StreamSuffix.forward`."""
        hidden = without_masked(tokens)
        mask = torch.zeros_like(tokens.mask, dtype=hidden.dtype)
        mask = mask.masked_fill(~tokens.mask, MASKED_SCORE)[:, None, None, :]
        for number, layer in self.layers.items():
            if between is not None:
                hidden = between(int(number), Tokens(hidden, tokens.mask)).values
            if self.checkpointing and self.training and torch.is_grad_enabled():
                output = checkpoint(layer, hidden, mask, use_reentrant=False)
            else:
                output = layer(hidden, mask)
            hidden = output[0] if isinstance(output, tuple) else output
        return mean_of_groups(Tokens(self.norm(hidden), tokens.mask), self.pool)
