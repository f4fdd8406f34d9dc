"""Imitations of the ten sounds of ESC-10 by noise, pulses and tones, for the generated bank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.signal import butter, lfilter

from vlmae.data.prepare.bank import RATE, SoundArray

SECONDS = 5.0
SAMPLES = int(RATE * SECONDS)
Wave = npt.NDArray[np.float64]
Imitation = Callable[[np.random.Generator], Wave]

_TIME = np.arange(SAMPLES) / RATE


def imitate(background: str, rng: np.random.Generator) -> SoundArray:
    """One sound of a class of `bank.BACKGROUNDS`, `(80000,)` int16: 5 s at 16 kHz, peak 0.7.

    Raises:
        KeyError: the class is unknown.
    """
    wave = IMITATIONS[background](rng)
    wave = wave + 0.003 * np.abs(wave).max() * rng.standard_normal(SAMPLES)
    return np.asarray(np.round(wave / np.abs(wave).max() * 0.7 * 32767), dtype=np.int16)


def _band(wave: Wave, low: float, high: float) -> Wave:
    numerator, denominator = butter(2, [low, high], btype="band", fs=RATE)
    return np.asarray(lfilter(numerator, denominator, wave))


def _noise(rng: np.random.Generator, low: float, high: float) -> Wave:
    return _band(rng.standard_normal(SAMPLES), low, high)


def _tone(frequency: Wave | float, harmonics: int, tilt: float) -> Wave:
    """A harmonic tone of a frequency that may vary, `harmonics` falling as `1 / h ** tilt`."""
    phase = 2 * np.pi * np.cumsum(np.broadcast_to(frequency, SAMPLES)) / RATE
    wave = np.zeros(SAMPLES)
    for harmonic in range(1, harmonics + 1):
        wave += np.sin(harmonic * phase) / harmonic**tilt
    return wave


def _slow(rng: np.random.Generator, rate_hz: float) -> Wave:
    """A smooth random curve in [-1, 1] that turns about `rate_hz` times a second."""
    knots = rng.uniform(-1.0, 1.0, int(SECONDS * rate_hz) + 3)
    return np.interp(_TIME * rate_hz, np.arange(len(knots)), knots)


def _bursts(rng: np.random.Generator, every: float, length: float) -> Wave:
    """An envelope of bursts about `every` seconds apart and `length` seconds long."""
    envelope = np.zeros(SAMPLES)
    start = rng.uniform(0.0, every / 2)
    while start < SECONDS:
        local = (_TIME - start) / (length * rng.uniform(0.7, 1.3))
        envelope += np.where((local > 0) & (local < 1), np.sin(np.pi * np.clip(local, 0, 1)), 0.0)
        start += every * rng.uniform(0.7, 1.3)
    return np.minimum(envelope, 1.0)


def _clicks(rng: np.random.Generator, times: Wave, decay: float) -> Wave:
    """Short noises of random strength at `times` seconds that fade within `decay` seconds."""
    wave = np.zeros(SAMPLES)
    length = int(6 * decay * RATE)
    shape = np.exp(-np.arange(length) / (decay * RATE))
    for time in times:
        start = int(time * RATE)
        stop = min(start + length, SAMPLES)
        strength = rng.uniform(0.3, 1.0)
        wave[start:stop] += strength * (shape * rng.standard_normal(length))[: stop - start]
    return wave


def _chainsaw(rng: np.random.Generator) -> Wave:
    throttle = 1.0 + 0.35 * _slow(rng, 0.8)
    motor = _tone(rng.uniform(85, 125) * throttle, 30, 0.6)
    return _band(motor * (0.7 + 0.3 * throttle) + 0.8 * rng.standard_normal(SAMPLES), 150, 6500)


def _clock_tick(rng: np.random.Generator) -> Wave:
    times = np.arange(rng.uniform(0, 0.4), SECONDS, rng.choice([0.25, 0.5, 1.0]))
    return _band(_clicks(rng, times, 0.004), 1500, 5000)


def _crackling_fire(rng: np.random.Generator) -> Wave:
    times = rng.uniform(0, SECONDS, rng.integers(60, 160))
    crackle = _band(_clicks(rng, times, 0.003), 1000, 7000)
    rumble = _noise(rng, 60, 500)
    mixed: Wave = crackle / crackle.std() + 0.25 * rumble / rumble.std()
    return mixed


def _crying_baby(rng: np.random.Generator) -> Wave:
    envelope = _bursts(rng, every=1.1, length=0.9)
    pitch = rng.uniform(380, 520) * (1.0 + 0.25 * envelope + 0.03 * np.sin(2 * np.pi * 6 * _TIME))
    return _band(_tone(pitch, 10, 0.5) * envelope, 300, 5000)


def _dog(rng: np.random.Generator) -> Wave:
    envelope = _bursts(rng, every=rng.uniform(0.7, 1.4), length=0.22)
    pitch = rng.uniform(250, 600) * (0.6 + 0.5 * envelope)
    throat = _tone(pitch, 8, 0.8)
    return envelope * (throat + 0.5 * _noise(rng, 400, 2500))


def _helicopter(rng: np.random.Generator) -> Wave:
    rotor = np.sin(2 * np.pi * rng.uniform(10, 16) * _TIME)
    beats: Wave = 0.3 + np.maximum(rotor, 0.0) ** 3
    return _noise(rng, 50, 700) * beats


def _rain(rng: np.random.Generator) -> Wave:
    drops = _clicks(rng, rng.uniform(0, SECONDS, 120), 0.002)
    return _noise(rng, 1500, 7500) + 0.3 * drops


def _rooster(rng: np.random.Generator) -> Wave:
    start = rng.uniform(0.2, 2.0)
    local = np.clip((_TIME - start) / rng.uniform(1.6, 2.2), 0.0, 1.0)
    contour = np.interp(local, [0, 0.15, 0.3, 0.6, 1.0], [0.7, 1.0, 0.9, 1.5, 0.8])
    envelope = np.interp(local, [0, 0.05, 0.2, 0.22, 0.3, 0.8, 1.0], [0, 0.7, 0.7, 0.1, 1, 1, 0])
    return _tone(rng.uniform(480, 640) * contour, 9, 0.6) * envelope


def _sea_waves(rng: np.random.Generator) -> Wave:
    swell = 0.5 + 0.5 * np.sin(2 * np.pi * (rng.uniform(0.15, 0.35) * _TIME + rng.random()))
    return _noise(rng, 80, 1800) * (0.15 + swell**2)


def _sneezing(rng: np.random.Generator) -> Wave:
    start = rng.uniform(0.6, 3.0)
    envelope = np.interp(
        _TIME - start, [-0.45, -0.2, -0.05, 0.0, 0.04, 0.35], [0.0, 0.15, 0.1, 0.1, 1.0, 0.0]
    )
    return envelope * _noise(rng, 700, 6500)


IMITATIONS: dict[str, Imitation] = {
    "chainsaw": _chainsaw,
    "clock_tick": _clock_tick,
    "crackling_fire": _crackling_fire,
    "crying_baby": _crying_baby,
    "dog": _dog,
    "helicopter": _helicopter,
    "rain": _rain,
    "rooster": _rooster,
    "sea_waves": _sea_waves,
    "sneezing": _sneezing,
}
