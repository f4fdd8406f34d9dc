"""Tiny random audio models of every family as full `from_pretrained` folders with extractors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ClapAudioConfig,
    ClapConfig,
    ClapFeatureExtractor,
    ClapModel,
    ClapTextConfig,
    HubertConfig,
    HubertModel,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMModel,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
)

WIDTH = 32
BANDS = 24
LAYERS = 3
CONVOLUTIONS = {
    "conv_dim": (16,) * 7,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
SIZES = {
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": 64,
}


def randomised(model: nn.Module) -> nn.Module:
    """Nothing at zero or one, as initialised: what is left out would not show."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.copy_(torch.randn(len(module.weight), generator=generator) * 9)
                module.running_var.copy_(torch.rand(len(module.weight), generator=generator) * 400)
    return model.eval()


def save(folder: Path, model: Any, extractor: Any) -> str:
    torch.manual_seed(0)
    randomised(model).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder)


def whisper(folder: Path, **changes: Any) -> str:
    config = WhisperConfig(
        vocab_size=64,
        num_mel_bins=BANDS,
        d_model=WIDTH,
        encoder_layers=LAYERS,
        encoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_layers=1,
        decoder_attention_heads=4,
        decoder_ffn_dim=64,
        max_target_positions=16,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    extractor = WhisperFeatureExtractor(**{"feature_size": BANDS, **changes})
    return save(folder, WhisperForConditionalGeneration(config), extractor)


def spectrogram_transformer(folder: Path, *, frames: int = 128) -> str:
    config = ASTConfig(**SIZES, max_length=128, num_mel_bins=BANDS + 16, num_labels=5)
    extractor = ASTFeatureExtractor(num_mel_bins=BANDS + 16, max_length=frames, mean=-7.0, std=3.0)
    return save(folder, ASTForAudioClassification(config), extractor)


def hubert(folder: Path, *, large: bool = False, **changes: Any) -> str:
    flavour = {"do_stable_layer_norm": large, "feat_extract_norm": "layer" if large else "group"}
    config = HubertConfig(**{**SIZES, **CONVOLUTIONS, **flavour, "conv_bias": large, **changes})
    return save(folder, HubertModel(config), Wav2Vec2FeatureExtractor())


def hubert_large(folder: Path) -> str:
    return hubert(folder, large=True)


def wavlm(folder: Path, *, large: bool = False) -> str:
    flavour = {"do_stable_layer_norm": large, "feat_extract_norm": "layer" if large else "group"}
    config = WavLMConfig(**SIZES, **CONVOLUTIONS, **flavour, num_buckets=20, max_bucket_distance=30)
    return save(folder, WavLMModel(config), Wav2Vec2FeatureExtractor(do_normalize=large))


def wavlm_large(folder: Path) -> str:
    return wavlm(folder, large=True)


def clap(folder: Path, *, fused: bool = False, **changes: Any) -> str:
    """Windows of one second; three stages with two shifted-window blocks in the last."""
    text = ClapTextConfig(
        vocab_size=40,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=20,
        projection_dim=16,
    )
    audio = ClapAudioConfig(
        window_size=4,
        num_mel_bins=32,
        spec_size=128,
        hidden_size=WIDTH,
        patch_embeds_hidden_size=8,
        depths=[1, 2, 2],
        num_attention_heads=[1, 2, 4],
        enable_fusion=fused,
        projection_dim=16,
        **{"fusion_type": "aff_2d", **changes},
    )
    config = ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
    extractor = ClapFeatureExtractor(
        feature_size=32, max_length_s=1, truncation="fusion" if fused else "rand_trunc"
    )
    return save(folder, ClapModel(config), extractor)


def clap_fused(folder: Path) -> str:
    return clap(folder, fused=True)


FAMILIES: dict[str, Callable[[Path], str]] = {
    "whisper": whisper,
    "ast": spectrogram_transformer,
    "hubert": hubert,
    "hubert_large": hubert_large,
    "wavlm": wavlm,
    "wavlm_large": wavlm_large,
    "clap": clap,
    "clap_fused": clap_fused,
}
