"""Makers of small media files of every kind that decoding promises to read.

Frame n of a film is a picture of grey level 10 n + 20 with a bright top left corner, so that a test
can read a frame's number and which way is up.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image

from vlmae.data.decode import Clip, DecodePolicy, decode_sample, why_torchcodec_fails

FAST = {
    "libx264": {"preset": "ultrafast"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=none"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    "mpeg4": {},
}
LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def require_encoder(name: str) -> None:
    """Skip the test where PyAV was built without an encoder, naming it."""
    try:
        av.codec.Codec(name, "w")
    except av.codec.codec.UnknownCodecError:
        pytest.skip(
            f"PyAV has no encoder {name}: install the av wheel from PyPI", allow_module_level=True
        )


def sine(seconds: float, rate: int, channels: int = 1, frequency: float = 440.0) -> np.ndarray:
    """(channels, samples) float32 at half amplitude."""
    time = np.arange(round(seconds * rate)) / rate
    wave = 0.5 * np.sin(2 * np.pi * frequency * time)
    return np.stack([wave] * channels).astype(np.float32)


def grey(number: int, width: int = 64, height: int = 64, corner: bool = False) -> np.ndarray:
    """(H, W, 3) uint8 picture of frame `number`."""
    picture = np.full((height, width, 3), 20 + 10 * (number % 20), np.uint8)
    if corner:
        picture[: height // 4, : width // 4] = 255
    return picture


def textures(count: int, width: int, height: int) -> list[np.ndarray]:
    """Smooth coloured pictures that move to the right, for comparing pixels."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 11, 3), np.uint8)
    moved = [Image.fromarray(np.roll(noise, number, 1)) for number in range(count)]
    return [np.asarray(image.resize((width, height))) for image in moved]


def shown(frames: np.ndarray) -> list[int]:
    """Numbers of grey frames, read from their level in the middle."""
    height, width = frames.shape[1:3]
    middle = frames[:, height // 2 - 4 : height // 2 + 4, width // 2 - 4 : width // 2 + 4]
    return [round((float(picture.mean()) - 20) / 10) for picture in middle]


def backends() -> list[Any]:
    """Both backends as test parameters; torchcodec is skipped where it does not load."""
    failure = why_torchcodec_fails()
    mark = pytest.mark.skipif(bool(failure), reason=f"torchcodec does not load: {failure}")
    return ["pyav", pytest.param("torchcodec", marks=mark)]


def decode(
    members: bytes | dict[str, bytes], frames: int = 2, backend: str = "pyav", **policy: Any
) -> Clip:
    """Decode at 16 kHz; bytes are an mp4."""
    found = {"mp4": members} if isinstance(members, bytes) else members
    chosen = DecodePolicy(frames, backend=backend, **policy)
    return decode_sample(found, key="k", policy=chosen, sample_rate=16_000)


def film(
    frames: int = 10,
    *,
    times: Sequence[int] | None = None,
    sound: np.ndarray | None = None,
    rate: int = 16_000,
    container_format: str = "mp4",
    codec: str = "libx264",
    audio_codec: str = "aac",
    width: int = 64,
    height: int = 64,
    fps: int = 10,
    gop: int | None = None,
    corner: bool = False,
    pictures: Sequence[np.ndarray] | None = None,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> bytes:
    """A media file; without frames it is sound alone, without `sound` it has no sound track."""
    buffer = io.BytesIO()
    with av.open(
        buffer, "w", format=container_format, container_options=container_options or {}
    ) as container:
        video = None
        if frames:
            require_encoder(codec)
            settings = {**FAST.get(codec, {}), **({"g": str(gop)} if gop else {})}
            video = container.add_stream(codec, rate=fps, options={**settings, **(options or {})})
            video.width, video.height, video.pix_fmt = width, height, "yuv420p"
            video.time_base = video.codec_context.time_base = Fraction(1, fps)
        audio = None
        if sound is not None:
            audio = container.add_stream(audio_codec, rate=rate, layout=LAYOUTS[len(sound)])
        if video is not None:
            for number, time in enumerate(times or range(frames)):
                picture = pictures[number] if pictures else grey(number, width, height, corner)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame.pts, frame.time_base = time, Fraction(1, fps)
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
        if audio is not None and sound is not None:
            container.mux(audio.encode(heard(sound, rate)))
            container.mux(audio.encode(None))
    return buffer.getvalue()


def heard(sound: np.ndarray, rate: int) -> av.AudioFrame:
    """A wave for an encoder. Packed: PyAV 18 miscounts the planes of eight channels."""
    packed = np.ascontiguousarray(sound.T.reshape(1, -1), np.float32)
    frame = av.AudioFrame.from_ndarray(packed, format="flt", layout=LAYOUTS[len(sound)])
    frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
    return frame


def wave_file(sound: np.ndarray, rate: int = 16_000, container_format: str = "wav") -> bytes:
    """A sound file: wav (16 bit) or flac."""
    codec = {"wav": "pcm_s16le", "flac": "flac"}[container_format]
    return film(0, sound=sound, rate=rate, container_format=container_format, audio_codec=codec)


def image_file(picture: np.ndarray, image_format: str = "JPEG", **options: Any) -> bytes:
    """An image file of an (H, W, 3) picture."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, image_format, **options)
    return buffer.getvalue()


def remuxed(
    media: bytes,
    *,
    container_format: str = "mp4",
    shift_seconds: float = 0.0,
    movflags: str = "",
) -> bytes:
    """The same packets in another container, moved back in time."""
    options = {"movflags": movflags} if movflags else {}
    # In a file: to move the index to the front, FFmpeg opens what it wrote a second time.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "media"
        with (
            av.open(io.BytesIO(media)) as source,
            av.open(path, "w", format=container_format, options=options) as target,
        ):
            streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
            for packet in source.demux():
                if packet.dts is not None and packet.pts is not None:
                    shift = round(shift_seconds / packet.time_base)
                    packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                    packet.stream = streams[packet.stream.index]
                    target.mux(packet)
        return path.read_bytes()


# The 3 x 3 display matrix of the track header: 16.16 fixed point, the last column 2.30.
TURNS = {
    0: (1, 0, 0, 1),
    90: (0, 1, -1, 0),
    180: (-1, 0, 0, -1),
    270: (0, -1, 1, 0),
}


def rotated(media: bytes, degrees: int) -> bytes:
    """An mp4 whose header asks players to turn its picture clockwise, as telephones write it."""
    a, b, c, d = TURNS[degrees]
    start = media.index(b"vide", media.index(b"moov"))  # handler of the first video track
    header = media.rindex(b"tkhd", 0, start)
    matrix = header + 4 + 4 + 20 + 8 + 8  # version and flags, times and id, reserved, layer, volume
    values = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    content = b"".join(value.to_bytes(4, "big", signed=True) for value in values)
    assert media[matrix : matrix + 4] == (1 << 16).to_bytes(4, "big")
    return media[:matrix] + content + media[matrix + len(content) :]
