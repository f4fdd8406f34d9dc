"""The fusion seam: vision-language tokens and audio tokens in, one embedding out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import nn

from vlmae.tokens import Fused, Tokens

if TYPE_CHECKING:  # the towers import libraries that a fusion does not need
    from vlmae.backbones.suffix import Between


@dataclass(frozen=True)
class InnerBlocks:
    """The blocks of one stream that lie behind the cut.

    Attributes:
        numbers: the encoder's own block numbers, in order.
        width: of the hidden states between them.
    """

    numbers: tuple[int, ...]
    width: int


class Fusion(nn.Module, ABC):
    """A fusion variant.

    Attributes:
        width: D of both token inputs.
        embedding_width: of the embedding.
        averages_heads: the task logits are the mean of the two unimodal heads' logits, which then
            train the towers; other variants have heads of their own on the embedding.
        acts_inside: it changes hidden states between the blocks of the VL suffix, too. The model
            then calls `attach` when it is built and `hooks` in every forward pass, and the VL
            tokens that `forward` gets have come through the hooks.
    """

    averages_heads: ClassVar[bool] = False
    acts_inside: ClassVar[bool] = False

    def __init__(self, width: int, embedding_width: int) -> None:
        super().__init__()
        self.width, self.embedding_width = width, embedding_width

    @abstractmethod
    def forward(self, vl: Tokens, audio: Tokens) -> Fused:
        """Mix two towers.

        What stands under a mask, a NaN too, changes neither the embedding nor any gradient. Every
        branch runs whatever is masked (contract 8).

        Args:
            vl: (B, Tv, D) vision-language tokens.
            audio: (B, Ta, D) audio tokens; a clip without audio is an all-masked row.
        """

    def attach(self, streams: Mapping[str, InnerBlocks]) -> None:
        """Make the parts that act between blocks; nothing unless `acts_inside`.

        Args:
            streams: VL stream -> its blocks behind the cut.
        """

    def hooks(self, audio: Tokens) -> dict[str, Between]:
        """VL stream -> what is called before each of its blocks; none unless `acts_inside`.

        Args:
            audio: (B, Ta, D) projected audio tokens.
        """
        return {}


def check_share(name: str, value: float) -> None:
    """Refuse a dropout outside [0, 1)."""
    if not 0 <= value < 1:
        raise ValueError(f"fusion.{name} is {value}: give a share in [0, 1)")


def check_count(name: str, value: int, least: int = 1) -> None:
    """Refuse a count below `least`."""
    if value < least:
        raise ValueError(f"fusion.{name} must be at least {least}, got {value}")
