"""AST, the audio spectrogram transformer: a ViT over windows of 10.24 s of log-mel frames.

Source: Gong et al. 2021 (arXiv 2104.01778). Its positions are learned for one length, so a longer
clip is several windows, and the last one is padded as `ASTFeatureExtractor` pads.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchaudio.compliance import kaldi
from transformers import ASTFeatureExtractor, ASTModel

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
from vlmae.backbones.stream import Tuned
from vlmae.backbones.suffix import mean_of_groups
from vlmae.tokens import Tokens

SPECIAL = 2  # CLS and distillation tokens, before the patches
FRAME_SECONDS = 0.025


class SpectrogramTransformer(AudioTower):
    """The encoder of an AST checkpoint.

    Stream: "audio", for every window of 10.24 s the tokens that `pool` says; at a cut all positions
        of the window, at "all" its 1,024 log-mel frames. A sound shorter than one frame (25 ms) has
        no token.

    Args:
        model: hub id or local folder.
        revision: of a hub id.
        pool: 0 for one token a window, the mean of its CLS and distillation tokens, as the model
            itself pools; 1 for these two and every patch, as the model orders them; n for these two
            and one for every n steps in time (0.1 s each), the mean of their patches.
        tuned_blocks: see `StreamTower`.
        max_seconds: a longer clip is cut there.
        decode_rate: sample rate that clips arrive at, resampled on the device; None for the
            model's.
        spec_augment: "time" (frames of 10 ms), "frequency" (mel bands) and "masks" of
            `SpecAugment`; None for none.
        dtype: of the frozen weights: "float32", "bfloat16" or "float16"; what trains is float32.

    Raises:
        ValueError: it is no AST model, its files are not there, or a setting is out of range.
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
        config = load_config(
            model, revision, ("audio-spectrogram-transformer",), "a spectrogram transformer"
        )
        extractor = load_extractor(ASTFeatureExtractor, model, revision)
        made = (extractor.max_length, extractor.num_mel_bins)
        read = (config.max_length, config.num_mel_bins)
        if made != read:
            raise ValueError(
                f"the extractor of {model!r} makes windows of {made} frames and bands, its encoder "
                f"reads {read}: save the extractor that it was trained with"
            )
        encoder = load_model(ASTModel, model, revision, dtype)
        augment = SpecAugment.of(spec_augment, extractor.num_mel_bins)
        reader = KaldiMel(extractor, max_seconds, decode_rate, augment)
        name, known = identity_of(model, revision, config)
        super().__init__(
            SpectrogramStream(encoder, reader, pool, extractor),
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


class KaldiMel(SoundReader):
    """Windows of Kaldi's filter bank as `ASTFeatureExtractor` computes and pads them.

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
        rate, bands = extractor.sampling_rate, extractor.num_mel_bins
        super().__init__(
            rate,
            bands,
            longest=int(max_seconds * rate),
            shortest=int(FRAME_SECONDS * rate),
            decode_rate=decode_rate,
            augment=augment,
        )
        self.frames = extractor.max_length
        self.mean, self.scale = 0.0, 1.0
        if extractor.do_normalize:
            self.mean, self.scale = extractor.mean, 2.0 * extractor.std

    def features(self, sound: Tensor) -> Tensor:
        """See `SoundReader.features`; T is a multiple of `frames`."""
        banks = torch.stack(
            [
                kaldi.fbank(
                    one[None],
                    sample_frequency=self.rate,
                    window_type="hanning",
                    num_mel_bins=self.width,
                )
                for one in sound
            ]
        )
        banks = self.augmented(banks)
        # Padded before it is normalised, as the model was trained.
        padded = functional.pad(banks, (0, 0, 0, -banks.shape[1] % self.frames))
        return (padded - self.mean) / self.scale


class SpectrogramStream(WindowStream):
    """The parts of `ASTModel`."""

    def __init__(self, model: Any, reader: KaldiMel, pool: int, processor: Any) -> None:
        config = model.config
        self_grid = model.embeddings.get_shape(config)
        check_pool(pool, 0, self_grid[1])
        super().__init__(
            reader,
            pool,
            model.embeddings,
            list(model.layers),
            model.layernorm,
            width=config.hidden_size,
            processor=processor,
        )
        self.grid: tuple[int, int] = self_grid
        self.frames = config.max_length
        self.positions = SPECIAL + self_grid[0] * self_grid[1]

    def block(self, layer: nn.Module, windows: Tensor) -> Tensor:
        """See `WindowStream.block`."""
        result: Tensor = layer(windows, None)
        return result

    def pooled(self, windows: Tensor) -> Tensor:
        """See `WindowStream.pooled`."""
        special, patches = windows[:, :SPECIAL], windows[:, SPECIAL:]
        if self.pool == 0:
            return special.mean(dim=1, keepdim=True)
        if self.pool == 1:
            return windows
        return torch.cat([special, mean_over_time(patches, self.grid, self.pool)], dim=1)


def mean_over_time(patches: Tensor, grid: tuple[int, int], size: int) -> Tensor:
    """Means over all frequencies of every `size` steps in time; the last may be of fewer.

    Args:
        patches: (N, frequencies * times, D), time running fastest.
        grid: frequencies and times.
        size: steps averaged.
    """
    steps = patches.reshape(len(patches), *grid, -1).mean(dim=1)
    everything = torch.ones(steps.shape[:2], dtype=torch.bool, device=steps.device)
    return mean_of_groups(Tokens(steps, everything), size).values
