"""Media of one clip: the digit in motion as YUV frames, the spoken digit over a background."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from vlmae.data.prepare.bank import RATE, InkArray, SoundArray
from vlmae.data.prepare.config import PrepareConfig

FrameArray = npt.NDArray[np.uint8]
Wave = npt.NDArray[np.float32]

SPEECH_LEVEL = 0.1  # RMS of the spoken digit, full scale 1, before a jitter of 3 dB
PEAK = 0.95  # louder mixes are turned down as a whole, which keeps their SNR
WINDOW_S = 0.5  # the background's level is that of its loudest half second
SIZE_JITTER = 0.08
MAX_TURN = 0.14  # radians either way while the digit moves
INK_FLOOR = 40  # paler ink does not count when the digit's extent is measured
MARGIN = 2.0  # pixels between digit and border at its closest


@dataclass(frozen=True)
class Colours:
    """Luma and two chromas, limited range, of the ink and of the background's two ends."""

    ink: tuple[float, float, float]
    start: tuple[float, float, float]
    end: tuple[float, float, float]


def draw_colours(rng: np.random.Generator) -> Colours:
    """Colours at least 90 steps of luma apart, dark on light or light on dark."""
    bright, dark = rng.uniform(165, 230), rng.uniform(25, 70)
    ink, paper = (bright, dark) if rng.random() < 0.5 else (dark, bright)

    def chroma() -> tuple[float, float]:
        blue, red = rng.uniform(-30, 30, size=2)
        return 128 + float(blue), 128 + float(red)

    tint = chroma()
    end = paper + rng.uniform(-12, 12)
    return Colours((ink, *chroma()), (paper, *tint), (float(np.clip(end, 25, 230)), *tint))


def draw_frames(ink: InkArray, config: PrepareConfig, rng: np.random.Generator) -> FrameArray:
    """The digit drifting and swaying over a plain gradient, always fully inside the frame.

    Args:
        ink: (S, S) uint8, 0 where there is no ink.
        config: frame size, digit size, frames.
        rng: decides size, colours and path.

    Returns:
        (frames, size * 3 / 2, size) uint8, planar YUV 4:2:0 as FFmpeg's yuv420p.
    """
    size = config.frame_size
    colours = draw_colours(rng)
    rows, columns = (
        np.flatnonzero((ink > INK_FLOOR).any(1)),
        np.flatnonzero((ink > INK_FLOOR).any(0)),
    )
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    side = config.digit_size * rng.uniform(1 - SIZE_JITTER, 1 + SIZE_JITTER)
    scale = side / max(bottom - top, right - left)
    height, width = round(scale * (bottom - top)), round(scale * (right - left))
    centres, turns = _draw_path(width, height, config, rng)
    paper = _draw_paper(colours, size, rng)
    # Enlarged once and well, then moved by the cheap filter: half the time of enlarging each frame.
    # A source pixel of margin keeps the pale edge of the strokes.
    box = np.pad(ink, 1)[top : bottom + 2, left : right + 2]
    large = Image.fromarray(box).resize(
        (round(width + 2 * scale), round(height + 2 * scale)), Image.Resampling.BICUBIC
    )
    source = Image.fromarray(np.pad(np.asarray(large), 1))
    middle = (source.width / 2, source.height / 2)
    contrast = np.float32(colours.ink[0]) - paper
    chroma = np.array(colours.start[1:], dtype=np.float32)[:, None, None]
    chroma_contrast = np.array(colours.ink[1:], dtype=np.float32)[:, None, None] - chroma
    frames = np.empty((config.frames, size * 3 // 2, size), dtype=np.uint8)
    for number, (x, y, turn) in enumerate(zip(*centres, turns, strict=True)):
        cos, sin = np.cos(turn), np.sin(turn)
        inverse = (
            (cos, sin, middle[0] - cos * x - sin * y),
            (-sin, cos, middle[1] + sin * x - cos * y),
        )
        moved = source.transform(
            (size, size),
            Image.Transform.AFFINE,
            data=(*inverse[0], *inverse[1]),
            resample=Image.Resampling.BILINEAR,
        )
        cover = np.asarray(moved, dtype=np.float32) / 255
        half = (cover[::2, ::2] + cover[1::2, ::2] + cover[::2, 1::2] + cover[1::2, 1::2]) / 4
        # Colours stay clear of 16 and 240 with grain and all, so rounding needs no clipping.
        frames[number, :size] = paper + contrast * cover + np.float32(0.5)
        planes = chroma + chroma_contrast * half + np.float32(0.5)
        frames[number, size:] = planes.reshape(size // 2, size)
    return frames


def _draw_path(
    width: int, height: int, config: PrepareConfig, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Centres (2, frames) as x, y in pixels and turns (frames,) in radians of a smooth motion.

    A box of `width` and `height` moved along it stays inside the frame by `MARGIN`.
    """
    cos, sin = np.cos(MAX_TURN), np.sin(MAX_TURN)
    extent = np.array([width * cos + height * sin, height * cos + width * sin])
    room = np.maximum((config.frame_size - extent) / 2 - MARGIN, 0.0)
    time = np.arange(config.frames) / config.fps
    cycles, phases = rng.uniform(0.12, 0.4, size=3), rng.uniform(0, 2 * np.pi, size=3)
    swing = np.sin(2 * np.pi * cycles[:, None] * time + phases[:, None])
    reach = rng.uniform(0.5, 1.0, size=2) * room
    centres = config.frame_size / 2 + reach[:, None] * swing[:2]
    return centres, MAX_TURN * rng.uniform(0.3, 1.0) * swing[2]


def _draw_paper(colours: Colours, size: int, rng: np.random.Generator) -> Wave:
    """Luma of the background, (size, size) float32: a slight gradient with still grain."""
    across = np.linspace(-0.5, 0.5, size)
    direction = rng.uniform(0, 2 * np.pi)
    ramp = 0.5 + (np.cos(direction) * across[None, :] + np.sin(direction) * across[:, None]) / 1.5
    plain = colours.start[0] + (colours.end[0] - colours.start[0]) * ramp
    grain = rng.normal(0.0, 1.5, size=(size, size))
    return np.asarray(plain + grain, dtype=np.float32)


def mix_sound(
    voice: SoundArray, background: SoundArray, config: PrepareConfig, rng: np.random.Generator
) -> Wave:
    """The spoken digit at a random time over a stretch of background with its loudest part.

    Args:
        voice: (samples,) int16 at 16 kHz, not longer than a clip.
        background: (samples,) int16 at 16 kHz; repeated where shorter than a clip.
        config: clip length and SNR.
        rng: decides level and places.

    Returns:
        (samples,) float32 at 16 kHz in [-0.95, 0.95].
    """
    length = round(config.clip_seconds * RATE)
    speech = voice.astype(np.float64) / 32768.0
    speech *= SPEECH_LEVEL * 10 ** (rng.uniform(-3, 3) / 20) / max(_rms(speech), 1e-6)
    under, level = _stretch(background.astype(np.float64) / 32768.0, length, rng)
    gain = _rms(speech) / 10 ** (config.snr_db / 20) / level if level > 1e-6 else 0.0
    mixed = gain * under
    start = int(rng.integers(length - len(speech) + 1))
    mixed[start : start + len(speech)] += speech
    return np.asarray(mixed * min(1.0, PEAK / max(np.abs(mixed).max(), 1e-6)), dtype=np.float32)


def _stretch(
    sound: npt.NDArray[np.float64], length: int, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], float]:
    """A stretch of `length` samples that holds the loudest window, and that window's RMS."""
    if len(sound) < length:
        sound = np.resize(sound, length)
    window = min(round(WINDOW_S * RATE), len(sound))
    energy = np.concatenate([[0.0], np.cumsum(sound**2)])
    windows = energy[window:] - energy[:-window]
    loudest = int(np.argmax(windows))
    first = max(0, loudest + window - length)
    last = min(loudest, len(sound) - length)
    start = int(rng.integers(first, max(first, last) + 1))
    return sound[start : start + length].copy(), float(np.sqrt(max(windows[loudest], 0.0) / window))


def _rms(wave: npt.NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(wave**2)))
