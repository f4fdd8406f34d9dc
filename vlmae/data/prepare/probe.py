"""What a clip's media are: size, rate, codecs, length, found by opening them.

One frame is decoded, because only frames know how they are turned; it also shows that decoding can
begin at all.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import av
from PIL import Image

from vlmae.data.decode.clip import BadClipError
from vlmae.data.decode.container import FORMATS, picture_stream, require_readable
from vlmae.data.prepare.media import clip_members

# EXIF orientation -> degrees counterclockwise that turn the picture upright; mirrors do not count.
ORIENTATION = {3: 180, 4: 180, 5: -90, 6: -90, 7: 90, 8: 90}
EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Probe:
    """What was found; None where it does not apply.

    Attributes:
        media: ending of the video file, "images" or "audio".
        duration_s: of the longest stream; 0 for images without sound.
        width, height: of the pictures as stored, in pixels.
        frames: number of pictures.
        fps: their mean rate.
        video_codec, audio_codec: names that FFmpeg gives.
        audio_rate: in Hz.
        audio_channels: number.
        rotation: degrees counterclockwise that turn stored pictures upright, in [-180, 180].
    """

    media: str
    duration_s: float = 0.0
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    fps: float | None = None
    video_codec: str | None = None
    audio_codec: str | None = None
    audio_rate: int | None = None
    audio_channels: int | None = None
    rotation: int | None = None

    def columns(self) -> dict[str, Any]:
        """The columns of the index, name -> value."""
        return asdict(self)


def probe(members: Mapping[str, bytes | BinaryIO], key: str) -> Probe:
    """Open a clip's media.

    Args:
        members: ending, lower case -> bytes or a seekable binary file.
        key: for messages.

    Raises:
        BadClipError: there are no media, they cannot be opened, or no picture can be decoded.
    """
    parts = clip_members(members)
    if parts is None:
        raise BadClipError(key, "no media member", f"it has {', '.join(sorted(members)) or 'none'}")
    found: dict[str, Any] = {"media": parts.kind}
    if parts.video:
        found |= _probe_file(members[parts.video], key, picture=True)
    elif parts.images:
        found |= _probe_images([members[ending] for ending in parts.images], key)
    if parts.sound:
        try:
            heard = _probe_file(members[parts.sound], key, picture=False)
        except BadClipError:
            if not (parts.video or parts.images):
                raise
            # A picture without usable sound is a clip whose sound is masked.
            heard = dict.fromkeys(("audio_codec", "audio_rate", "audio_channels"))
        length = max(found.get("duration_s", 0.0), heard.get("duration_s", 0.0))
        found |= {**heard, "duration_s": length}
    return Probe(**found)


def _probe_file(source: bytes | BinaryIO, key: str, *, picture: bool) -> dict[str, Any]:
    """Columns of one media file; `picture` says whether pictures in it count."""
    if isinstance(source, bytes):
        if not source:
            raise BadClipError(key, "empty file")
        source = io.BytesIO(source)
    try:
        with av.open(
            source,
            mode="r",
            metadata_errors="replace",
            container_options={"format_whitelist": FORMATS, "protocol_whitelist": ""},
        ) as container:
            found = _probe_container(container, key, picture=picture)
            if "frames" in found and not found["frames"]:
                found["frames"] = _count_packets(source)
            _require_usable(found, key)
            return found
    except (av.error.FFmpegError, UnicodeError) as error:
        raise BadClipError(key, "undecodable file", str(error)) from None


def _probe_container(
    container: av.container.InputContainer, key: str, *, picture: bool
) -> dict[str, Any]:
    video = picture_stream(container) if picture else None
    audio = next(iter(container.streams.audio), None)
    if video is None and audio is None:
        raise BadClipError(key, "neither picture nor sound", "no video or audio stream")
    found: dict[str, Any] = {"duration_s": max(0, container.duration or 0) / av.time_base}
    if audio is not None and audio.codec_context is not None:
        found |= {
            "audio_codec": audio.codec_context.name,
            "audio_rate": audio.codec_context.sample_rate,
            "audio_channels": audio.codec_context.channels,
        }
    if video is not None:
        size = require_readable(video, key)
        rate = video.average_rate or video.guessed_rate
        found |= {
            "width": size[0],
            "height": size[1],
            "frames": video.frames,
            "fps": float(rate) if rate else None,
            "video_codec": video.codec_context.name,
        }
        video.codec_context.thread_count = 1
        first = next(iter(container.decode(video)), None)
        found["rotation"] = None if first is None else first.rotation
    return found


def _require_usable(found: Mapping[str, Any], key: str) -> None:
    """Refuse a file of which nothing can be decoded.

    Raises:
        BadClipError: there are frames, but none can be decoded, or neither frames nor sound.
    """
    if found.get("frames"):
        if found["rotation"] is None:
            raise BadClipError(key, "undecodable frames", "no frame can be decoded")
    elif found.get("audio_codec") is None:
        raise BadClipError(key, "neither picture nor sound", "no frames, no known audio codec")


def _count_packets(source: BinaryIO) -> int:
    """Packets of the picture, for containers whose header does not say: the file is read once."""
    source.seek(0)
    options = {"format_whitelist": FORMATS, "protocol_whitelist": ""}
    with av.open(source, metadata_errors="replace", container_options=options) as container:
        video = picture_stream(container)
        return sum(1 for packet in container.demux(video) if packet.size)


def _probe_images(sources: list[bytes | BinaryIO], key: str) -> dict[str, Any]:
    sizes: list[tuple[int, int]] = []
    upright: set[tuple[int, int]] = set()
    formats: list[str] = []
    turns: list[int] = []
    for source in sources:
        stream = io.BytesIO(source) if isinstance(source, bytes) else source
        try:
            with Image.open(stream) as image:
                image.load()
                sizes.append(image.size)
                formats.append("mjpeg" if image.format == "JPEG" else (image.format or "").lower())
                turns.append(ORIENTATION.get(image.getexif().get(EXIF_ORIENTATION, 1), 0))
                upright.add(image.size[:: -1 if abs(turns[-1]) == 90 else 1])
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise BadClipError(key, "undecodable image", str(error)) from None
    if len(upright) > 1:
        named = ", ".join(f"{width} x {height}" for width, height in sorted(upright))
        raise BadClipError(key, "images of several sizes", named)
    return {
        "width": sizes[0][0],
        "height": sizes[0][1],
        "frames": len(sizes),
        "video_codec": formats[0],
        "rotation": turns[0],
    }
