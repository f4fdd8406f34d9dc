"""Pictures of a clip: its frames on one sheet, its sound as a waveform and as a mel spectrogram."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from torchaudio.transforms import MelSpectrogram

from vlmae.data.decode.clip import Frames
from vlmae.handoff.voice import SAMPLE_RATE, Wave

COLUMNS = 4
CELL = 240  # pixels, the longer side of a frame on the sheet
GAP = 4
SHEET_QUALITY = 85
WIDTH, HEIGHT = 800, 160
BANDS = 80
RANGE_DB = 80.0
PAPER, INK = (255, 255, 255), (40, 80, 160)
NO_SOUND, NO_PICTURE = "no sound", "no picture"


def contact_sheet(frames: Frames) -> bytes:
    """A JPEG of all frames, row by row; says so where there is no picture.

    Args:
        frames: (F, H, W, 3) uint8 RGB.
    """
    if not len(frames):
        return _jpeg(_notice(NO_PICTURE, CELL))
    height, width = frames.shape[1:3]
    scale = CELL / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    columns = min(COLUMNS, len(frames))
    rows = -(-len(frames) // columns)
    sheet = Image.new("RGB", (columns * (size[0] + GAP) - GAP, rows * (size[1] + GAP) - GAP), PAPER)
    for number, frame in enumerate(frames):
        row, column = divmod(number, columns)
        small = Image.fromarray(frame).resize(size, Image.Resampling.LANCZOS)
        sheet.paste(small, (column * (size[0] + GAP), row * (size[1] + GAP)))
    return _jpeg(sheet)


def waveform(wave: Wave) -> bytes:
    """A PNG of least and most of the sound over time, full scale at the borders.

    Args:
        wave: (S,) float32 in [-1, 1]; (0,) for none.
    """
    if not len(wave):
        return _png(_notice(NO_SOUND, WIDTH))
    picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(picture)
    borders = np.linspace(0, len(wave), WIDTH + 1).astype(np.int64)
    for column in range(WIDTH):
        piece = wave[borders[column] : max(borders[column] + 1, borders[column + 1])]
        top, bottom = (
            round((1 - float(value)) / 2 * (HEIGHT - 1)) for value in (piece.max(), piece.min())
        )
        draw.line([(column, top), (column, bottom)], fill=INK)
    return _png(picture)


def mel(wave: Wave) -> bytes:
    """A PNG of the mel spectrogram: time to the right, low to high, 80 dB from dark to bright.

    Args:
        wave: (S,) float32 at 16 kHz; (0,) for none.
    """
    if not len(wave):
        return _png(_notice(NO_SOUND, WIDTH))
    power = _mel()(torch.from_numpy(np.ascontiguousarray(wave)))
    decibel = 10.0 * torch.log10(torch.clamp(power, min=1e-10)).numpy()
    shown = np.clip((decibel - decibel.max()) / RANGE_DB + 1.0, 0.0, 1.0)[::-1]
    steps = np.asarray(np.round(shown * 255), dtype=np.uint8)
    coloured = Image.fromarray(_colours()[steps])
    return _png(coloured.resize((WIDTH, HEIGHT), Image.Resampling.BILINEAR))


@lru_cache(maxsize=1)
def _mel() -> MelSpectrogram:
    return MelSpectrogram(SAMPLE_RATE, n_fft=512, hop_length=160, n_mels=BANDS)


@lru_cache(maxsize=1)
def _colours() -> npt.NDArray[np.uint8]:
    """(256, 3) uint8, dark to bright."""
    from matplotlib import colormaps

    table = np.asarray(colormaps["magma"](np.arange(256)), dtype=np.float64)[:, :3]
    return np.asarray(np.round(table * 255), dtype=np.uint8)


def _notice(text: str, width: int) -> Image.Image:
    picture = Image.new("RGB", (width, HEIGHT), PAPER)
    ImageDraw.Draw(picture).text((GAP, GAP), text, fill=INK)
    return picture


def _jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=SHEET_QUALITY)
    return buffer.getvalue()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()
