"""Decode one clip: n frames and mono audio, with PyAV.

The container is opened, read once and closed here, with one thread, so that a decoder never crosses
a process. A clip whose picture cannot be decoded is a `BadClipError`; one without usable sound is
decoded and says why its audio is missing (design, contract 12).
"""

from __future__ import annotations

import io
from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt

# Below one 25 ms analysis window there is nothing an audio encoder could read.
MINIMUM_AUDIO_SECONDS = 0.025


class BadClipError(ValueError):
    """A clip that cannot be used at all.

    Attributes:
        reason: a short, stable phrase by which bad clips are counted.
    """

    def __init__(self, key: str, reason: str, detail: str = "") -> None:
        super().__init__(f"clip {key}: {reason}" + (f" ({detail})" if detail else ""))
        self.reason = reason


@dataclass(frozen=True)
class Clip:
    """A decoded clip.

    Attributes:
        key: the clip's key.
        title: its title, "" if it has none.
        frames: (F, H, W, 3) uint8 RGB.
        audio: (S,) float32 mono in [-1, 1] at the asked rate; (0,) if missing.
        audio_missing: why there is no audio, or None if there is.
    """

    key: str
    title: str
    frames: npt.NDArray[np.uint8]
    audio: npt.NDArray[np.float32]
    audio_missing: str | None


def decode_clip(media: bytes, *, key: str, title: str, frames: int, sample_rate: int) -> Clip:
    """Decode the bytes of one media file.

    Args:
        media: a whole file in any container FFmpeg reads.
        key: for messages.
        title: passed through.
        frames: how many frames, at the midpoints of equal runs of the clip's own frames; a clip
            with fewer frames repeats some.
        sample_rate: of the returned audio, in Hz.

    Raises:
        BadClipError: no video stream, no decodable frame, or a file that ends too early.
    """
    try:
        with av.open(io.BytesIO(media), metadata_errors="replace") as container:
            if not container.streams.video:
                raise BadClipError(key, "no video stream")
            if container.streams.video[0].codec_context is None:
                raise BadClipError(key, "unknown video codec")
            wanted = _frame_times(container, frames)
            container.seek(0)
            pictures, sound, damaged = _read(container, set(wanted), sample_rate)
            has_track = bool(container.streams.audio)
    except av.error.FFmpegError as error:
        raise BadClipError(key, "undecodable file", str(error)) from None
    if any(time not in pictures for time in wanted):
        raise BadClipError(key, "undecodable frames", damaged or "fewer frames than packets")
    chosen = [pictures[time] for time in wanted]
    if len({picture.shape for picture in chosen}) > 1:
        raise BadClipError(key, "frames of several sizes")
    audio = np.concatenate(sound) if sound else np.zeros(0, np.float32)
    missing = None
    if not has_track:
        missing = "no audio track"
    elif audio.size < MINIMUM_AUDIO_SECONDS * sample_rate:
        missing = "zero-length audio"
    if missing:
        audio = np.zeros(0, np.float32)
    return Clip(key, title, np.stack(chosen), audio, missing)


def _frame_times(container: av.container.InputContainer, frames: int) -> list[int]:
    """Presentation times of the wanted frames, from the packets alone: exact for variable rates."""
    stream = container.streams.video[0]
    # A file trimmed without encoding starts with packets that are decoded but never shown.
    times = sorted(
        packet.pts
        for packet in container.demux(stream)
        if packet.pts is not None and not packet.is_discard
    )
    if not times:
        raise av.error.InvalidDataError(0, "no video packet", "demux")
    return [times[int((index + 0.5) / frames * len(times))] for index in range(frames)]


def _read(
    container: av.container.InputContainer, wanted: set[int], sample_rate: int
) -> tuple[dict[int, npt.NDArray[np.uint8]], list[npt.NDArray[np.float32]], str]:
    """One pass over the file: the wanted pictures by time, all the sound, the last damage met."""
    pictures: dict[int, npt.NDArray[np.uint8]] = {}
    sound: list[npt.NDArray[np.float32]] = []
    damaged = ""
    resampler = av.AudioResampler(format="fltp", rate=sample_rate)
    streams = [container.streams.video[0], *container.streams.audio[:1]]
    streams = [stream for stream in streams if stream.codec_context is not None]
    for stream in streams:
        stream.codec_context.thread_count = 1
    for packet in container.demux(streams):
        try:
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    if frame.pts in wanted and frame.pts not in pictures:
                        pictures[frame.pts] = frame.to_ndarray(format="rgb24")
                else:
                    sound += [_mono(piece) for piece in resampler.resample(frame)]
        except (av.error.FFmpegError, ValueError) as error:
            # The resampler's ValueError: the sound changed its rate or channels on the way.
            damaged = str(error)
    if sound:
        sound += [_mono(piece) for piece in resampler.resample(None)]
    return pictures, sound, damaged


def _mono(frame: av.AudioFrame) -> npt.NDArray[np.float32]:
    """Mean of the channels: FFmpeg's own mix makes two equal ones 3 dB louder."""
    mixed: npt.NDArray[np.float32] = frame.to_ndarray().mean(axis=0)
    return mixed
