"""Tiny random models of the real families, each a whole `from_pretrained` folder.

Sizes are small, everything else is as in a published checkpoint: configuration, weights,
preprocessor and tokenizer are written by the classes of transformers and read back by them.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import sentencepiece
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    GemmaTokenizer,
    MPNetConfig,
    MPNetModel,
    MPNetTokenizer,
    RobertaConfig,
    RobertaModel,
    RobertaTokenizer,
    Siglip2Config,
    Siglip2ImageProcessor,
    Siglip2Model,
    Siglip2Tokenizer,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipTokenizer,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

WIDTH, LAYERS, HEADS, PATCH, SIDE = 32, 3, 4, 8, 32
TEXT_WIDTH = 24
LETTERS = string.ascii_lowercase
SIZES: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 40,
}
IMAGE = {**SIZES, "hidden_size": WIDTH, "image_size": SIDE, "patch_size": PATCH}
TEXT = {**SIZES, "hidden_size": TEXT_WIDTH}
SQUARE = {"height": SIDE, "width": SIDE}


def shaken(model: nn.Module) -> nn.Module:
    """The same weights every time, none at a value that would hide a mistake (norms of 1, 0)."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "norm" in name.lower() and name.endswith("weight") else 0.0
            parameter.copy_(centre + 0.2 * torch.randn(parameter.shape, generator=generator))
    return model


def save(folder: Path, *parts: Any) -> Path:
    """Everything into one folder."""
    for part in parts:
        part.save_pretrained(folder)
    return folder


def byte_letters() -> Iterator[str]:
    """The letters that stand for the 256 bytes in byte-level vocabularies."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    yield from map(chr, printable)
    yield from (chr(256 + n) for n in range(256 - len(printable)))


def clip_tokenizer() -> CLIPTokenizer:
    letters = list(byte_letters())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "th", "the</w>"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    vocabulary["<|startoftext|>"] = len(vocabulary)
    vocabulary["<|endoftext|>"] = len(vocabulary)
    return CLIPTokenizer(vocab=vocabulary, merges=[("t", "h"), ("th", "e</w>")])


def clip(folder: Path) -> Path:
    tokenizer = clip_tokenizer()
    text = {
        **TEXT,
        "vocab_size": len(tokenizer),
        "max_position_embeddings": 20,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    config = CLIPConfig(text_config=text, vision_config=IMAGE, projection_dim=16)
    processor = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SQUARE)
    return save(folder, shaken(CLIPModel(config)), processor, tokenizer)


def sentencepiece_model(folder: Path) -> Path:
    """A vocabulary trained on a few sentences, in the format SigLIP and T5 use."""
    corpus = folder / "corpus.txt"
    lines = ["a man plays the guitar", "someone rides a horse", "word by word", LETTERS]
    corpus.write_text("\n".join(lines * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(corpus),
        model_prefix=str(folder / "spiece"),
        vocab_size=60,
        pad_id=-1,
        bos_id=-1,
        eos_id=1,
        unk_id=2,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    corpus.unlink()
    (folder / "spiece.vocab").unlink()
    return folder / "spiece.model"


def siglip(folder: Path) -> Path:
    folder.mkdir(parents=True)
    tokenizer = SiglipTokenizer(str(sentencepiece_model(folder)))
    text = {**TEXT, "vocab_size": 64, "max_position_embeddings": 16, "projection_size": WIDTH}
    config = SiglipConfig(text_config=text, vision_config=IMAGE)
    processor = SiglipImageProcessor(size=SQUARE)
    return save(folder, shaken(SiglipModel(config)), processor, tokenizer)


def gemma_vocabulary() -> dict[str, int]:
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    return {piece: number for number, piece in enumerate([*special, "▁", *LETTERS, "T", "th"])}


def siglip2_fixed(folder: Path) -> Path:
    """A SigLIP 2 of fixed size as published: of the family "siglip", with Gemma's tokenizer."""
    tokenizer = GemmaTokenizer(
        vocab=gemma_vocabulary(), merges=[("t", "h")], padding_side="right", do_lower_case=True
    )
    text = {**TEXT, "vocab_size": 64, "max_position_embeddings": 16, "projection_size": WIDTH}
    config = SiglipConfig(text_config=text, vision_config=IMAGE)
    processor = SiglipImageProcessor(size=SQUARE)
    return save(folder, shaken(SiglipModel(config)), processor, tokenizer)


def siglip2(folder: Path) -> Path:
    """A NaFlex checkpoint; those of fixed size are of the family "siglip"."""
    tokenizer = Siglip2Tokenizer(vocab=gemma_vocabulary(), merges=[("t", "h")])
    text = {**TEXT, "vocab_size": 40, "max_position_embeddings": 16, "projection_size": WIDTH}
    image = {k: v for k, v in IMAGE.items() if k != "image_size"}
    config = Siglip2Config(text_config=text, vision_config={**image, "num_patches": 16})
    # Not a square number: a frame has 4 x 4 of them, and one is padding.
    processor = Siglip2ImageProcessor(patch_size=PATCH, max_num_patches=17)
    return save(folder, shaken(Siglip2Model(config)), processor, tokenizer)


def dinov2(folder: Path) -> Path:
    """As published, its positions are of larger pictures than the processor makes."""
    config = Dinov2Config(**{**IMAGE, "image_size": 48}, mlp_ratio=2)
    return save(folder, shaken(Dinov2Model(config)), dinov2_processor())


def dinov2_with_registers(folder: Path) -> Path:
    config = Dinov2WithRegistersConfig(**IMAGE, mlp_ratio=2, num_register_tokens=3)
    return save(folder, shaken(Dinov2WithRegistersModel(config)), dinov2_processor())


def dinov2_processor() -> BitImageProcessor:
    return BitImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE)


def vit(folder: Path) -> Path:
    model = shaken(ViTModel(ViTConfig(**IMAGE), add_pooling_layer=False))
    return save(folder, model, ViTImageProcessor(size=SQUARE))


def bert(folder: Path) -> Path:
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "cat"]
    tokenizer = BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    config = BertConfig(**TEXT, vocab_size=len(tokenizer), max_position_embeddings=40)
    return save(folder, shaken(BertModel(config)), tokenizer)


def roberta(folder: Path) -> Path:
    special = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    pieces = [*special, *byte_letters(), "th"]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[("t", "h")])
    config = RobertaConfig(
        **TEXT, vocab_size=len(tokenizer), max_position_embeddings=42, type_vocab_size=1
    )
    return save(folder, shaken(RobertaModel(config)), tokenizer)


def mpnet(folder: Path) -> Path:
    special = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>"]
    pieces = [*special, *LETTERS, *(f"##{letter}" for letter in LETTERS), "the", "cat"]
    tokenizer = MPNetTokenizer(vocab={piece: number for number, piece in enumerate(pieces)})
    config = MPNetConfig(**TEXT, vocab_size=len(tokenizer), max_position_embeddings=42)
    return save(folder, shaken(MPNetModel(config)), tokenizer)


MAKERS: dict[str, Callable[[Path], Path]] = {
    "clip": clip,
    "siglip": siglip,
    "siglip2": siglip2,
    "siglip2_fixed": siglip2_fixed,
    "dinov2": dinov2,
    "dinov2_with_registers": dinov2_with_registers,
    "vit": vit,
    "bert": bert,
    "roberta": roberta,
    "mpnet": mpnet,
}


def card(folder: Path, **metadata: str) -> Path:
    """A model card with metadata in its front matter."""
    lines = [f"{key}: {json.dumps(value)}" for key, value in metadata.items()]
    (folder / "README.md").write_text("\n".join(["---", *lines, "---", "# A model", ""]))
    return folder
