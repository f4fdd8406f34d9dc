"""Another voice: pitch and formants moved together, then formants bent apart from the pitch.

Moving both is a change of speed, undone in time by FFmpeg's `atempo` (overlap-add by waveform
similarity). Bending is McAdams' coefficient: each complex pole of a linear prediction turns from
angle phi to phi ** alpha, which moves formants and leaves the source as it is. Source: Patino et
al., Speaker anonymisation using the McAdams coefficient, Interspeech 2021 (frames of 20 ms, half
of them shared, order 20 at 16 kHz).
"""

from __future__ import annotations

from fractions import Fraction

import av
import av.filter
import numpy as np
import numpy.typing as npt
from scipy.linalg import solve_toeplitz

SAMPLE_RATE = 16_000
FRAME = SAMPLE_RATE // 50
ORDER = 20
SEMITONES_PER_OCTAVE = 12
LARGEST_SHIFT = 12.0
Wave = npt.NDArray[np.float32]


def shift_pitch(wave: Wave, semitones: float) -> Wave:
    """Pitch and formants moved by a number of semitones; as long as before.

    Args:
        wave: (S,) float32 at `SAMPLE_RATE`.
        semitones: within an octave either way, up if positive.
    """
    factor = 2.0 ** (semitones / SEMITONES_PER_OCTAVE)
    rate = round(SAMPLE_RATE * factor)
    if len(wave) == 0 or rate == SAMPLE_RATE:
        return wave.copy()
    graph = av.filter.Graph()
    graph.threads = 1
    source = graph.add_abuffer(
        sample_rate=SAMPLE_RATE, format="fltp", layout="mono", time_base=Fraction(1, SAMPLE_RATE)
    )
    steps = [
        source,
        graph.add("asetrate", str(rate)),
        graph.add("aresample", str(SAMPLE_RATE)),
        graph.add("atempo", repr(SAMPLE_RATE / rate)),
        graph.add("aformat", f"sample_fmts=fltp:sample_rates={SAMPLE_RATE}:channel_layouts=mono"),
        graph.add("abuffersink"),
    ]
    graph.link_nodes(*steps).configure()
    # What follows the end lets the filters give back all that they hold.
    padded = np.concatenate([wave, np.zeros(SAMPLE_RATE // 4, np.float32)])
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(padded[None]), "fltp", "mono")
    frame.sample_rate, frame.pts, frame.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
    graph.push(frame)
    graph.push(None)
    pieces: list[Wave] = []
    while True:
        try:
            pieces.append(graph.pull().to_ndarray()[0])
        except (av.error.EOFError, av.error.BlockingIOError):
            break
    moved = np.concatenate(pieces) if pieces else np.zeros(0, np.float32)
    moved = np.pad(moved, (0, max(0, len(wave) - len(moved))))[: len(wave)]
    return np.ascontiguousarray(moved, dtype=np.float32)


def bend_formants(wave: Wave, alpha: float) -> Wave:
    """Formants moved by McAdams' coefficient; as long and as loud as before.

    Args:
        wave: (S,) float32 at `SAMPLE_RATE`.
        alpha: exponent of the angles of poles; 1 changes nothing, 0.8 is usual.
    """
    if len(wave) == 0 or alpha == 1.0:
        return wave.copy()
    hop = FRAME // 2
    window = np.sqrt(np.hanning(FRAME + 1)[:-1])
    padded = np.pad(wave.astype(np.float64), (FRAME, 2 * FRAME))
    bent = np.zeros_like(padded)
    for start in range(0, len(padded) - FRAME, hop):
        frame = padded[start : start + FRAME] * window
        bent[start : start + FRAME] += _bend(frame, alpha) * window
    bent = bent[FRAME : FRAME + len(wave)]
    loudness = np.sqrt(np.mean(np.square(wave, dtype=np.float64)))
    now = np.sqrt(np.mean(np.square(bent)))
    bent *= loudness / now if now > 0 else 1.0
    return np.asarray(np.clip(bent, -1.0, 1.0), dtype=np.float32)


def _bend(frame: npt.NDArray[np.float64], alpha: float) -> npt.NDArray[np.float64]:
    """One frame with its poles turned."""
    from scipy.signal import lfilter  # slow to import, for every command that could hand clips off

    energy = float(np.dot(frame, frame))
    if energy < 1e-10:
        return frame
    lags = np.correlate(frame, frame, "full")[FRAME - 1 : FRAME + ORDER]
    lags[0] *= 1 + 1e-6  # keeps the equations solvable where a frame is nearly periodic
    prediction = np.concatenate([[1.0], -solve_toeplitz(lags[:-1], lags[1:])])
    residual = lfilter(prediction, [1.0], frame)
    poles = np.roots(prediction)
    radius, angle = np.abs(poles), np.angle(poles)
    complex_ones = np.abs(poles.imag) > 1e-9
    turned = np.where(complex_ones, np.sign(angle) * np.abs(angle) ** alpha, angle)
    turned = np.clip(turned, -np.pi, np.pi)
    # A pole on the circle would ring on for ever.
    bent = np.poly(np.minimum(radius, 0.995) * np.exp(1j * turned)).real
    voiced = lfilter([1.0], bent, residual)
    loudness = np.sqrt(energy / max(float(np.dot(voiced, voiced)), 1e-20))
    return np.asarray(voiced * loudness, dtype=np.float64)
