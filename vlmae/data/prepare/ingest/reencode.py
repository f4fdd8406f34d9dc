"""Media in the form that training reads fast: small pictures, a keyframe every second.

H.264 and AAC in mp4, one thread and bit-exact, so that equal files give equal bytes. Frames keep
their times (variable rates stay variable) and come out upright. Packets that cannot be decoded are
left out, as players do; a sound track of which nothing can be decoded is dropped.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from av.video.frame import PictureType
from av.video.reformatter import Interpolation
from PIL import Image, ImageOps

from vlmae.data.decode.clip import BadClipError
from vlmae.data.decode.container import FORMATS, picture_stream, require_readable
from vlmae.data.prepare.encode import REPEATABLE
from vlmae.data.prepare.probe import EXIF_ORIENTATION

GOP_SECONDS = 1
CLOCK = Fraction(1, 90_000)  # of the new video's times, as in MPEG: exact for all usual rates
AUDIO_BITS_PER_SECOND = 64_000  # a channel
# What AAC can be coded in, in Hz, up to the highest that we keep.
AAC_RATES = (7350, 8000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
QUALITY = 95  # of pictures that are made smaller
LIMITED_RANGE = 1  # AVCOL_RANGE_MPEG


@dataclass(frozen=True)
class Reencoded:
    """A new file.

    Attributes:
        media: its bytes, mp4.
        sound_dropped: whether there was a sound track, but nothing of it could be decoded.
    """

    media: bytes
    sound_dropped: bool


def target_size(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Width and height, even, of a picture made smaller until its shorter side fits."""
    scale = min(1.0, short_side / min(width, height))
    return (
        max(2, 2 * round(width * scale / 2)),
        max(2, 2 * round(height * scale / 2)),
    )


def reencode(media: bytes, short_side: int, key: str) -> Reencoded:
    """Encode one video file again.

    Args:
        media: a whole file in any container FFmpeg reads.
        short_side: larger pictures are made smaller to this.
        key: for messages.

    Raises:
        BadClipError: the file cannot be opened, or nothing of it can be decoded.
    """
    if not media:
        raise BadClipError(key, "empty file")
    try:
        return _reencode(media, short_side, key)
    except (av.error.FFmpegError, UnicodeError) as error:
        raise BadClipError(key, "undecodable file", str(error)) from None


def _reencode(media: bytes, short_side: int, key: str) -> Reencoded:
    buffer = io.BytesIO()
    with (
        _opened(media) as source,
        av.open(buffer, "w", format="mp4", container_options={"fflags": "+bitexact"}) as target,
    ):
        picture = picture_stream(source)
        sound = next((s for s in source.streams.audio if s.codec_context is not None), None)
        if picture is not None and picture.codec_context is None:
            raise BadClipError(key, "unknown video codec")
        # Streams must be known before the first packet is written: what comes out of each first.
        images = _Images(source, picture, short_side, target, key) if picture is not None else None
        wave = _Wave(media, sound, target) if sound is not None else None
        if images is None and (wave is None or wave.out is None):
            raise BadClipError(key, "neither picture nor sound")
        starts = [s.start for s in (images, wave) if s is not None and s.start is not None]
        origin = min(starts, default=Fraction(0))
        writers = [s.packets(origin) for s in (images, wave) if s is not None]
        for packets in writers:
            for packet in packets:
                target.mux(packet)
        sound_dropped = bool(source.streams.audio) and (wave is None or wave.out is None)
    return Reencoded(buffer.getvalue(), sound_dropped)


def _opened(media: bytes) -> av.container.InputContainer:
    return av.open(
        io.BytesIO(media),
        mode="r",
        metadata_errors="replace",
        container_options={"format_whitelist": FORMATS, "protocol_whitelist": ""},
    )


def _decoded(source: av.container.InputContainer, stream: Any) -> Iterator[Any]:
    """Frames of one stream; packets that cannot be decoded are skipped."""
    stream.codec_context.thread_count = 1
    try:
        for packet in source.demux(stream):
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                continue
    except av.error.FFmpegError:  # the file ends before its index says
        return


class _Images:
    """The picture, decoded, turned, made smaller and encoded."""

    def __init__(
        self,
        source: av.container.InputContainer,
        stream: Any,
        short_side: int,
        target: av.container.OutputContainer,
        key: str,
    ) -> None:
        require_readable(stream, key)
        context = stream.codec_context
        self._frames = _decoded(source, stream)
        self._first = next(self._frames, None)
        if self._first is None:
            raise BadClipError(key, "undecodable frames", "no frame can be decoded")
        self._rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        self.start = self._time(self._first)
        self._turns = round(self._first.rotation / 90) % 4
        size = target_size(self._first.width, self._first.height, short_side)
        self._size = size
        self.out = target.add_stream(
            "libx264",
            rate=Fraction(self._rate).limit_denominator(1001),
            options={
                "preset": "veryfast",
                "crf": "21",
                "g": "100000",  # keyframes are placed by time, see `packets`
                "sc_threshold": "0",
                "bf": "0",  # frames decode in the order they are shown
                "forced-idr": "1",
                "threads": "1",
                **REPEATABLE,
            },
        )
        self.out.width, self.out.height = size[::-1] if self._turns % 2 else size
        self.out.pix_fmt = "yuv420p"
        encoder = self.out.codec_context
        encoder.time_base = CLOCK
        encoder.flags |= Flags.bitexact
        if not context.format.is_rgb:
            for name in ("colorspace", "color_primaries", "color_trc"):
                setattr(encoder, name, getattr(context, name))
        encoder.color_range = LIMITED_RANGE

    @staticmethod
    def _time(frame: Any) -> Fraction | None:
        return None if frame.pts is None else frame.pts * Fraction(frame.time_base)

    def packets(self, origin: Fraction) -> Iterator[Any]:
        """Encoded packets, times counted from `origin` in seconds."""
        last, gop = -1, None
        frame = self._first
        number = 0
        while frame is not None:
            time = self._time(frame)
            time = number / self._rate if time is None else time - origin
            ticks = round(time / CLOCK)
            if ticks > last:
                second = int(time // GOP_SECONDS)
                small = self._upright(frame)
                small.pts, small.time_base = ticks, CLOCK
                small.pict_type = PictureType.I if second != gop else PictureType.NONE
                yield from self.out.encode(small)
                last, gop = ticks, second
            number += 1
            frame = next(self._frames, None)
        yield from self.out.encode(None)

    def _upright(self, frame: Any) -> Any:
        width, height = self._size
        small = frame.reformat(
            width,
            height,
            "yuv420p",
            interpolation=Interpolation.BICUBIC | Interpolation.BITEXACT,
            src_color_range=frame.color_range,
            dst_color_range=LIMITED_RANGE,
            threads=1,
        )
        planes = small.to_ndarray()
        if self._turns:
            planes = _turned(planes, height, self._turns)
        return av.VideoFrame.from_ndarray(planes, format="yuv420p")


def _turned(planes: npt.NDArray[np.uint8], height: int, turns: int) -> npt.NDArray[np.uint8]:
    """Quarter turns counterclockwise of `(height * 3 / 2, width)` planes of yuv420p."""
    width = planes.shape[1]
    luma = np.rot90(planes[:height], turns)
    chroma = planes[height:].reshape(2, height // 2, width // 2)
    turned = np.rot90(chroma, turns, axes=(1, 2))
    rows = turned.size // luma.shape[1]
    return np.concatenate([luma, np.ascontiguousarray(turned).reshape(rows, luma.shape[1])])


class _Wave:
    """The sound, decoded in a pass of its own and encoded.

    Pictures and sound are written one after the other: clips are read whole, so nothing is gained
    by interleaving, and only one decoder has to be fed at a time.
    """

    def __init__(self, media: bytes, stream: Any, target: av.container.OutputContainer) -> None:
        self._media, self._index = media, stream.index
        self.out: Any = None
        self.start: Fraction | None = None
        with _opened(media) as source:
            first = next(_decoded(source, source.streams[stream.index]), None)
        if first is None or not first.samples:
            return
        rate = next((r for r in AAC_RATES if r >= first.sample_rate), AAC_RATES[-1])
        channels = 1 if len(first.layout.channels) == 1 else 2
        layout = "mono" if channels == 1 else "stereo"
        if first.pts is not None:
            self.start = first.pts * Fraction(first.time_base)
        # The fast coder: FFmpeg's default one takes twice as long for no audible gain.
        self.out = target.add_stream("aac", rate=rate, layout=layout, options={"aac_coder": "fast"})
        self.out.bit_rate = AUDIO_BITS_PER_SECOND * channels
        self.out.codec_context.flags |= Flags.bitexact
        self._rate, self._layout = rate, layout

    def packets(self, origin: Fraction) -> Iterator[Any]:
        """Encoded packets, times counted from `origin` in seconds."""
        if self.out is None:
            return
        position = round(((self.start or origin) - origin) * self._rate)
        for piece in self._resampled():
            piece.pts, piece.time_base = position, Fraction(1, self._rate)
            position += piece.samples
            yield from self.out.encode(piece)
        yield from self.out.encode(None)

    def _resampled(self) -> Iterator[Any]:
        """Sound at the new rate; samples follow each other, whatever the times of the old."""
        resampler, form = None, None
        with _opened(self._media) as source:
            for frame in _decoded(source, source.streams[self._index]):
                frame.pts = None
                told = (frame.sample_rate, frame.format.name, frame.layout.name)
                if told != form:  # broadcasts change it within a track
                    yield from resampler.resample(None) if resampler else ()
                    resampler = av.AudioResampler("fltp", self._layout, self._rate)
                    form = told
                assert resampler is not None
                yield from resampler.resample(frame)
        yield from resampler.resample(None) if resampler else ()


def shrink_image(image: bytes, short_side: int, key: str) -> bytes:
    """A picture upright and with a shorter side of at most `short_side`; unchanged if it is so.

    Raises:
        BadClipError: it cannot be decoded.
    """
    try:
        with Image.open(io.BytesIO(image)) as opened:
            opened.load()
            kind = opened.format or "PNG"
            is_upright = opened.getexif().get(EXIF_ORIENTATION, 1) == 1
            if is_upright and min(opened.size) <= short_side:
                return image
            small: Image.Image = ImageOps.exif_transpose(opened) or opened
            if min(small.size) > short_side:
                size = target_size(small.width, small.height, short_side)
                small = small.resize(size, Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise BadClipError(key, "undecodable image", str(error)) from None
    buffer = io.BytesIO()
    small.save(buffer, kind, **({"quality": QUALITY} if kind in ("JPEG", "WEBP") else {}))
    return buffer.getvalue()
