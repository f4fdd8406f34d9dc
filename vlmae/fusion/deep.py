"""Deep fusion: gated cross-attention to audio before the upper blocks of the VL encoder.

Source: Flamingo (Alayrac et al. 2022, arXiv 2204.14198), section 2.2: between the blocks of a
    pre-trained model, cross-attention and a feed-forward, each behind a tanh gate that starts at
    zero, so that training starts from exactly the pre-trained model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from vlmae.fusion.attention import AttentionBlock, check_heads
from vlmae.fusion.base import Fusion, InnerBlocks, check_share
from vlmae.tokens import Fused, Tokens

if TYPE_CHECKING:
    from vlmae.backbones.suffix import Between


class DeepFusion(Fusion):
    """An adapter before every VL block behind the cut; it reads the projected audio tokens.

    The embedding (B, D) is the mean of the VL tokens that came through the adapters, nothing else:
    at the start it is the VL model's, bit for bit. A clip without any VL token has an embedding of
    zeros, as the VL model has.

    At the start an adapter's inner weights have no gradient, its gates alone do.

    Args:
        width: D of the projected tokens.
        heads: attention heads; must divide the hidden width of the VL encoder.
        dropout: in the adapters, in [0, 1).
    """

    acts_inside: ClassVar[bool] = True

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__(width, embedding_width=width)
        check_share("dropout", dropout)
        self.attention_heads, self.adapter_dropout = heads, dropout
        self.adapters = nn.ModuleDict()

    def attach(self, streams: Mapping[str, InnerBlocks]) -> None:
        """Make an adapter for every block; see `Fusion.attach`.

        Raises:
            ValueError: there is no block, or `heads` does not divide a hidden width.
        """
        if not any(blocks.numbers for blocks in streams.values()):
            raise ValueError(
                "fusion deep needs a transformer VL backbone with blocks behind the cut: choose "
                "tuning=deep, or set tuning.vl.blocks to 1 or more (convolutions have none)"
            )
        for stream, blocks in streams.items():
            check_heads(self.attention_heads, blocks.width, f"the hidden width of {stream!r},")
            self.adapters[stream] = nn.ModuleDict(
                {
                    str(number): AttentionBlock(
                        blocks.width, self.attention_heads, self.adapter_dropout, self.width
                    )
                    for number in blocks.numbers
                }
            )

    def hooks(self, audio: Tokens) -> dict[str, Between]:
        """See `Fusion.hooks`."""
        return {stream: self._hook(stream, audio.zero_masked()) for stream in self.adapters}

    def _hook(self, stream: str, audio: Tokens) -> Between:
        adapters = self.adapters[stream]
        assert isinstance(adapters, nn.ModuleDict)

        def before(number: int, hidden: Tokens) -> Tokens:
            adapted: Tokens = adapters[str(number)](hidden, audio)
            return adapted

        return before

    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        """See `Fusion.forward`; audio has acted already, inside the VL encoder."""
        return Fused(vl.mean())
