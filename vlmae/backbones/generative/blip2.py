"""BLIP-2 with an OPT language model: 32 query tokens a frame before the title.

Source: Li et al. 2023, arXiv 2301.12597. It was trained on one picture; the query tokens of more
frames stand one after another, as in its use on video (Yu et al. 2023, arXiv 2305.06988).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import Blip2ForConditionalGeneration, Blip2Processor

from vlmae.backbones.generative.family import (
    Embedded,
    LanguageModel,
    Prompt,
    VisionLanguage,
    no_positions,
    require_multiple,
)


class Blip2VisionLanguage(VisionLanguage):
    """BLIP-2; a frame is `num_query_tokens` tokens at any image size."""

    kind = Blip2ForConditionalGeneration
    processor_kind = Blip2Processor

    def __init__(self, loaded: Any, processor: Any, image_size: int) -> None:
        super().__init__(loaded, processor, image_size)
        require_multiple(image_size, loaded.config.vision_config.patch_size)
        self.queries = int(loaded.config.num_query_tokens)
        processor.num_query_tokens = self.queries
        self.model = loaded
        # Its weights are those of the token embeddings, or unused.
        self.model.language_model.lm_head = nn.Identity()

    @classmethod
    def check(cls, config: Any) -> None:
        """See `VisionLanguage.check`."""
        text = config.text_config
        if text.model_type != "opt" or text.word_embed_proj_dim != text.hidden_size:
            raise ValueError(
                f"this BLIP-2 has a language model of type {text.model_type!r}: use one with OPT "
                "whose embeddings are as wide as its blocks, e.g. Salesforce/blip2-opt-2.7b"
            )
        if config.image_token_id is None:
            raise ValueError(
                "the config.json of this BLIP-2 has no image_token_index: name a newer revision"
            )

    def take_language_model(self) -> LanguageModel:
        """See `VisionLanguage.take_language_model`."""
        decoder, config = self.model.language_model.model.decoder, self.model.config.text_config
        taken = LanguageModel(
            layers=list(decoder.layers),
            norm=decoder.final_layer_norm or nn.Identity(),
            rotary=None,
            hidden_width=config.hidden_size,
            out_width=config.hidden_size,
            longest=config.max_position_embeddings,
        )
        decoder.layers, decoder.final_layer_norm = nn.ModuleList(), None
        return taken

    def word_embedding(self) -> nn.Module:
        """See `VisionLanguage.word_embedding`."""
        table: nn.Module = self.model.language_model.model.decoder.embed_tokens
        return table

    def image_settings(self) -> dict[str, Any]:
        """See `VisionLanguage.image_settings`."""
        return {"size": {"height": self.image_size, "width": self.image_size}}

    def prompt(self, frames: Tensor, words: str) -> dict[str, Tensor]:
        """See `VisionLanguage.prompt`: it has no chat, and its processor knows one frame."""
        prompt = self.process(frames, words)
        more = torch.full((1, max(0, len(frames) - 1) * self.queries), self.image_token)
        return {**prompt, "input_ids": torch.cat([more, prompt["input_ids"]], dim=1)}

    def forward(self, prompt: Prompt) -> Embedded:
        """See `VisionLanguage.forward`."""
        ids = prompt["input_ids"]
        hidden = self.words(ids)
        if "pixel_values" in prompt:
            trained = self.model.config.vision_config.image_size
            seen = self.model.get_image_features(
                prompt["pixel_values"],
                interpolate_pos_encoding=self.image_size != trained,
                return_dict=True,
            )
            hidden = self.put(seen.pooler_output, ids, hidden)
        place = torch.arange(len(hidden), device=ids.device)
        table = self.model.language_model.model.decoder.embed_positions
        return Embedded(
            hidden + table(torch.ones_like(ids), position_ids=place), no_positions(len(hidden))
        )
