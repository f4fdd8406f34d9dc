"""The attention block that variants share: pre-norm, residual, safe where everything is masked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlmae.tokens import Tokens


class AttentionBlock(nn.Module):
    """Queries attend to a context, then a feed-forward; both residual, optionally behind a gate.

    The keys hold one learned token besides the context, so that a query whose whole context is
    masked still attends to something and its result does not depend on what stands under the mask.

    Args:
        width: of the queries and of the result.
        heads: attention heads; must divide `width`.
        dropout: in attention and feed-forward, in [0, 1).
        context_width: of the context; as `width` if None.
        gated: multiply both residuals with tanh of a scalar that starts at zero (Flamingo, arXiv
            2204.14198): the block starts as the identity.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        context_width: int | None = None,
        gated: bool = True,
    ) -> None:
        super().__init__()
        context_width = width if context_width is None else context_width
        self.query_norm = nn.LayerNorm(width)
        self.context_norm = nn.LayerNorm(context_width)
        self.nothing = nn.Parameter(torch.zeros(1, 1, context_width))
        self.attention = nn.MultiheadAttention(
            width,
            heads,
            dropout=dropout,
            kdim=context_width,
            vdim=context_width,
            batch_first=True,
        )
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(2 * width, width),
            nn.Dropout(dropout),
        )
        self.gated = gated
        if gated:
            # (1,) and not 0-dimensional: DeepSpeed cannot partition those.
            self.attention_gate = nn.Parameter(torch.zeros(1))
            self.feed_forward_gate = nn.Parameter(torch.zeros(1))

    def forward(self, queries: Tokens, context: Tokens) -> Tokens:
        """Queries after the block, under their own mask.

        Args:
            queries: (B, Tq, width), finite also under the mask.
            context: (B, Tk, context_width), finite also under the mask; may be the queries.
        """
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
        values = queries.values + self._attention_share(mixed)
        values = values + self._feed_forward_share(self.feed_forward(values))
        return Tokens(values, queries.mask)

    def _attention_share(self, mixed: Tensor) -> Tensor:
        return self.attention_gate.tanh() * mixed if self.gated else mixed

    def _feed_forward_share(self, values: Tensor) -> Tensor:
        return self.feed_forward_gate.tanh() * values if self.gated else values


def check_heads(heads: int, width: int, of: str = "fusion.width") -> None:
    """Refuse heads that do not divide a width."""
    if heads < 1 or width % heads:
        raise ValueError(f"fusion.heads {heads} must divide {of} {width}")
