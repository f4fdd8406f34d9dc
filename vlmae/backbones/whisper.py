"""Whisper encoders of any size, without padding to 30 s: a 4 s clip costs 4 s.

Source: Radford et al. 2022 (arXiv 2212.04356). Positions are sinusoids, so that a short clip takes
the first ones and nothing else changes; transformers' own forward insists on 30 s.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio import transforms
from transformers import WhisperFeatureExtractor, WhisperModel

from vlmae.backbones.audio_stream import (
    AudioStream,
    AudioTower,
    SoundReader,
    check_pool,
    load_extractor,
)
from vlmae.backbones.pretrained import (
    identity_of,
    load_config,
    load_model,
    processor_sha256,
)
from vlmae.backbones.spec_augment import SpecAugment
from vlmae.backbones.stream import Tuned
from vlmae.backbones.suffix import without_masked
from vlmae.tokens import Tokens


class Whisper(AudioTower):
    """The encoder of a Whisper checkpoint.

    Stream: "audio", 50 tokens a second averaged in groups of `pool`; at a cut all 50, at "all" 100
        log-mel frames a second. A clip longer than 30 s, the longest Whisper has positions for, is
        cut there.

    Args:
        model: hub id or local folder.
        revision: of a hub id.
        pool: encoder positions averaged into one token; 5 gives ten tokens a second.
        tuned_blocks: see `StreamTower`.
        decode_rate: sample rate that clips arrive at, resampled on the device; None for 16 kHz.
        spec_augment: "time" (frames of 10 ms), "frequency" (mel bands) and "masks" of
            `SpecAugment`; None for none.
        dtype: of the frozen weights: "float32", "bfloat16" or "float16"; what trains is float32.

    Raises:
        ValueError: it is no Whisper model, its files are not there, or a setting is out of range.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        pool: int = 1,
        tuned_blocks: Tuned | Mapping[str, Tuned] = 0,
        decode_rate: int | None = None,
        spec_augment: Mapping[str, int] | None = None,
        dtype: str = "float32",
    ) -> None:
        config = load_config(model, revision, ("whisper",), "a Whisper encoder")
        extractor = load_extractor(WhisperFeatureExtractor, model, revision)
        if extractor.feature_size != config.num_mel_bins:
            raise ValueError(
                f"the extractor of {model!r} makes {extractor.feature_size} mel bands, its encoder "
                f"reads {config.num_mel_bins}: save the extractor that it was trained with"
            )
        encoder = load_model(WhisperModel, model, revision, dtype).encoder
        augment = SpecAugment.of(spec_augment, extractor.feature_size)
        reader = WhisperMel(extractor, config.max_source_positions, decode_rate, augment)
        name, known = identity_of(model, revision, config)
        super().__init__(
            WhisperStream(encoder, reader, pool, extractor),
            reader,
            tuned_blocks=tuned_blocks,
            name=name,
            revision=known,
            options={"pool": pool, "extractor": processor_sha256(extractor)},
        )


class WhisperMel(SoundReader):
    """Log-mel features as `WhisperFeatureExtractor` computes them, without its padding.

    Args:
        extractor: its sizes.
        positions: of the encoder, two frames each.
        decode_rate: see `SoundReader`.
        augment: see `SoundReader`.
    """

    def __init__(
        self,
        extractor: Any,
        positions: int,
        decode_rate: int | None = None,
        augment: SpecAugment | None = None,
    ) -> None:
        # An even number of frames: the encoder's second convolution halves them.
        step = 2 * extractor.hop_length
        super().__init__(
            extractor.sampling_rate,
            extractor.feature_size,
            longest=positions * step,
            # A frame at an edge sees reflected sound, half a window of it.
            shortest=(extractor.n_fft // 2 // step + 1) * step,
            step=step,
            decode_rate=decode_rate,
            augment=augment,
        )
        self.mel = transforms.MelSpectrogram(
            extractor.sampling_rate,
            n_fft=extractor.n_fft,
            hop_length=extractor.hop_length,
            n_mels=extractor.feature_size,
            f_max=8000.0,
            norm="slaney",
            mel_scale="slaney",
        )

    def features(self, sound: Tensor) -> Tensor:
        """See `SoundReader.features`."""
        return self.augmented(self.log_mel(sound).transpose(1, 2))

    def log_mel(self, sound: Tensor) -> Tensor:
        """(B, S) samples to Whisper's log-mel features (B, bands, S / 160)."""
        power = self.mel(sound)[..., :-1].clamp_min(1e-10).log10()
        floor = power.amax(dim=(1, 2), keepdim=True) - 8.0
        return (torch.maximum(power, floor) + 4.0) / 4.0


class WhisperStream(AudioStream):
    """The parts of transformers' `WhisperEncoder`."""

    def __init__(self, encoder: Any, reader: WhisperMel, pool: int, processor: Any) -> None:
        check_pool(pool, 1, encoder.config.max_source_positions)
        super().__init__(
            reader,
            pool,
            WhisperEmbedding(encoder),
            list(encoder.layers),
            encoder.layer_norm,
            width=encoder.config.d_model,
            processor=processor,
        )

    def embed(self, inputs: Tokens) -> Tokens:
        """See `StreamEncoder.embed`."""
        assert self.embedding is not None
        return Tokens(self.embedding(self.cast(without_masked(inputs))), inputs.mask[:, ::2])


class WhisperEmbedding(nn.Module):
    """Two convolutions over the spectrogram and the first positions."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = encoder.conv1, encoder.conv2
        self.embed_positions = _Positions(encoder.embed_positions.weight)
        self.dropout = nn.Dropout(encoder.config.dropout)

    def forward(self, features: Tensor) -> Tensor:
        """(B, T, bands), zeros under the mask, to (B, (T + 1) // 2, width)."""
        # Zeros are what the convolutions pad with: the last real position sees no difference.
        hidden = functional.gelu(self.conv1(features.transpose(1, 2)))
        hidden = functional.gelu(self.conv2(hidden)).transpose(1, 2)
        hidden = hidden + self.embed_positions.weight[: hidden.shape[1]]
        result: Tensor = self.dropout(hidden)
        return result


class _Positions(nn.Module):
    """Sinusoids, which Whisper never trained: a buffer stays fixed behind every cut."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())
