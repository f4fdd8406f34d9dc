"""The trainable end of a backbone: its last blocks, final norm or head, and pooling (contract 11).

Names are stable: a stream, then the encoder's own block number, whatever the cut, so
`audio.layers.3.self_attn.q_proj` means the same for every number of tuned blocks. Adapters (LoRA in
the last n blocks) are put on these modules by name, behind the same cut.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlmae.tokens import Tokens

# Added to attention scores under a mask. exp() of it is 0 in every float type, and it is finite in
# all of them: a row without any real token stays a number.
MASKED_SCORE = -1e4
Between = Callable[[int, Tokens], Tokens]
"""Called before each block with its number and the hidden states, which it may change."""


class StreamSuffix(nn.Module, ABC):
    """The end of one stream.

    Attributes:
        width: of the tokens at the cut, which it reads.
        blocks: how many of the encoder's blocks it holds.
        hidden_width: of the hidden states between blocks; 0 if its blocks have no tokens between
            them, as convolutions.
    """

    width: int
    blocks: int
    hidden_width: int = 0

    @abstractmethod
    def forward(self, tokens: Tokens, between: Between | None = None) -> Tokens:
        """Hidden states at the cut (B, T, width) to the tokens that the model reads.

        What stands under a mask has no influence, nor has the length that a batch is padded to. A
        pooled token is real if any of its positions is, and the mean of the real ones.

        Args:
            tokens: at the cut.
            between: see `Between`; refused where `hidden_width` is 0.
        """


class Suffix(nn.ModuleDict):
    """Stream name -> `StreamSuffix`; streams without one are frozen to their end.

    Its state dict holds the weights behind the cuts and nothing else.
    """

    def forward(
        self, streams: Mapping[str, Tokens], between: Mapping[str, Between] | None = None
    ) -> dict[str, Tokens]:
        """Tokens of every stream as the model reads them; frozen streams pass unchanged.

        Args:
            streams: name -> (B, T, width) tokens that `prefix` returned, padded.
            between: stream -> what is called before each of its blocks.

        Raises:
            ValueError: tokens of another width than a stream has at its cut.
        """
        hooks = between or {}
        return {name: self._stream(name, t, hooks.get(name)) for name, t in streams.items()}

    def _stream(self, name: str, tokens: Tokens, between: Between | None) -> Tokens:
        if name not in self:
            return tokens
        module: Any = self[name]
        if tokens.values.shape[-1] != module.width:
            raise ValueError(
                f"stream {name!r} has tokens {tokens.values.shape[-1]} wide, its last "
                f"{module.blocks} blocks read {module.width}: make the cache with the same number "
                "of tuned blocks"
            )
        result: Tokens = module(tokens, between)
        return result


class FeatureMapSuffix(StreamSuffix):
    """Convolutions over the feature map of every frame, averaged down to a grid.

    Tokens are in (frame, row, column) order and whole frames are real or not: a masked position in
    a frame that has real ones is read as zeros. Masked frames are computed, too, so that every
    weight has a gradient in every batch and shapes do not depend on values.

    Args:
        network: (N, width, side, side) to (N, C, h, w).
        side: of the feature map at the cut.
        grid: tokens a side and frame.
        width: channels at the cut.
        blocks: how many blocks `network` holds.
    """

    def __init__(self, network: nn.Module, side: int, grid: int, width: int, blocks: int) -> None:
        super().__init__()
        self.network = network
        self.side, self.grid, self.width, self.blocks = side, grid, width, blocks

    def forward(self, tokens: Tokens, between: Between | None = None) -> Tokens:
        """See `StreamSuffix.forward`."""
        if between is not None:
            raise ValueError(
                "convolutions have no tokens between their blocks: use a transformer backbone"
            )
        positions, batch = self.side**2, len(tokens.mask)
        incomplete = -tokens.mask.shape[1] % positions
        values = functional.pad(without_masked(tokens), (0, 0, 0, incomplete))
        mask = functional.pad(tokens.mask, (0, incomplete), value=False)
        # Tokens end to end are a feature map in channels-last order: nothing is copied.
        maps = values.reshape(-1, self.side, self.side, self.width).permute(0, 3, 1, 2)
        pooled = mean_of_cells(self.network(maps), self.grid)
        cells = pooled.flatten(2).transpose(1, 2)
        real = mask.reshape(batch, -1, positions).any(dim=2)
        return Tokens(
            cells.reshape(batch, -1, cells.shape[-1]),
            real.repeat_interleave(self.grid**2, dim=1),
        )


def mean_of_cells(maps: Tensor, grid: int) -> Tensor:
    """(N, C, side, side) averaged down to (N, C, grid, grid), as `adaptive_avg_pool2d` does.

    As two matrix products, because the gradient of torch's own is not deterministic on a GPU and
    is refused there.
    """
    side = maps.shape[-1]
    weights = maps.new_zeros(grid, side)
    for cell in range(grid):
        start, stop = cell * side // grid, -(-(cell + 1) * side // grid)
        weights[cell, start:stop] = 1 / (stop - start)
    return weights @ maps @ weights.T


def split_last(
    blocks: nn.ModuleList, last: int, argument: str
) -> tuple[nn.ModuleList, nn.ModuleDict]:
    """The first blocks, and the last ones under their original numbers.

    Args:
        blocks: of an encoder, in order.
        last: how many blocks the suffix gets.
        argument: name of the setting, for the message.

    Raises:
        ValueError: there are not that many.
    """
    if not 0 <= last <= len(blocks):
        raise ValueError(f"{argument} must be from 0 to {len(blocks)}, got {last}")
    cut = len(blocks) - last
    numbered = {str(number): blocks[number] for number in range(cut, len(blocks))}
    return blocks[:cut], nn.ModuleDict(numbered)


def without_masked(tokens: Tokens) -> Tensor:
    """(B, T, D) values with zeros where the mask is False, whatever stood there."""
    return torch.where(tokens.mask[..., None], tokens.values, 0.0)


def mean_of_groups(tokens: Tokens, size: int | None) -> Tokens:
    """Means of the real tokens of every `size` neighbours; the last group may be shorter.

    Args:
        tokens: (B, T, D).
        size: of a group; None for one group of all.
    """
    if size == 1:
        return tokens
    length = tokens.mask.shape[1]
    size = size or max(1, length)
    incomplete = -length % size
    batch, width = len(tokens.mask), tokens.values.shape[-1]
    values = functional.pad(without_masked(tokens), (0, 0, 0, incomplete))
    mask = functional.pad(tokens.mask, (0, incomplete), value=False)
    mask = mask.reshape(batch, -1, size)
    counts = mask.sum(dim=2).clamp_min(1).to(values.dtype)
    sums = values.reshape(batch, -1, size, width).sum(dim=2)
    return Tokens(sums / counts[..., None], mask.any(dim=2))
