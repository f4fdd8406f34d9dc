"""Token sequences with masks: what backbones return and fusion reads (design, contract 10)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tokens:
    """A padded batch of token sequences.

    Attributes:
        values: (B, T, D) float; what stands where the mask is False has no influence on any result.
        mask: (B, T) bool, True where a token is real. A missing modality is an all-False row.
        whitened: D are principal components already (`vlmae.data.whitened`), not a stream's width.
    """

    values: Tensor
    mask: Tensor
    whitened: bool = False

    def __post_init__(self) -> None:
        if self.values.ndim != 3 or self.mask.shape != self.values.shape[:2]:
            raise ValueError(
                f"tokens need values (B, T, D) and a mask (B, T), got {tuple(self.values.shape)} "
                f"and {tuple(self.mask.shape)}"
            )

    @property
    def present(self) -> Tensor:
        """(B,) bool: whether the sample has any real token."""
        return self.mask.any(dim=1)

    def to(self, device: torch.device) -> Tokens:
        """The same tokens on a device."""
        return Tokens(self.values.to(device), self.mask.to(device), self.whitened)

    def float(self) -> Tokens:
        """The same tokens in float32, whatever they are kept in."""
        return Tokens(self.values.float(), self.mask, self.whitened)

    def keep(self, rows: Tensor) -> Tokens:
        """The same tokens with every sample masked where `rows` (B,) bool is False."""
        return Tokens(self.values, self.mask & rows[:, None], self.whitened)

    def zero_masked(self) -> Tokens:
        """The same tokens with zeros under the mask: a NaN there times a zero weight is a NaN."""
        values = torch.where(self.mask[..., None], self.values, 0.0)
        return Tokens(values, self.mask, self.whitened)

    def mean(self) -> Tensor:
        """(B, D) mean over real tokens; zero where there is none."""
        weights = self.mask.to(self.values.dtype)[..., None]
        values = self.zero_masked().values
        return values.sum(dim=1) / weights.sum(dim=1).clamp_min(1.0)


@dataclass(frozen=True)
class Fused:
    """What a fusion variant returns.

    Attributes:
        embedding: (B, D) float; task heads turn it into logits, LSB searches it L2-normalised.
    """

    embedding: Tensor


def pad(sequences: Sequence[Tensor], width: int) -> Tokens:
    """Stack (T_i, D) sequences of different lengths; an empty one becomes an all-masked row.

    Args:
        sequences: float tensors of equal width.
        width: D, needed where every sequence is empty.
    """
    longest = max([1, *(sequence.shape[0] for sequence in sequences)])
    values = torch.zeros(len(sequences), longest, width)
    mask = torch.zeros(len(sequences), longest, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        values[row, : sequence.shape[0]] = sequence
        mask[row, : sequence.shape[0]] = True
    return Tokens(values, mask)


def concatenate(parts: Sequence[Tokens]) -> Tokens:
    """Join token sequences of equal width along time."""
    return Tokens(
        torch.cat([part.values for part in parts], dim=1),
        torch.cat([part.mask for part in parts], dim=1),
    )
