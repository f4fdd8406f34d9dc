"""Drawing and mixing: nothing is cut off, and the voice is as far over the background as asked."""

from __future__ import annotations

import numpy as np
import pytest

from vlmae.config import build
from vlmae.data.prepare import PrepareConfig
from vlmae.data.prepare.bank import RATE
from vlmae.data.prepare.render import PEAK, draw_frames, mix_sound


def config(**changes: float) -> PrepareConfig:
    return build("data", PrepareConfig, {"name": "mini", "bank": "avt_compose", **changes})


def decibel(wave: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(wave, dtype=np.float64))))


def spoken_part(wave: np.ndarray) -> np.ndarray:
    """The voice in a mix whose background is inaudible."""
    spoken = np.flatnonzero(np.abs(wave) > 1e-4)
    return wave[spoken[0] : spoken[-1] + 1]


@pytest.mark.parametrize("snr_db", [0.0, 10.0, 20.0])
def test_snr_is_the_one_asked_for(snr_db: float) -> None:
    rng = np.random.default_rng(0)
    voice = (3000 * rng.standard_normal(8000)).astype(np.int16)
    background = (500 * rng.standard_normal(5 * RATE)).astype(np.int16)
    mixed = mix_sound(voice, background, config(snr_db=snr_db), np.random.default_rng(1))
    alone = mix_sound(voice, background, config(snr_db=200.0), np.random.default_rng(1))
    level = decibel(spoken_part(alone)) - decibel(mixed - alone)
    assert level == pytest.approx(snr_db, abs=0.5)


def test_loudest_part_of_the_background_is_kept_and_stays_below_the_voice() -> None:
    rng = np.random.default_rng(0)
    voice = (3000 * rng.standard_normal(8000)).astype(np.int16)
    bark = np.zeros(5 * RATE, np.int16)
    bark[:4000] = (8000 * rng.standard_normal(4000)).astype(np.int16)
    for seed in range(5):
        alone = mix_sound(voice, bark, config(snr_db=200.0), np.random.default_rng(seed))
        under = mix_sound(voice, bark, config(), np.random.default_rng(seed)) - alone
        assert np.abs(under).max() > 0.02, "the bark is heard"
        windows = np.convolve(np.square(under, dtype=np.float64), np.ones(8000) / 8000, "valid")
        over = decibel(spoken_part(alone)) - 10 * np.log10(windows.max())
        assert over == pytest.approx(10.0, abs=0.5)


def test_loud_mixes_are_turned_down_and_short_backgrounds_repeated() -> None:
    click = np.zeros(8000, np.int16)
    click[100] = 32767
    mixed = mix_sound(click, np.full(100, 50, np.int16), config(), np.random.default_rng(0))
    assert mixed.shape == (4 * RATE,)
    assert mixed.dtype == np.float32
    assert np.abs(mixed).max() == pytest.approx(PEAK, abs=1e-3)


@pytest.mark.parametrize("shape", [(20, 20), (20, 3), (3, 20)])
def test_ink_of_any_shape_stays_whole_and_large(shape: tuple[int, int]) -> None:
    ink = np.zeros((28, 28), np.uint8)
    ink[4 : 4 + shape[0], 4 : 4 + shape[1]] = 255
    for seed in range(8):
        frames = draw_frames(ink, config(), np.random.default_rng(seed))
        assert frames.shape == (32, 192, 128)
        luma = frames[:, :128].astype(np.int32)
        paper = luma[:, 0, 0][:, None, None]
        inked = np.abs(luma - paper) > 45
        assert not inked[:, [0, -1]].any()
        assert not inked[:, :, [0, -1]].any()
        tall, wide = inked.any(axis=2).sum(axis=1), inked.any(axis=1).sum(axis=1)
        assert np.all(np.maximum(tall, wide) >= 70)
        assert np.ptp(inked.sum(axis=(1, 2))) < 0.15 * inked[0].sum(), "never cut off"
