"""Qwen2.5-VL and Qwen3-VL: square frames as images in the chat prompt, rotary positions on 3 axes.

Sources: Bai et al. 2025, arXiv 2502.13923 (Qwen2.5-VL); Bai et al. 2025, arXiv 2511.21631
(Qwen3-VL), whose visual features enter again behind the first blocks of the language model
(DeepStack, Meng et al. 2024, arXiv 2406.04334).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional
from transformers import (
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
)

from vlmae.backbones.generative.family import (
    Embedded,
    LanguageModel,
    Prompt,
    VisionLanguage,
    empty_blocks,
    require_chat_template,
    require_full_attention,
    require_multiple,
)


class Qwen25VisionLanguage(VisionLanguage):
    """Qwen2.5-VL; a frame is (image_size / 28)^2 tokens."""

    kind = Qwen2_5_VLForConditionalGeneration
    processor_kind = Qwen2_5_VLProcessor
    axes = 3

    def __init__(self, loaded: Any, processor: Any, image_size: int) -> None:
        super().__init__(loaded, processor, image_size)
        images = processor.image_processor
        require_multiple(image_size, images.patch_size * images.merge_size)
        require_chat_template(processor)
        self.model = loaded.model

    @classmethod
    def check(cls, config: Any) -> None:
        """See `VisionLanguage.check`."""
        require_full_attention(config.text_config)

    def take_language_model(self) -> LanguageModel:
        """See `VisionLanguage.take_language_model`."""
        decoder, config = self.model.language_model, self.model.config.text_config
        taken = LanguageModel(
            layers=list(decoder.layers),
            norm=decoder.norm,
            rotary=decoder.rotary_emb,
            hidden_width=config.hidden_size,
            out_width=config.hidden_size,
            longest=config.max_position_embeddings,
        )
        empty_blocks(decoder)
        return taken

    def word_embedding(self) -> nn.Module:
        """See `VisionLanguage.word_embedding`."""
        table: nn.Module = self.model.language_model.embed_tokens
        return table

    def image_settings(self) -> dict[str, Any]:
        """See `VisionLanguage.image_settings`."""
        return {"size": {"shortest_edge": self.image_size**2, "longest_edge": self.image_size**2}}

    def process(self, frames: Tensor, text: str) -> dict[str, Tensor]:
        """See `VisionLanguage.process`."""
        if len(frames):
            # The processor keeps the aspect ratio, so that the number of tokens depends on it.
            frames = functional.resize(
                frames, [self.image_size] * 2, InterpolationMode.BICUBIC, antialias=True
            )
        return super().process(frames, text)

    def forward(self, prompt: Prompt) -> Embedded:
        """See `VisionLanguage.forward`."""
        ids, grid = prompt["input_ids"], prompt.get("image_grid_thw")
        positions, _ = self.model.get_rope_index(
            ids, mm_token_type_ids=(ids == self.image_token).int(), image_grid_thw=grid
        )
        hidden = self.words(ids)
        if grid is None:
            late = tuple(torch.zeros_like(hidden) for _ in range(self.late))
            return Embedded(hidden, positions[:, 0], late)
        seen = self.model.get_image_features(prompt["pixel_values"], grid, return_dict=True)
        return Embedded(
            self.put(torch.cat(list(seen.pooler_output)), ids, hidden),
            positions[:, 0],
            tuple(self.put(part, ids, torch.zeros_like(hidden)) for part in self.late_parts(seen)),
        )

    def late_parts(self, seen: Any) -> list[Tensor]:
        """Visual features for behind the first blocks, in order of the blocks."""
        return []


class Qwen3VisionLanguage(Qwen25VisionLanguage):
    """Qwen3-VL; a frame is (image_size / 32)^2 tokens."""

    kind = Qwen3VLForConditionalGeneration
    processor_kind = Qwen3VLProcessor

    def __init__(self, loaded: Any, processor: Any, image_size: int) -> None:
        super().__init__(loaded, processor, image_size)
        self.late = len(loaded.config.vision_config.deepstack_visual_indexes)

    def late_parts(self, seen: Any) -> list[Tensor]:
        """See `Qwen25VisionLanguage.late_parts`."""
        return [torch.cat(list(part)) for part in seen.deepstack_features]
