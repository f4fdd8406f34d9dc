"""LoRA on every family of backbones: it starts as the loaded model, and all of it learns.

A layer whose weight a model reads past the layer's forward would take its update without effect.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_audio_models
import tiny_models
import tiny_vlms
import torch
from hydra.utils import instantiate
from torch import nn

from vlmae.backbones import Backbone
from vlmae.data.decode import Clip
from vlmae.tokens import pad
from vlmae.tuning import TowerTuning, tune

BACKBONES = "vlmae.backbones."
AUDIO = {
    "whisper": "whisper.Whisper",
    "ast": "spectrogram_transformer.SpectrogramTransformer",
    "hubert": "waveform.Waveform",
    "hubert_large": "waveform.Waveform",
    "wavlm": "waveform.Waveform",
    "wavlm_large": "waveform.Waveform",
    "clap": "clap.Clap",
}
PAIRS = [("clip", "clip"), ("siglip", "siglip"), ("siglip2", "siglip2"), ("dinov2", "bert")]
PAIRS += [("vit", "roberta"), ("dinov2_with_registers", "mpnet")]
VLMS = [name for name in tiny_vlms.FAMILIES if name in tiny_vlms.IMAGE_SIZES]


def audio(family: str, folder: Path) -> dict[str, Any]:
    model = tiny_audio_models.FAMILIES[family](folder / family)
    return {"_target_": BACKBONES + AUDIO[family], "model": str(model)}


def dual(pair: tuple[str, str], folder: Path) -> dict[str, Any]:
    made = {name: str(tiny_models.MAKERS[name](folder / name)) for name in set(pair)}
    image, text = (made[name] for name in pair)
    if image == text:
        return {"_target_": BACKBONES + "dual.DualEncoder", "model": image, "pool_text": False}
    return {"_target_": BACKBONES + "dual.ImageAndText", "image": image, "text": text}


def generative(family: str, folder: Path) -> dict[str, Any]:
    model = tiny_vlms.FAMILIES[family](folder / family)
    return {
        "_target_": BACKBONES + "generative.GenerativeEncoder",
        "model": str(model),
        "revision": None,
        "image_size": tiny_vlms.IMAGE_SIZES[family],
        "prompt": "Title: ",
        "text_length": 16,
    }


CASES = [
    *(pytest.param(audio, family, id=family) for family in AUDIO),
    *(pytest.param(dual, pair, id="+".join(pair)) for pair in PAIRS),
    *(pytest.param(generative, family, id=family) for family in VLMS),
]


@pytest.mark.parametrize(("node_of", "name"), CASES)
def test_lora_starts_as_loaded_and_all_of_it_learns(
    node_of: Callable[..., dict[str, Any]],
    name: Any,
    tmp_path: Path,
    make_clip: Callable[..., Clip],
) -> None:
    tower: Backbone = instantiate({**node_of(name, tmp_path), "tuned_blocks": 1})
    loaded = copy.deepcopy(tower.suffix_modules()).eval()
    lora = copy.deepcopy(loaded)
    torch.manual_seed(0)
    for stream, module in lora.items():
        tune(module, TowerTuning("lora", 1, rank=2), stream)
    clips = [
        make_clip(0, title="a guitar", frames=2, seconds=0.5),
        make_clip(1, title="the words of it", frames=1, seconds=0.8),
    ]
    widths = tower.prefix_streams
    tokens = {stream: pad(values, widths[stream]) for stream, values in tower.prefix(clips).items()}
    expected, found = loaded(tokens), lora(tokens)
    for stream, behind in expected.items():
        assert torch.equal(found[stream].values, behind.values)
        assert torch.equal(found[stream].mask, behind.mask)
    own = {key: p for key, p in lora.named_parameters() if p.requires_grad}
    assert own
    assert all(".lora_" in key for key in own)
    zero = {key: p for key, p in own.items() if ".lora_B." in key}
    assert not any(p.any() for p in zero.values())
    with torch.no_grad():
        for key, parameter in zero.items():
            # Of different rows, or norms behind a layer would cancel it.
            nn.init.normal_(parameter, std=0.1 + 0.01 * len(key) / 100)
    result = lora(tokens)
    weights = [torch.randn_like(behind.values) for behind in result.values()]
    sum((b.values * w).sum() for b, w in zip(result.values(), weights, strict=True)).backward()
    idle = {key for key, p in own.items() if p.grad is None or not p.grad.abs().max() > 0}
    assert idle == set()
