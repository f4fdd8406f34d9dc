"""The audio half of CLAP: a Swin transformer (HTSAT) over windows of 10 s at 48 kHz.

Source: Wu et al. 2022 (arXiv 2211.06687), Chen et al. 2022 (arXiv 2202.00874). Its stages have
different widths and lengths, and a stream has one: the blocks of the last stage can be cut, what
comes before them is the embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio import transforms
from transformers import ClapAudioModelWithProjection, ClapFeatureExtractor
from transformers.models.clap.modeling_clap import ClapAudioEncoder

from vlmae.backbones.audio_stream import (
    AudioTower,
    SoundReader,
    WindowStream,
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
from vlmae.backbones.spectrogram_transformer import mean_over_time
from vlmae.backbones.stream import ALL, StreamEncoder, Tuned


class Clap(AudioTower):
    """The audio encoder of a CLAP checkpoint, before its projection.

    Stream: "audio", for every window of 10 s the tokens that `pool` says; at a cut the 64 positions
        of the last stage, at "all" its 1,001 log-mel frames. The last window of a clip is filled by
        repeating it, as `ClapFeatureExtractor` fills short sounds. A checkpoint with feature fusion
        runs without it, as on sounds that are not longer than a window.

    Args:
        model: hub id or local folder.
        revision: of a hub id.
        pool: 0 for one token a window, the mean of all positions, as the model itself pools; 1 for
            all positions, as the model orders them; n for one for every n steps in time (0.3 s
            each), the mean over frequencies.
        tuned_blocks: see `StreamTower`; up to the blocks of the last stage, or "all".
        max_seconds: a longer clip is cut there.
        decode_rate: sample rate that clips arrive at, resampled on the device; None for the
            model's 48 kHz.
        spec_augment: "time" (frames of 10 ms), "frequency" (mel bands) and "masks" of
            `SpecAugment`; None for none.
        dtype: of the frozen weights: "float32", "bfloat16" or "float16"; what trains is float32.

    Raises:
        ValueError: it is no CLAP model, its files are not there, or a setting is out of range.
    """

    def __init__(
        self,
        model: str,
        revision: str | None = None,
        pool: int = 1,
        tuned_blocks: Tuned | Mapping[str, Tuned] = 0,
        max_seconds: float = 60.0,
        decode_rate: int | None = None,
        spec_augment: Mapping[str, int] | None = None,
        dtype: str = "float32",
    ) -> None:
        config = load_config(model, revision, ("clap", "clap_audio_model"), "a CLAP audio encoder")
        extractor = load_extractor(ClapFeatureExtractor, model, revision)
        encoder = load_model(ClapAudioModelWithProjection, model, revision, dtype).audio_model
        augment = SpecAugment.of(spec_augment, extractor.feature_size)
        reader = ClapMel(extractor, max_seconds, decode_rate, augment)
        name, known = identity_of(model, revision, config)
        super().__init__(
            ClapStream(encoder.audio_encoder, reader, pool, extractor),
            reader,
            tuned_blocks=tuned_blocks,
            name=name,
            revision=known,
            options={
                "pool": pool,
                "max_seconds": max_seconds,
                "extractor": processor_sha256(extractor),
            },
        )


class ClapMel(SoundReader):
    """Windows of log-mel features in dB as `ClapFeatureExtractor` computes and fills them.

    Args:
        extractor: of the model.
        max_seconds: what is read of a clip.
        decode_rate: see `SoundReader`.
        augment: see `SoundReader`.
    """

    def __init__(
        self,
        extractor: Any,
        max_seconds: float,
        decode_rate: int | None = None,
        augment: SpecAugment | None = None,
    ) -> None:
        rate, bands = extractor.sampling_rate, extractor.feature_size
        super().__init__(
            rate,
            bands,
            longest=int(max_seconds * rate),
            decode_rate=decode_rate,
            augment=augment,
        )
        self.window, self.padding = extractor.nb_max_samples, extractor.padding
        self.frames = self.window // extractor.hop_length + 1
        # The two kinds of checkpoints were trained with filters of two libraries.
        fused = extractor.truncation == "fusion"
        self.mel = transforms.MelSpectrogram(
            rate,
            n_fft=extractor.fft_window_size,
            hop_length=extractor.hop_length,
            f_min=extractor.frequency_min,
            f_max=extractor.frequency_max,
            n_mels=bands,
            norm=None if fused else "slaney",
            mel_scale="htk" if fused else "slaney",
        )

    def features(self, sound: Tensor) -> Tensor:
        """See `SoundReader.features`; T is a multiple of `frames`."""
        whole = sound.shape[1] - sound.shape[1] % self.window
        windows = [sound[:, :whole].reshape(len(sound), -1, self.window)]
        if whole < sound.shape[1]:
            windows.append(self.filled(sound[:, whole:])[:, None])
        power = self.mel(torch.cat(windows, dim=1).flatten(0, 1)).clamp_min(1e-10)
        features = self.augmented(10.0 * power.log10().transpose(1, 2))
        return features.reshape(len(sound), -1, self.width)

    def filled(self, sound: Tensor) -> Tensor:
        """(B, S) less than a window to (B, window)."""
        if self.padding == "repeat":
            sound = sound.repeat(1, self.window // sound.shape[1] + 1)[:, : self.window]
        elif self.padding == "repeatpad":
            sound = sound.repeat(1, self.window // sound.shape[1])
        return functional.pad(sound, (0, self.window - sound.shape[1]))


class ClapStream(WindowStream):
    """The parts of `ClapAudioEncoder`; its blocks are those of the last stage."""

    def __init__(self, encoder: Any, reader: ClapMel, pool: int, processor: Any) -> None:
        side = encoder.input_resolutions[-1][0]
        grid = (side // encoder.freq_ratio, side * encoder.freq_ratio)
        check_pool(pool, 0, grid[1])
        super().__init__(
            reader,
            pool,
            ClapEmbedding(encoder),
            list(encoder.layers[-1].blocks),
            encoder.norm,
            width=encoder.num_features,
            processor=processor,
        )
        self.frames, self.positions = reader.frames, side**2
        self.side, self.grid, self.ratio = side, grid, encoder.freq_ratio

    def cut(self, tuned: Tuned) -> tuple[StreamEncoder | None, StreamEncoder | None]:
        """See `StreamEncoder.cut`."""
        if isinstance(tuned, int) and tuned > self.total:
            raise ValueError(
                f"tuned_blocks must be from 0 to {self.total}, the blocks of CLAP's last stage, or "
                f"{ALL!r}, got {tuned}: its earlier stages have other widths and cannot be cut"
            )
        return super().cut(tuned)

    def block(self, layer: nn.Module, windows: Tensor) -> Tensor:
        """See `WindowStream.block`."""
        result: Tensor = layer(windows, (self.side, self.side))[0]
        return result

    def pooled(self, windows: Tensor) -> Tensor:
        """See `WindowStream.pooled`."""
        if self.pool == 0:
            return windows.mean(dim=1, keepdim=True)
        # The spectrogram was folded into a square: rows are stretches of time, then frequencies.
        folded = windows.reshape(len(windows), self.ratio, self.grid[0], self.side, -1)
        ordered = folded.transpose(1, 2).flatten(1, 3)
        return ordered if self.pool == 1 else mean_over_time(ordered, self.grid, self.pool)


class ClapEmbedding(nn.Module):
    """Log-mel frames to the hidden states before the last stage.

    Args:
        encoder: `ClapAudioEncoder`.

    Raises:
        ValueError: its patches read the channels of a fusion.
    """

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        patches = encoder.patch_embed
        if patches.proj.in_channels != 1:
            raise ValueError(
                f"this CLAP reads {patches.proj.in_channels} channels of a fused spectrogram "
                "(fusion_type channel_map), the tower has one: choose another checkpoint"
            )
        self.batch_norm, self.proj, self.norm = encoder.batch_norm, patches.proj, patches.norm
        self.stages = encoder.layers[:-1]
        self.resolutions = encoder.input_resolutions
        self.spec_size, self.freq_ratio = encoder.spec_size, encoder.freq_ratio

    def forward(self, frames: Tensor) -> Tensor:
        """(N, T, bands) to (N, positions, width)."""
        norm = self.batch_norm
        # Batch statistics stay frozen, also where the weights train.
        scaled = functional.batch_norm(
            frames.transpose(1, 2),
            norm.running_mean,
            norm.running_var,
            norm.weight,
            norm.bias,
            training=False,
            eps=norm.eps,
        )
        folded = ClapAudioEncoder.reshape_mel2img(self, scaled.transpose(1, 2)[:, None])
        hidden = self.norm(self.proj(folded).flatten(2).transpose(1, 2))
        for stage, resolution in zip(self.stages, self.resolutions, strict=False):
            hidden = stage(hidden, resolution)[0]
        result: Tensor = hidden
        return result
