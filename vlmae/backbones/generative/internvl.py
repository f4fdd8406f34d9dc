"""InternVL in the format of transformers (`-hf` checkpoints): one tile a frame.

Source: Zhu et al. 2025, arXiv 2504.10479 (InternVL3). The model cuts large pictures into tiles of
448 pixels; frames of a clip are many and small, so each is one tile, of `image_size` pixels.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import InternVLForConditionalGeneration, InternVLProcessor

from vlmae.backbones.generative.family import (
    Embedded,
    LanguageModel,
    Prompt,
    VisionLanguage,
    empty_blocks,
    no_positions,
    require_chat_template,
    require_full_attention,
    require_multiple,
)


class InternVisionLanguage(VisionLanguage):
    """InternVL; a frame is (image_size / 28)^2 tokens with patches of 14 and a ratio of 0.5."""

    kind = InternVLForConditionalGeneration
    processor_kind = InternVLProcessor

    def __init__(self, loaded: Any, processor: Any, image_size: int) -> None:
        super().__init__(loaded, processor, image_size)
        config = loaded.config
        side = round(config.vision_config.patch_size[0] / config.downsample_ratio)
        require_multiple(image_size, side)
        require_chat_template(processor)
        processor.image_seq_length = (image_size // side) ** 2
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
        size = {"height": self.image_size, "width": self.image_size}
        return {"size": size, "crop_to_patches": False}

    def forward(self, prompt: Prompt) -> Embedded:
        """See `VisionLanguage.forward`."""
        ids = prompt["input_ids"]
        hidden = self.words(ids)
        if "pixel_values" in prompt:
            seen = self.model.get_image_features(prompt["pixel_values"], return_dict=True)
            hidden = self.put(seen.pooler_output, ids, hidden)
        return Embedded(hidden, no_positions(len(hidden)))
