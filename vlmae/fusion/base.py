"""The fusion seam: vision-language tokens and audio tokens in, one embedding out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from vlmae.tokens import Fused, Tokens


class Fusion(nn.Module, ABC):
    """A fusion variant.

    Attributes:
        width: D of both token inputs.
        embedding_width: of the embedding.
        averages_heads: the task logits are the mean of the two unimodal heads' logits, which then
            train the towers; other variants have heads of their own on the embedding.
    """

    averages_heads: ClassVar[bool] = False

    def __init__(self, width: int, embedding_width: int) -> None:
        super().__init__()
        self.width, self.embedding_width = width, embedding_width

    @abstractmethod
    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        """Mix two towers.

        Args:
            vl: (B, Tv, D) vision-language tokens.
            audio: (B, Ta, D) audio tokens; a clip without audio is an all-masked row.
        """
