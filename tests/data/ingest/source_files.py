"""Small real media for tests of ingest."""

from __future__ import annotations

import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from vlmae.data.prepare.encode import REPEATABLE

RATE = 16_000


def video(
    number: int = 0,
    *,
    size: tuple[int, int] = (96, 64),
    times: list[float] | None = None,
    seconds: float = 1.0,
    fps: int = 8,
    sound: str | None = "mono",
    rate: int = RATE,
    rotation: int = 0,
    codec: str = "libx264",
    container: str = "mp4",
    shade: tuple[int, int, int] | None = None,
) -> bytes:
    """A video whose upper left quarter is bright; `number` makes it another one.

    Equal arguments give equal bytes: x264's macroblock tree, which reads memory nobody set, is off.
    """
    width, height = size
    times = [n / fps for n in range(round(seconds * fps))] if times is None else times
    rng = np.random.default_rng(number)
    picture = np.full((height, width, 3), shade or (40, 60, 90), np.uint8)
    picture[: height // 2, : width // 2] = shade or (230, 200, 170)
    buffer = io.BytesIO()
    with av.open(buffer, "w", format={"mkv": "matroska"}.get(container, container)) as target:
        same = REPEATABLE if codec == "libx264" else {}
        stream = target.add_stream(codec, rate=fps, options={"g": "250", "crf": "20", **same})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        heard = None
        if sound is not None:
            codec_of_sound = "libopus" if container == "webm" else "aac"
            heard = target.add_stream(codec_of_sound, rate=rate, layout=sound)
        for time in times:
            noisy = np.clip(picture + rng.integers(-8, 8, picture.shape), 0, 255)
            frame = av.VideoFrame.from_ndarray(noisy.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base = round(time * 1000), Fraction(1, 1000)
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))
        if heard is not None:
            channels = len(av.AudioLayout(str(sound)).channels)
            wave = tone(number, seconds, rate)[None].repeat(channels, 0)
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(wave), format="fltp", layout=str(sound)
            )
            frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
            resampler = av.AudioResampler(
                heard.format.name, sound, rate, frame_size=heard.frame_size or 0
            )
            for piece in (*resampler.resample(frame), *resampler.resample(None)):
                target.mux(heard.encode(piece))
            target.mux(heard.encode(None))
    return buffer.getvalue()


def tone(number: int, seconds: float, rate: int = RATE) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * (300 + 10 * number) * time)).astype(np.float32)


def wav(number: int = 0, seconds: float = 1.0) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, tone(number, seconds), RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


def image(size: tuple[int, int] = (40, 30), kind: str = "JPEG", orientation: int = 1) -> bytes:
    """A picture whose upper left quarter, as stored, is bright."""
    pixels = np.full((size[1], size[0], 3), 40, np.uint8)
    pixels[: size[1] // 2, : size[0] // 2] = 230
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind, exif=exif)
    return buffer.getvalue()


def write_folder(folder: Path, clips: int) -> list[str]:
    """Video clips with titles, some in sub-folders; returns their keys."""
    keys = []
    for number in range(clips):
        place = folder / ("" if number % 3 else "sub.one") / f"clip{number:03d}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.with_suffix(".mp4").write_bytes(video(number))
        if number % 2:
            place.with_suffix(".txt").write_text(f"Title {number} \u00e9\u4e2d\n", encoding="utf-8")
        else:
            place.with_suffix(".json").write_text(f'{{"title": "Title {number} \u00e9\u4e2d"}}')
        keys.append(place.relative_to(folder).as_posix().replace(".", "_"))
    return keys
