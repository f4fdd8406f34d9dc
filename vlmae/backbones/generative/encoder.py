"""Generative vision-language models as towers: Qwen2.5-VL, Qwen3-VL, BLIP-2 (OPT) and InternVL."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import nn

from vlmae.backbones.generative.blip2 import Blip2VisionLanguage
from vlmae.backbones.generative.decoder import DecoderStream
from vlmae.backbones.generative.family import LanguageModel, VisionLanguage
from vlmae.backbones.generative.internvl import InternVisionLanguage
from vlmae.backbones.generative.qwen import Qwen3VisionLanguage, Qwen25VisionLanguage
from vlmae.backbones.generative.titles import Titles
from vlmae.backbones.pretrained import (
    identity_of,
    load_config,
    load_model,
    load_processor,
    processor_sha256,
)
from vlmae.backbones.stream import StreamTower, Tuned

FAMILIES: Mapping[str, type[VisionLanguage]] = {
    "qwen2_5_vl": Qwen25VisionLanguage,
    "qwen3_vl": Qwen3VisionLanguage,
    "blip-2": Blip2VisionLanguage,
    "internvl": InternVisionLanguage,
}
"""`model_type` of a config.json -> how it is read."""
DTYPES = ("float32", "bfloat16")


class GenerativeEncoder(StreamTower):
    """Frames and title in the model's own prompt, read at hidden states of its language model.

    Stream: "vl", as wide as the language model, one token a position of the prompt: its control
    tokens, those of every frame, the title. Frames are squeezed into squares. A clip without frames
    is a prompt with the title only, one without a title has its frames only, one without both has
    no tokens. At a cut: hidden states, and behind them columns of rotary positions
    (`DecoderStream`).

    Args:
        model: hub id or local folder.
        revision: of a hub id; None for its main branch.
        image_size: side of the square that frames are resized to, in pixels; it sets the number of
            tokens a frame (not of BLIP-2, which always has 32).
        prompt: words before every title.
        text_length: longest title in tokens; more are cut.
        layer: which of transformers' `hidden_states` is read: -1 for the last, behind the final
            norm, or the number of blocks that run. Blocks behind it are dropped.
        pool: neighbouring positions averaged into one token; 0 or None for every position.
        dtype: of the frozen weights, "float32" or "bfloat16". Those behind a cut are float32.
        tuned_blocks: how many blocks, from the last that runs, are behind the cut. The vision tower
            and the token embeddings stay frozen.

    Raises:
        ValueError: the model is not there, not complete or of no supported family, or an argument
            does not fit it.
    """

    def __init__(
        self,
        model: str,
        revision: str | None,
        image_size: int,
        prompt: str,
        text_length: int,
        layer: int = -1,
        pool: int | None = None,
        dtype: str = "float32",
        tuned_blocks: Tuned | Mapping[str, Tuned] = 0,
    ) -> None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype is {dtype!r}: use one of {', '.join(DTYPES)}")
        if pool is not None and pool < 0:
            raise ValueError(f"pool is {pool}: give a number of positions, or 0 for every one")
        config = load_config(model, revision, FAMILIES, "a generative vision-language model")
        family = FAMILIES[config.model_type]
        family.check(config)
        processor = load_processor(family.processor_kind, model, revision)
        before = family(load_model(family.kind, model, revision, dtype), processor, image_size)
        decoder = read_at(before.take_language_model(), layer, before.late)
        titles = Titles(processor.tokenizer, prompt, text_length)
        name, commit = identity_of(model, revision, config)
        self.axes = before.axes
        super().__init__(
            {"vl": DecoderStream(before, decoder, titles, pool or 1)},
            tuned_blocks=tuned_blocks,
            name=name,
            revision=commit,
            options={
                "image_size": image_size,
                "prompt": prompt,
                "text_length": text_length,
                "layer": len(decoder.layers),
                "pool": pool or 0,
                "dtype": dtype,
                "processor": processor_sha256(processor),
            },
        )

    @property
    def needs_float_cache(self) -> bool:
        """Whether tokens at the cut hold positions, which int8 with one scale a token loses."""
        return self.axes > 0 and len(self.tail) > 0


def read_at(decoder: LanguageModel, layer: int, late: int) -> LanguageModel:
    """The language model up to the hidden states that are read.

    Args:
        decoder: all of it.
        layer: index of transformers' `hidden_states`, from 1 or from -1.
        late: blocks behind which visual features are still added.

    Raises:
        ValueError: there are no such hidden states, or visual features are still to be added.
    """
    total = len(decoder.layers)
    count = layer if layer >= 0 else total + 1 + layer
    if not late < count <= total:
        behind = f", behind the {late} that take in visual features" if late else ""
        raise ValueError(
            f"layer is {layer}: the language model has {total} blocks, give -1 or the number that "
            f"run, from {late + 1} to {total}{behind}"
        )
    if count == total:
        return decoder
    return replace(
        decoder,
        layers=decoder.layers[:count],
        norm=nn.Identity(),
        out_width=decoder.hidden_width,
    )
