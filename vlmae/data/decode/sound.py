"""Sound of one track, streamed: mixed to mono, resampled, and cut where the track ends."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.audio.plane import AudioPlane

from vlmae.data.decode.clip import Wave

# Below one 25 ms analysis window there is nothing an audio encoder could read.
MINIMUM_AUDIO_SECONDS = 0.025
# The last packet of a track may be cut off; more than this share lost is no longer the sound.
LARGEST_LOST_SHARE = 0.1
# An encoder pads by less than this many samples; a longer overrun means a wrong duration.
LARGEST_PADDING = 8192
SAMPLE_TYPES = {"u8": "u1", "s16": "i2", "s32": "i4", "s64": "i8", "flt": "f4", "dbl": "f8"}
SENSIBLE_RATES = (1_000, 768_000)


class SoundReader:
    """Turns the packets of one audio stream into mono float32 at one rate.

    Pieces are mixed before they are resampled, so 5.1 sound costs as much memory as mono, and only
    the result grows with the length. A track that changes its rate or channels is read on.

    Args:
        sample_rate: of the result, in Hz.
        max_seconds: the sound is cut here; None reads all.
    """

    def __init__(self, sample_rate: int, max_seconds: float | None) -> None:
        self.sample_rate = sample_rate
        self._limit = None if max_seconds is None else round(max_seconds * sample_rate)
        self._done: list[Wave] = []
        self._samples = 0
        self._waiting: list[Wave] = []
        self._waiting_samples = 0
        self._rate = 0
        self._resampler: av.AudioResampler | None = None
        self._packets = self._damaged = 0

    @property
    def full(self) -> bool:
        """Whether `max_seconds` are there."""
        return self._limit is not None and self._samples >= self._limit

    def read(self, packet: av.Packet) -> None:
        """Decode one packet; the empty one at the end drains the decoder. Damage is counted."""
        self._packets += packet.size > 0
        try:
            for frame in packet.decode():
                self._hear(frame)
        except (av.error.FFmpegError, ValueError):
            self._damaged += 1

    def none(self, reason: str) -> tuple[Wave, str | None]:
        """No sound, and why."""
        return np.zeros(0, np.float32), reason

    def finish(self, stated_seconds: float | None) -> tuple[Wave, str | None]:
        """The whole sound, or (0,) and why it is missing.

        Args:
            stated_seconds: the track's duration, if it states one: what follows is the padding of
                the encoder's last packet.
        """
        source_rate = self._rate
        try:
            self._resample(last=True)
        except (av.error.FFmpegError, ValueError):
            self._damaged += 1
        wave = np.concatenate(self._done) if self._done else np.zeros(0, np.float32)
        self._done = []
        if self._damaged > LARGEST_LOST_SHARE * self._packets or not np.isfinite(wave).all():
            return self.none("undecodable audio")
        if stated_seconds is not None and source_rate:
            end = round(stated_seconds * self.sample_rate)
            if 0 < len(wave) - end <= LARGEST_PADDING * self.sample_rate / source_rate:
                wave = wave[:end]
        if self._limit is not None:
            wave = wave[: self._limit]
        if len(wave) < MINIMUM_AUDIO_SECONDS * self.sample_rate:
            return self.none("zero-length audio")
        return np.ascontiguousarray(wave), None

    def _hear(self, frame: av.AudioFrame) -> None:
        if frame.sample_rate != self._rate:
            self._resample(last=True)
            if not SENSIBLE_RATES[0] <= frame.sample_rate <= SENSIBLE_RATES[1]:
                raise ValueError(f"{frame.sample_rate} samples a second")
            self._rate = frame.sample_rate
        piece = mono(frame)
        self._waiting.append(piece)
        self._waiting_samples += len(piece)
        # A second at a time: a call for every packet takes longer than the resampling.
        if self._waiting_samples >= self._rate:
            self._resample()

    def _resample(self, last: bool = False) -> None:
        pieces, self._waiting, self._waiting_samples = self._waiting, [], 0
        if self._rate == self.sample_rate:
            self._keep(pieces)
            return
        if pieces:
            if self._resampler is None:
                self._resampler = av.AudioResampler(
                    format="fltp", layout="mono", rate=self.sample_rate
                )
            frame = av.AudioFrame.from_ndarray(np.concatenate(pieces)[None], "fltp", "mono")
            frame.sample_rate, frame.time_base = self._rate, Fraction(1, self._rate)
            self._keep([piece.to_ndarray()[0] for piece in self._resampler.resample(frame)])
        if last and self._resampler is not None:
            resampler, self._resampler = self._resampler, None
            self._keep([piece.to_ndarray()[0] for piece in resampler.resample(None)])

    def _keep(self, pieces: list[Wave]) -> None:
        self._done += pieces
        self._samples += sum(len(piece) for piece in pieces)


def mono(frame: av.AudioFrame) -> Wave:
    """(S,) float32 mean of the channels: FFmpeg's own mix makes two equal ones 3 dB louder.

    Raises:
        ValueError: a sample format that numpy does not have.
    """
    dtype = SAMPLE_TYPES.get(frame.format.name.removesuffix("p"))
    if dtype is None:
        raise ValueError(f"samples of format {frame.format.name}")
    channels, count = frame.layout.nb_channels, frame.samples
    # Not `frame.to_ndarray()`: PyAV 18 counts planes up to a null pointer, and reads whatever
    # follows the last one where there are eight or more (7.1 sound): a crash of the process.
    if frame.format.is_planar:
        samples = np.stack([_plane(frame, n, dtype)[:count] for n in range(channels)])
    else:
        packed = _plane(frame, 0, dtype)[: count * channels]
        samples = packed.reshape(count, channels).T
    if samples.dtype.kind == "u":
        scaled: Wave = samples.astype(np.float32) / np.float32(128) - np.float32(1)
    elif samples.dtype.kind == "i":
        full = np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
        scaled = samples.astype(np.float32) / full
    else:
        scaled = samples.astype(np.float32, copy=False)
    mixed: Wave = scaled.mean(axis=0, dtype=np.float32)
    return mixed


def _plane(frame: av.AudioFrame, number: int, dtype: str) -> npt.NDArray[Any]:
    plane = memoryview(AudioPlane(frame, number))
    return np.frombuffer(plane, dtype, len(plane) // np.dtype(dtype).itemsize)
