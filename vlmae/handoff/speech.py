"""Where somebody speaks: Silero VAD, whose weights are in its wheel (MIT)."""

from __future__ import annotations

import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vlmae.handoff.voice import SAMPLE_RATE, Wave

SHORTEST_SPEECH_MS = 100
SHORTEST_SILENCE_MS = 100


def speech_mask(wave: Wave, *, threshold: float, padding: float) -> npt.NDArray[np.bool_]:
    """Which samples are speech.

    Args:
        wave: (S,) float32 at `SAMPLE_RATE`.
        threshold: probability in (0, 1) from which a window of 32 ms is speech.
        padding: seconds added before and behind every stretch.

    Raises:
        ValueError: Silero VAD is not installed.
    """
    mask = np.zeros(len(wave), dtype=np.bool_)
    if len(wave) == 0:
        return mask
    model, find = _detector()
    threads = torch.get_num_threads()
    # Its operations are far too small to share, and threads that wait for each other take minutes.
    torch.set_num_threads(1)
    try:
        model.reset_states()
        stretches = find(
            torch.from_numpy(np.ascontiguousarray(wave, dtype=np.float32)),
            model,
            sampling_rate=SAMPLE_RATE,
            threshold=threshold,
            min_speech_duration_ms=SHORTEST_SPEECH_MS,
            min_silence_duration_ms=SHORTEST_SILENCE_MS,
            speech_pad_ms=0,
        )
    finally:
        torch.set_num_threads(threads)
    more = round(padding * SAMPLE_RATE)
    for stretch in stretches:
        mask[max(0, int(stretch["start"]) - more) : int(stretch["end"]) + more] = True
    return mask


@lru_cache(maxsize=1)
def _detector() -> tuple[Any, Any]:
    threads = torch.get_num_threads()
    try:
        from silero_vad import get_speech_timestamps, load_silero_vad
    except ImportError as error:
        raise ValueError(
            f"anonymise.method=remove needs the wheel silero-vad ({error}): pip install --no-deps "
            "-r requirements/encoders.txt"
        ) from error
    with warnings.catch_warnings():
        # It calls what torch and importlib announce to remove.
        warnings.simplefilter("ignore", DeprecationWarning)
        model = load_silero_vad()
    torch.set_num_threads(threads)  # importing it sets them to one for the whole process
    return model, get_speech_timestamps
