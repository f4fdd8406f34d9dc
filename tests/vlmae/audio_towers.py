"""Audio towers of every family on tiny random folders, and sound for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tiny_audio_models as tiny
import torch

from vlmae.backbones.audio_stream import AudioTower
from vlmae.backbones.clap import Clap
from vlmae.backbones.spectrogram_transformer import SpectrogramTransformer
from vlmae.backbones.waveform import Waveform
from vlmae.backbones.whisper import Whisper
from vlmae.data.decode import Clip

TOWERS: dict[str, Callable[..., AudioTower]] = {
    "whisper": Whisper,
    "ast": SpectrogramTransformer,
    "hubert": Waveform,
    "hubert_large": Waveform,
    "wavlm": Waveform,
    "wavlm_large": Waveform,
    "clap": Clap,
    "clap_fused": Clap,
}
Folders = dict[str, str]


def write_folders(root: Path) -> Folders:
    """Family -> folder of a tiny model with random weights."""
    return {family: make(root / family) for family, make in tiny.FAMILIES.items()}


def noise(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    """A chirp in noise: neither silent nor alike in any two places."""
    time = np.arange(round(rate * seconds)) / rate
    hiss = np.random.default_rng(seed).normal(0, 0.05, len(time))
    return (0.3 * np.sin(2 * np.pi * (200 + 300 * time) * time) + hiss).astype(np.float32)


def clip_of(sound: np.ndarray) -> Clip:
    return Clip("sound", "", np.zeros((0, 0, 0, 3), np.uint8), sound, None)


def clips_at(rate: int) -> list[Clip]:
    """Several lengths, two of them equal; nothing, and one sample; silence."""
    seconds = (0.9, 0.4, 0.0, 0.9, 1.4, 1 / rate)
    clips = [clip_of(noise(length, rate, seed)) for seed, length in enumerate(seconds)]
    return [*clips, clip_of(np.zeros(rate // 2, np.float32))]


def audio(tower: AudioTower, sounds: Sequence[np.ndarray]) -> list[torch.Tensor]:
    return tower.prefix([clip_of(sound) for sound in sounds])["audio"]


def close(ours: torch.Tensor, theirs: torch.Tensor, limit: float = 1e-4) -> None:
    torch.testing.assert_close(ours, theirs, atol=limit, rtol=0)
