"""What a generative model does before the first block of its language model, family by family.

Every family has its own prompt, vision tower and way to put visual features between the words.
From there on all are the same: blocks with causal attention (`DecoderStream`). A new family is a
subclass of `VisionLanguage` in a file of its own and a line in `encoder.FAMILIES`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

Prompt = Mapping[str, Tensor]
"""What a processor returns for one clip: `input_ids` (1, T), and pixels where it has frames."""


@dataclass(frozen=True)
class Embedded:
    """What the first block of the language model reads of one clip.

    Attributes:
        hidden: (T, D) embeddings of words and visual features.
        positions: (axes, T) int64 for rotary embeddings; axes is 0 where a position is the index.
        late: visual features, each (T, D) and zero at words, added behind block 0, 1, ...
    """

    hidden: Tensor
    positions: Tensor
    late: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class LanguageModel:
    """The blocks of a language model and what belongs to them.

    Attributes:
        layers: called with hidden states, `attention_mask` and, with `rotary`,
            `position_embeddings`.
        norm: what follows the last one.
        rotary: hidden states and positions to `position_embeddings`; None where positions are
            added to the embeddings.
        hidden_width: of the hidden states.
        out_width: behind `norm`.
        longest: positions it was built for.
    """

    layers: Sequence[nn.Module]
    norm: nn.Module
    rotary: nn.Module | None
    hidden_width: int
    out_width: int
    longest: int


class VisionLanguage(nn.Module, ABC):
    """A loaded model up to the first block of its language model.

    Args:
        loaded: a model of `kind`; its blocks are taken out of it.
        processor: of `processor_kind`.
        image_size: side of the square that frames are resized to, in pixels.

    Attributes:
        kind: class of transformers that its weights are loaded with.
        processor_kind: class of transformers that makes its prompts.
        axes: of its rotary positions; 0 where a position is the index in the prompt.
        late: blocks behind which visual features are still added.
    """

    kind: ClassVar[Any]
    processor_kind: ClassVar[Any]
    axes: ClassVar[int] = 0

    def __init__(self, loaded: Any, processor: Any, image_size: int) -> None:
        super().__init__()
        self.processor, self.image_size = processor, image_size
        self.image_token = int(loaded.config.image_token_id)
        self.late = 0

    @classmethod
    def check(cls, config: Any) -> None:
        """Refuses a configuration of this family that cannot be read, before weights are loaded.

        Raises:
            ValueError: says which one can.
        """
        return

    @abstractmethod
    def take_language_model(self) -> LanguageModel:
        """Moves the blocks out of this module, which keeps everything before them."""

    @abstractmethod
    def word_embedding(self) -> nn.Module:
        """The table of token embeddings."""

    @abstractmethod
    def forward(self, prompt: Prompt) -> Embedded:
        """Runs the vision tower and puts its features between the words of one clip."""

    def prompt(self, frames: Tensor, words: str) -> dict[str, Tensor]:
        """The family's own prompt through its own processor.

        Args:
            frames: (F, 3, H, W) uint8; F may be 0.
            words: what stands behind the frames; "" for nothing.
        """
        content: list[dict[str, str]] = [{"type": "image"}] * len(frames)
        if words:
            content.append({"type": "text", "text": words})
        text = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        return self.process(frames, text)

    def process(self, frames: Tensor, text: str) -> dict[str, Tensor]:
        """The processor on frames, if there are any, and text."""
        seen: dict[str, Any] = {}
        if len(frames):
            seen = {"images": list(frames), "images_kwargs": self.image_settings()}
        return dict(self.processor(text=[text], return_tensors="pt", **seen))

    @abstractmethod
    def image_settings(self) -> dict[str, Any]:
        """Settings of the image processor that fix the number of tokens a frame."""

    def words(self, ids: Tensor) -> Tensor:
        """(1, T) token ids to (T, D) embeddings; ids of image tokens get what the table has."""
        hidden: Tensor = self.word_embedding()(ids)
        return hidden[0]

    def put(self, features: Tensor, ids: Tensor, into: Tensor) -> Tensor:
        """(T, D) `into` with the rows of `features` at the image tokens of (1, T) ids, in order.

        Raises:
            ValueError: there are not as many image tokens as features.
        """
        at = ids[0] == self.image_token
        features = features.reshape(-1, into.shape[-1]).to(into.dtype)
        if int(at.sum()) != len(features):
            raise ValueError(
                f"the prompt has {int(at.sum())} image tokens for {len(features)} visual features: "
                "the processor beside the weights is not this model's"
            )
        return into.masked_scatter(at[:, None], features)


def require_chat_template(processor: Any) -> None:
    """Refuses a processor that cannot make its family's prompt.

    Raises:
        ValueError: it has no chat template.
    """
    if not processor.chat_template:
        raise ValueError(
            f"{type(processor).__name__} has no chat template: save chat_template.jinja beside "
            "the weights, as the hub's folder has it"
        )


def require_multiple(image_size: int, step: int) -> None:
    """Refuses a side that patches cannot fill.

    Raises:
        ValueError: not a positive multiple of `step`.
    """
    if image_size < step or image_size % step:
        raise ValueError(
            f"image_size is {image_size}: this model needs a multiple of {step} pixels"
        )


def require_full_attention(config: Any) -> None:
    """Refuses a language model with sliding windows.

    Raises:
        ValueError: at least one block attends to a window only.
    """
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if kinds:
        raise ValueError(
            f"the language model has blocks with {kinds}, only full causal attention is supported: "
            "set use_sliding_window to false in its config.json"
        )


def empty_blocks(language_model: Any) -> None:
    """Drops blocks and final norm of a model whose embeddings stay in use."""
    language_model.layers = nn.ModuleList()
    language_model.norm = nn.Identity()


def no_positions(length: int) -> Tensor:
    """(0, T): a position is the index."""
    return torch.zeros(0, length, dtype=torch.int64)
