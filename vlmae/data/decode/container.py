"""One pass over a media file with PyAV: where its frames are, and all of its sound.

The pass decodes no picture. What it finds decides which frames are read, so that every backend
reads the same ones, and it is exact for variable rates because it counts packets.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property

import av
from av.stream import Disposition

from vlmae.data.decode.clip import BadClipError, Wave
from vlmae.data.decode.sound import SoundReader

# Uploads are not trusted: playlists and "concat" scripts would make FFmpeg open other files.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,wav,w64,flac,mp3,"
    "aac,ac3,eac3,amr,aiff,caf,gif,h264,hevc,m4v,ivf,obu,mxf,rm,dv,au"
)
BOXES = frozenset(
    {b"ftyp", b"moov", b"mdat", b"moof", b"free", b"skip", b"styp", b"sidx", b"wide", b"udta"}
)
LARGEST_PICTURE = 2**26  # pixels (8192 x 8192); a damaged header may ask for gigabytes


@dataclass(frozen=True)
class PictureIndex:
    """Packets of the picture, in decoding order.

    Attributes:
        stream: absolute number of the stream in its file.
        time_base: seconds of one unit of time.
        times: presentation time of each packet; its decoding time where it has no other.
        keyframes: whether decoding can begin at this packet.
        shown: whether its frame is shown: a file trimmed without encoding starts with packets that
            are only decoded, and what lies beyond `max_seconds` is not shown either.
        has_times: whether all packets have a presentation time (old AVI files have none).
    """

    stream: int
    time_base: Fraction
    times: list[int]
    keyframes: list[bool]
    shown: list[bool]
    has_times: bool

    @cached_property
    def frames(self) -> list[tuple[int, bool]]:
        """Time and whether it is a keyframe, for each shown frame in the order shown."""
        packets = zip(self.times, self.keyframes, self.shown, strict=True)
        return sorted((time, is_key) for time, is_key, is_shown in packets if is_shown)


@dataclass(frozen=True)
class Scan:
    """What one pass found.

    Attributes:
        pictures: packets of the picture; None if there is no video stream.
        audio: (S,) float32 mono; (0,) if missing.
        audio_missing: why, or None.
    """

    pictures: PictureIndex | None
    audio: Wave
    audio_missing: str | None


@contextmanager
def opened(media: bytes, key: str) -> Iterator[av.container.InputContainer]:
    """The file, closed at the end of the block.

    Raises:
        BadClipError: it is empty, cut short, or not a media file; errors of the block included.
    """
    if not media:
        raise BadClipError(key, "empty file")
    try:
        with av.open(
            io.BytesIO(media),
            mode="r",
            metadata_errors="replace",
            container_options={"format_whitelist": FORMATS, "protocol_whitelist": ""},
        ) as container:
            if "mp4" in container.format.name and (missing := bytes_missing(media)):
                raise BadClipError(key, "truncated file", f"{missing} bytes are missing")
            yield container
    except BadClipError:
        raise
    # PyAV raises ValueError for text, formats and numbers that it cannot represent.
    except (av.error.FFmpegError, ValueError, ArithmeticError) as error:
        raise BadClipError(key, "undecodable file", str(error)) from None


def bytes_missing(media: bytes) -> int:
    """How many bytes an mp4 lacks at its end, by the sizes its outer boxes state; 0 if it is whole.

    FFmpeg reads a file that was cut behind its index as a shorter clip, and one cut inside it as a
    clip with fewer streams, both without a word.
    """
    start = 0
    while start + 8 <= len(media):
        size = int.from_bytes(media[start : start + 4])
        if size == 1:
            size = int.from_bytes(media[start + 8 : start + 16])
        # Size 0 means "to the end"; what follows the last box of a good file may be anything.
        if size < 8 or media[start + 4 : start + 8] not in BOXES:
            return 0
        start += size
    return max(0, start - len(media))


def picture_stream(container: av.container.InputContainer) -> av.VideoStream | None:
    """The first video stream that is not the cover of an audio file."""
    streams = container.streams.video
    return next((s for s in streams if not s.disposition & Disposition.attached_pic), None)


def require_readable(video: av.VideoStream, key: str) -> tuple[int, int]:
    """Width and height of a video stream that can be decoded, in pixels.

    Raises:
        BadClipError: its codec is unknown, or it is larger than `LARGEST_PICTURE`.
    """
    if video.codec_context is None:
        raise BadClipError(key, "unknown video codec")
    size = (video.codec_context.width or 0, video.codec_context.height or 0)
    if size[0] * size[1] > LARGEST_PICTURE:
        raise BadClipError(key, "picture too large", f"{size[0]} x {size[1]}")
    return size


def scan(
    container: av.container.InputContainer,
    key: str,
    *,
    sample_rate: int,
    max_seconds: float | None,
    picture: bool = True,
    sound: bool = True,
) -> Scan:
    """Read the file once.

    Args:
        container: just opened.
        key: for messages.
        sample_rate: of the returned audio, in Hz.
        max_seconds: as in `DecodePolicy`.
        picture: False leaves the video stream alone.
        sound: False leaves the sound track alone.

    Raises:
        BadClipError: the picture has an unknown codec or is larger than `LARGEST_PICTURE`.
        av.error.FFmpegError: it cannot be read on; `opened` names it.
    """
    video = picture_stream(container) if picture else None
    if video is not None:
        require_readable(video, key)
        video.codec_context.thread_count = 1
    audio = next(iter(container.streams.audio), None) if sound else None
    reader = SoundReader(sample_rate, max_seconds)
    if audio is not None and audio.codec_context is not None:
        audio.codec_context.thread_count = 1
    listener = audio if audio is not None and audio.codec_context is not None else None
    packets = _Packets(max_seconds)
    streams = [s for s in (video, listener) if s is not None]
    # Without a stream to read, `demux` would yield the packets of all others.
    for packet in container.demux(streams) if streams else ():
        # Not `packet.stream_index`, which is 0 for the empty packet at the end of any stream.
        if video is not None and packet.stream.index == video.index:
            packets.add(packet)
        elif not reader.full:
            reader.read(packet)
        if (video is None or packets.full) and (listener is None or reader.full):
            break
    if audio is None:
        wave, missing = reader.none("no audio track")
    elif listener is None:
        wave, missing = reader.none("unknown audio codec")
    else:
        wave, missing = reader.finish(_stated_seconds(container, listener))
    index = None if video is None else packets.index(video)
    return Scan(index, wave, missing)


def _stated_seconds(container: av.container.InputContainer, stream: av.AudioStream) -> float | None:
    """How long the track says it is. Only mp4 states it; FFmpeg estimates it for the others."""
    if "mp4" not in container.format.name or not stream.duration or not stream.time_base:
        return None
    return float(stream.duration * stream.time_base)


@dataclass
class _Packets:
    """Collects the picture's packets."""

    max_seconds: float | None
    times: list[int] = field(default_factory=list)
    keyframes: list[bool] = field(default_factory=list)
    shown: list[bool] = field(default_factory=list)
    has_times: bool = True
    first: int | None = None
    full: bool = False

    def add(self, packet: av.Packet) -> None:
        time = packet.dts if packet.pts is None else packet.pts
        if time is None or self.full:  # no time at all: the mark of the end
            return
        self.has_times &= packet.pts is not None
        self.times.append(time)
        self.keyframes.append(packet.is_keyframe)
        self.shown.append(not packet.is_discard)
        if self.first is None and not packet.is_discard:
            self.first = time
        if self.max_seconds is not None and self.first is not None and packet.dts is not None:
            # No later packet is shown before the time it is decoded at.
            self.full = (packet.dts - self.first) * packet.time_base >= self.max_seconds

    def index(self, video: av.VideoStream) -> PictureIndex:
        base = Fraction(video.time_base)
        shown = self.shown
        if self.max_seconds is not None and any(shown):
            start = min(t for t, is_shown in zip(self.times, shown, strict=True) if is_shown)
            shown = [
                is_shown and (time - start) * base < self.max_seconds
                for time, is_shown in zip(self.times, shown, strict=True)
            ]
        return PictureIndex(video.index, base, self.times, self.keyframes, shown, self.has_times)
