"""Published towers as folders without weights: config.json and processors, for `launch.plan`.

Numbers are those of the config.json files on the Hugging Face hub, written down by hand and not
fetched. The vocabularies are of single bytes, which changes the number of tokens of a title alone,
and titles are cut.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2Tokenizer,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    WhisperConfig,
    WhisperFeatureExtractor,
)

SYMBOLS = sorted(pre_tokenizers.ByteLevel.alphabet())
BYTES = {symbol: number for number, symbol in enumerate(SYMBOLS)}
PICTURE = "<|vision_start|><|image_pad|><|vision_end|>"
SPECIAL = (
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
CHAT = """{% for message in messages %}<|im_start|>{{ message.role }}
{% for part in message.content %}{% if part.type == 'image' %}PICTURE{% else %}{{ part.text }}\
{% endif %}{% endfor %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}""".replace("PICTURE", PICTURE)


def clip_base(folder: Path) -> Path:
    """openai/clip-vit-base-patch32."""
    vocabulary = [*BYTES, *(f"{symbol}</w>" for symbol in BYTES)]
    special = ("<|startoftext|>", "<|endoftext|>")
    tokenizer = CLIPTokenizer(
        vocab={token: number for number, token in enumerate((*vocabulary, *special))}, merges=[]
    )
    config = CLIPConfig(text_config={"eos_token_id": len(vocabulary) + 1})
    return _save(folder, config, CLIPImageProcessor(), tokenizer)


def whisper(folder: Path, width: int, layers: int, heads: int, bands: int = 80) -> Path:
    """The encoder of openai/whisper-*; feed-forward layers are four times as wide."""
    config = WhisperConfig(
        d_model=width,
        encoder_layers=layers,
        encoder_attention_heads=heads,
        encoder_ffn_dim=4 * width,
        decoder_layers=1,
        decoder_attention_heads=heads,
        num_mel_bins=bands,
    )
    return _save(folder, config, WhisperFeatureExtractor(feature_size=bands))


def qwen3_vl(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> Path:
    """Qwen/Qwen3-VL-*-Instruct."""
    tokenizer, ids = _qwen_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]}
    config = Qwen3VLConfig(
        text_config={"head_dim": 128, "vocab_size": 151936, "rope_parameters": rope, **text},
        vision_config={"out_hidden_size": text["hidden_size"], **vision},
        **ids,
    )
    images = Qwen2VLImageProcessor(patch_size=16)
    videos = Qwen3VLVideoProcessor()
    return _save(folder, config, Qwen3VLProcessor(images, tokenizer, videos, chat_template=CHAT))


def qwen2_5_vl(folder: Path, text: dict[str, Any], vision: dict[str, Any]) -> Path:
    """Qwen/Qwen2.5-VL-*-Instruct."""
    tokenizer, ids = _qwen_tokenizer()
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    config = Qwen2_5_VLConfig(
        text_config={"rope_parameters": rope, **text},
        vision_config={"out_hidden_size": text["hidden_size"], **vision},
        **ids,
    )
    images = Qwen2VLImageProcessor()
    videos = Qwen2VLVideoProcessor()
    return _save(folder, config, Qwen2_5_VLProcessor(images, tokenizer, videos, chat_template=CHAT))


def write_towers(folder: Path) -> dict[str, Path]:
    """All folders, by the name of the checkpoint.

    Args:
        folder: where they are made.
    """
    deep = {"depth": 27, "hidden_size": 1152, "intermediate_size": 4304, "num_heads": 16}
    return {
        "clip-vit-base-patch32": clip_base(folder / "clip"),
        "whisper-base": whisper(folder / "whisper-base", 512, 6, 8),
        "whisper-large-v3": whisper(folder / "whisper-large", 1280, 32, 20, bands=128),
        "Qwen3-VL-2B": qwen3_vl(
            folder / "qwen-2b",
            _layers(2048, 6144, 28, 16),
            {"depth": 24, "hidden_size": 1024, "intermediate_size": 4096, "num_heads": 16}
            | {"deepstack_visual_indexes": [5, 11, 17]},
        ),
        "Qwen3-VL-8B": qwen3_vl(
            folder / "qwen-8b",
            _layers(4096, 12288, 36, 32),
            {**deep, "deepstack_visual_indexes": [8, 16, 24]},
        ),
        "Qwen2.5-VL-72B": qwen2_5_vl(
            folder / "qwen-72b",
            {**_layers(8192, 29568, 80, 64), "vocab_size": 152064},
            {"depth": 32, "hidden_size": 1280, "intermediate_size": 3456, "num_heads": 16},
        ),
    }


def _layers(width: int, inner: int, layers: int, heads: int) -> dict[str, Any]:
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
    }


def _qwen_tokenizer() -> tuple[Qwen2Tokenizer, dict[str, int]]:
    """A tokenizer, and the ids of its special tokens by their names in a config."""
    tokenizer = Qwen2Tokenizer(vocab={**BYTES, "<|endoftext|>": len(BYTES)}, merges=[])
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    return tokenizer, dict(zip(names, tokenizer.convert_tokens_to_ids(SPECIAL[2:]), strict=True))


def _save(folder: Path, *parts: Any) -> Path:
    for part in parts:
        part.save_pretrained(folder)
    return folder
