"""What audio towers share: sound read on the device, and streams of positions or of windows.

A `SoundReader` turns clips into the inputs of an encoder: it resamples, normalises and computes the
spectrogram, and augments it if told to. A reader is no part of the weights: its buffers are not in
the identity, but it moves with its tower.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchaudio.transforms import Resample
from transformers import AutoFeatureExtractor

from vlmae.backbones.pretrained import load_processor
from vlmae.backbones.spec_augment import SpecAugment
from vlmae.backbones.stream import CLIPS_AT_A_TIME, StreamEncoder, StreamTower, Tuned
from vlmae.backbones.suffix import MASKED_SCORE, mean_of_groups, without_masked
from vlmae.data.decode import Clip
from vlmae.tokens import Tokens

AUDIO = "audio"


class SoundReader(nn.Module):
    """Clips to the inputs of an encoder, on the device the reader is on.

    Args:
        rate: sample rate of the model, in Hz.
        width: of the inputs.
        longest: samples at `rate` that are read; what follows is cut off.
        shortest: samples at `rate` below which a sound has no inputs.
        step: the number of samples is rounded down to a multiple of it.
        decode_rate: sample rate that clips arrive at; None for the model's.
        augment: SpecAugment or None.

    Attributes:
        augmenting: whether `augment` is applied.

    Raises:
        ValueError: `decode_rate` or `longest` is not positive.
    """

    place: Tensor

    def __init__(
        self,
        rate: int,
        width: int,
        *,
        longest: int,
        shortest: int = 1,
        step: int = 1,
        decode_rate: int | None = None,
        augment: SpecAugment | None = None,
    ) -> None:
        super().__init__()
        if decode_rate is not None and decode_rate < 1:
            raise ValueError(f"decode_rate must be positive, in Hz, or null, got {decode_rate}")
        if longest < shortest:
            raise ValueError(
                f"max_seconds leaves {longest} samples, the model needs {shortest}: raise it"
            )
        self.rate, self.width = rate, width
        self.decode_rate = decode_rate or rate
        self.longest, self.shortest, self.step = longest, shortest, step
        self.resample = Resample(self.decode_rate, rate) if self.decode_rate != rate else None
        self.spec_augment = augment
        self.augmenting = False
        self.register_buffer("place", torch.empty(0), persistent=False)

    def forward(self, clips: Sequence[Clip]) -> list[Tensor]:
        """Of every clip (T_i, width) float32 on the CPU; clips of one length run together."""
        inputs = [torch.zeros(0, self.width)] * len(clips)
        limit = self.longest * self.decode_rate // self.rate
        lengths = [min(len(clip.audio), limit) for clip in clips]
        for length in sorted(set(lengths) - {0}):
            rows = [row for row, other in enumerate(lengths) if other == length]
            for start in range(0, len(rows), CLIPS_AT_A_TIME):
                some = rows[start : start + CLIPS_AT_A_TIME]
                sound = torch.stack([torch.from_numpy(clips[row].audio[:length]) for row in some])
                read = self.read(sound.to(self.place.device)).cpu()
                for row, values in zip(some, read, strict=True):
                    inputs[row] = values
        return inputs

    def read(self, sound: Tensor) -> Tensor:
        """(B, S) samples at `decode_rate` to inputs (B, T, width)."""
        if self.resample is not None:
            sound = self.resample(sound)
        samples = min(sound.shape[1], self.longest)
        samples -= samples % self.step
        if samples < self.shortest:
            return sound.new_zeros(len(sound), 0, self.width)
        return self.features(sound[:, :samples])

    @abstractmethod
    def features(self, sound: Tensor) -> Tensor:
        """(B, S) samples at `rate`, at least `shortest`, to inputs (B, T, width)."""

    def augmented(self, features: Tensor) -> Tensor:
        """(B, T, width) features, masked at random if the tower is told to."""
        if self.spec_augment is None or not self.augmenting:
            return features
        masked: Tensor = self.spec_augment(features)
        return masked


class AudioStream(StreamEncoder):
    """An encoder of sound whose hidden states are one sequence a clip.

    Args:
        reader: makes its inputs. The tower owns it, so that it is no part of the weights.
        pool: positions averaged into one token.
        embedding: see `StreamEncoder`, as the arguments that follow.
        layers: the blocks.
        norm: behind the last block.
        width: of hidden states and tokens.
        processor: the feature extractor of the model.
    """

    def __init__(
        self,
        reader: SoundReader,
        pool: int,
        embedding: nn.Module,
        layers: Sequence[nn.Module],
        norm: nn.Module,
        *,
        width: int,
        processor: Any,
    ) -> None:
        super().__init__(
            embedding,
            layers,
            norm,
            input_width=reader.width,
            hidden_width=width,
            out_width=width,
            processor=processor,
        )
        self.pool = pool
        # A bound method: a module would be registered, and hashed with the weights.
        self.read: Callable[[Sequence[Clip]], list[Tensor]] = reader.forward

    def inputs(self, clips: Sequence[Clip]) -> list[Tensor]:
        """See `StreamEncoder.inputs`."""
        return self.read(clips)

    def cast(self, values: Tensor) -> Tensor:
        """Inputs in the type that the embedding's weights have."""
        assert self.embedding is not None
        return values.to(next(self.embedding.parameters()).dtype)

    def context(self, hidden: Tokens) -> Any:
        """(B, 1, 1, T) added to attention scores: a large negative number under the mask."""
        scores = torch.zeros_like(hidden.mask, dtype=hidden.values.dtype)
        return scores.masked_fill(~hidden.mask, MASKED_SCORE)[:, None, None, :]

    def call(self, layer: nn.Module, hidden: Tensor, mask: Tensor, context: Any) -> Tensor:
        """See `StreamEncoder.call`."""
        output = layer(hidden, context)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def finish(self, hidden: Tokens) -> Tokens:
        """See `StreamEncoder.finish`."""
        assert self.norm is not None
        return mean_of_groups(Tokens(self.norm(hidden.values), hidden.mask), self.pool)


class WindowStream(AudioStream):
    """An encoder that reads windows of one length, each a sequence of its own.

    Windows are real or not as a whole: a masked position in a window that has real ones is read as
    zeros. Masked windows are computed, too, so that shapes do not depend on values.

    Attributes:
        frames: inputs of a window.
        positions: hidden states of a window.
    """

    frames: int
    positions: int

    def embed(self, inputs: Tokens) -> Tokens:
        """See `StreamEncoder.embed`."""
        assert self.embedding is not None
        values, real = _windows(inputs, self.frames)
        return _joined(_in_parts(self.embedding, self.cast(values)), real)

    def context(self, hidden: Tokens) -> Any:
        """None: nothing is masked within a window."""
        return None

    def call(self, layer: nn.Module, hidden: Tensor, mask: Tensor, context: Any) -> Tensor:
        """See `StreamEncoder.call`."""
        values, real = _windows(Tokens(hidden, mask), self.positions)
        result = _in_parts(lambda part: self.block(layer, part), values)
        # A batch without any window is shorter than one.
        return _joined(result, real).values[:, : hidden.shape[1]]

    def finish(self, hidden: Tokens) -> Tokens:
        """See `StreamEncoder.finish`."""
        assert self.norm is not None
        values, real = _windows(hidden, self.positions)
        return _joined(self.pooled(self.norm(values)), real)

    @abstractmethod
    def block(self, layer: nn.Module, windows: Tensor) -> Tensor:
        """One block on windows (N, positions, hidden_width)."""

    @abstractmethod
    def pooled(self, windows: Tensor) -> Tensor:
        """Last hidden states (N, positions, hidden_width) to the tokens of every window."""


def _windows(tokens: Tokens, size: int) -> tuple[Tensor, Tensor]:
    """(B * W, size, D) values, zeros under the mask, and (B, W) which windows are real."""
    batch, length, width = tokens.values.shape
    incomplete = -length % size
    values = nn.functional.pad(without_masked(tokens), (0, 0, 0, incomplete))
    mask = nn.functional.pad(tokens.mask, (0, incomplete), value=False)
    return values.reshape(-1, size, width), mask.reshape(batch, -1, size).any(dim=2)


def _joined(windows: Tensor, real: Tensor) -> Tokens:
    """Tokens (B, W * P, D) of windows (B * W, P, D)."""
    count, positions, width = windows.shape
    values = windows.reshape(len(real), count // len(real) * positions, width)
    return Tokens(values, real.repeat_interleave(positions, dim=1))


def _in_parts(function: Callable[[Tensor], Tensor], windows: Tensor) -> Tensor:
    """A function of windows, on some at a time: a long sound is many."""
    return torch.cat([function(part) for part in torch.split(windows, CLIPS_AT_A_TIME)])


class AudioTower(StreamTower):
    """A tower with one stream, "audio".

    Args:
        encoder: the whole encoder.
        reader: that it reads with.
        tuned_blocks: see `StreamTower`.
        name: of the weights, as the arguments that follow for the identity.
        revision: of the weights.
        options: settings that change the tokens.
    """

    def __init__(
        self,
        encoder: AudioStream,
        reader: SoundReader,
        *,
        tuned_blocks: Tuned | Mapping[str, Tuned],
        name: str,
        revision: str,
        options: Mapping[str, Any],
    ) -> None:
        resampled = {} if reader.resample is None else {"decode_rate": reader.decode_rate}
        super().__init__(
            {AUDIO: encoder},
            tuned_blocks=tuned_blocks,
            name=name,
            revision=revision,
            options={**options, **resampled},
            sample_rate=reader.decode_rate,
        )
        self.reader = reader
        self.processor = encoder.processor

    @property
    def augment(self) -> bool:
        """See `Backbone`."""
        return self.reader.augmenting

    @augment.setter
    def augment(self, on: bool) -> None:
        self.reader.augmenting = on

    @property
    def random(self) -> str:
        """See `Backbone.random`."""
        return "" if self.reader.spec_augment is None else "spec_augment draws new masks each step"


def load_extractor(kind: type, model: str, revision: str | None) -> Any:
    """The feature extractor of a model.

    Raises:
        ValueError: its file is not there, or it is not of that kind.
    """
    extractor = load_processor(AutoFeatureExtractor, model, revision)
    if not isinstance(extractor, kind):
        raise ValueError(
            f"{model!r} has a {type(extractor).__name__} for its sound, its encoder needs a "
            f"{kind.__name__}: save the extractor that it was trained with beside its weights"
        )
    return extractor


def check_pool(pool: int, least: int, most: int) -> None:
    """Refuses a number of positions that cannot be averaged.

    Raises:
        ValueError: it is outside.
    """
    if isinstance(pool, bool) or not isinstance(pool, int) or not least <= pool <= most:
        raise ValueError(f"pool must be from {least} to {most}, got {pool!r}")
