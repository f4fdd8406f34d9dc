"""Generative vision-language models a few layers deep, as full `from_pretrained` folders.

Random weights and a vocabulary of single bytes, with the special tokens, the processors and the
prompts of the real ones.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    GotOcr2ImageProcessor,
    GPT2Tokenizer,
    InternVLConfig,
    InternVLForConditionalGeneration,
    InternVLProcessor,
    InternVLVideoProcessor,
    OPTConfig,
    PreTrainedModel,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLProcessor,
    Qwen2Config,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    T5Config,
)
from transformers.utils import logging

BYTES = {
    symbol: number for number, symbol in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
}
QWEN = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == 'image' %}IMAGE{% else %}{{ part.text }}\
{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
SYSTEM = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
LAYERS = 3


def qwen_tokenizer(*special: str, **named: str) -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer(
        vocab={**BYTES, "<|endoftext|>": len(BYTES)}, merges=[], extra_special_tokens=named
    )
    tokenizer.add_tokens([*special, *named.values()], special_tokens=True)
    return tokenizer


def save(folder: Path, model: PreTrainedModel, processor: Any) -> Path:
    """Weights far from their start values, so that no norm or bias can be left out unseen."""
    torch.manual_seed(1)
    logging.disable_progress_bar()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def _qwen_text(size: int, sections: list[int]) -> dict[str, Any]:
    return {
        "vocab_size": size,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": sections,
        },
    }


def qwen2_5_vl(folder: Path) -> Path:
    tokenizer = qwen_tokenizer(*QWEN, "<|video_pad|>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*QWEN, "<|video_pad|>")}
    config = Qwen2_5_VLConfig(
        text_config=_qwen_text(len(tokenizer), [1, 1, 2]),
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    processor = Qwen2_5_VLProcessor(
        Qwen2VLImageProcessor(),
        tokenizer,
        Qwen2VLVideoProcessor(),
        chat_template=SYSTEM + CHAT.replace("IMAGE", picture),
    )
    return save(folder, Qwen2_5_VLForConditionalGeneration(config), processor)


def qwen3_vl(folder: Path) -> Path:
    tokenizer = qwen_tokenizer(*QWEN, "<|video_pad|>")
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (*QWEN, "<|video_pad|>")}
    config = Qwen3VLConfig(
        text_config={**_qwen_text(len(tokenizer), [2, 1, 1]), "head_dim": 8},
        vision_config={
            "depth": 2,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_heads": 2,
            "out_hidden_size": 32,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    images = Qwen2VLImageProcessor(
        patch_size=16, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5]
    )
    processor = Qwen3VLProcessor(
        images,
        tokenizer,
        Qwen3VLVideoProcessor(),
        chat_template=CHAT.replace("IMAGE", picture),
    )
    return save(folder, Qwen3VLForConditionalGeneration(config), processor)


def internvl(folder: Path) -> Path:
    tokenizer = qwen_tokenizer(
        "<|im_start|>",
        "<|im_end|>",
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    text = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
    )
    config = InternVLConfig(
        text_config=text,
        vision_config={
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 24,
            "image_size": [56, 56],
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    processor = InternVLProcessor(
        GotOcr2ImageProcessor(size={"height": 56, "width": 56}),
        tokenizer,
        InternVLVideoProcessor(),
        image_seq_length=4,
        chat_template=CHAT.replace("IMAGE", "<IMG_CONTEXT>\n"),
    )
    return save(folder, InternVLForConditionalGeneration(config), processor)


def blip2(folder: Path, text: Any = None) -> Path:
    tokenizer = GPT2Tokenizer(
        vocab={**BYTES, "</s>": 256, "<pad>": 257},
        merges=[],
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
    )
    images = BlipImageProcessor(size={"height": 28, "width": 28})
    processor = Blip2Processor(images, tokenizer, num_query_tokens=4)
    size = len(tokenizer)
    opt = OPTConfig(
        vocab_size=size,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        max_position_embeddings=256,
        bos_token_id=256,
        eos_token_id=256,
        pad_token_id=257,
    )
    config = Blip2Config(
        vision_config=Blip2VisionConfig(
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            image_size=28,
        ),
        qformer_config=Blip2QFormerConfig(
            vocab_size=size,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            encoder_hidden_size=16,
        ),
        text_config=text or opt,
        num_query_tokens=4,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return save(folder, Blip2ForConditionalGeneration(config), processor)


def blip2_t5(folder: Path) -> Path:
    """The flavour that is not read."""
    t5 = T5Config(
        vocab_size=259,
        d_model=16,
        d_kv=8,
        d_ff=24,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    return blip2(folder, t5)


FAMILIES: dict[str, Callable[[Path], Path]] = {
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "internvl": internvl,
    "blip2": blip2,
}
IMAGE_SIZES = {"qwen2_5_vl": 56, "qwen3_vl": 64, "internvl": 56, "blip2": 28}
TOKENS_A_FRAME = 4
