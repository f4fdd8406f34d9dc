"""Sound that leaves without the speaker: another voice, or no speech at all.

What is done to a clip depends on (secret, seed, clip) alone, see `vlmae.handoff.secret`, and is
kept in a table that stays, so that it can be told later. It cannot be computed by those who have
the clip, its id and the config; a shift may still be guessed by ear (docs/annotation.md).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np

from lsb.acquisition.random import uniform
from lsb.ids import from_bytes
from vlmae.handoff.speech import speech_mask
from vlmae.handoff.voice import LARGEST_SHIFT, SAMPLE_RATE, Wave, bend_formants, shift_pitch

Method = Literal["none", "shift", "remove"]
FADE_SECONDS = 0.01


@dataclass(frozen=True)
class AnonymiseConfig:
    """What happens to the sound of a clip before people hear it.

    Attributes:
        method: `none`; `shift` moves pitch and formants of all the sound; `remove` silences speech
            where a voice-activity detector hears it and leaves the rest.
        semitones: least and most of the pitch's move; size and direction are drawn for each clip.
        formants: range of McAdams' coefficient, drawn for each clip; [1, 1] leaves formants to the
            pitch's move.
        threshold: of `remove`: probability from which a window is speech. Low: rather too much is
            removed than too little.
        padding: of `remove`: seconds before and behind every stretch of speech.
        seed: of what is drawn, together with a secret.
    """

    method: Method = "none"
    semitones: tuple[float, float] = (2.0, 4.0)
    formants: tuple[float, float] = (0.75, 0.9)
    threshold: float = 0.3
    padding: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(
                f"anonymise.method is {self.method!r}: use {', '.join(get_args(Method))}"
            )
        low, high = self.semitones
        if not 0 < low <= high <= LARGEST_SHIFT:
            raise ValueError(
                f"anonymise.semitones is {list(self.semitones)}: give least and most, above 0 and "
                f"up to {LARGEST_SHIFT:g}"
            )
        low, high = self.formants
        if not 0.5 <= low <= high <= 1.0:
            raise ValueError(
                f"anonymise.formants is {list(self.formants)}: give a range in [0.5, 1]"
            )
        if not 0 < self.threshold < 1 or not 0 <= self.padding < float("inf"):
            raise ValueError(
                f"anonymise.threshold is {self.threshold}, padding {self.padding}: give a "
                "probability in (0, 1) and seconds of 0 or more"
            )


@dataclass(frozen=True)
class Anonymised:
    """A clip's sound after it.

    Attributes:
        wave: (S,) float32 at 16 kHz, as long as before.
        method: as in the config.
        parameters: with which; empty for `none`.
        seconds: of the sound that were changed.
    """

    wave: Wave
    method: str
    parameters: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0


def anonymise(
    clip: bytes, wave: Wave, config: AnonymiseConfig, secret: bytes | None = None
) -> Anonymised:
    """Anonymise the sound of one clip.

    Args:
        clip: id of the clip, 16 bytes.
        wave: (S,) float32 at 16 kHz; (0,) for none.
        config: what to do.
        secret: see `vlmae.handoff.secret.read_secret`; `shift` alone needs one.

    Raises:
        ValueError: `shift` without a secret.
    """
    if config.method == "none" or len(wave) == 0:
        return Anonymised(wave, config.method)
    if config.method == "shift":
        if not secret:
            raise ValueError(
                "anonymise.method=shift without a secret: anybody with the clip's id could compute "
                "the shift; give that of `read_secret`"
            )
        semitones, alpha = _drawn(clip, config, secret)
        moved = bend_formants(shift_pitch(wave, semitones), alpha)
        parameters = {"semitones": semitones, "formants": alpha}
        return Anonymised(moved, "shift", parameters, len(wave) / SAMPLE_RATE)
    mask = speech_mask(wave, threshold=config.threshold, padding=config.padding)
    parameters = {"threshold": config.threshold, "padding": config.padding}
    return Anonymised(
        wave * _gain(mask), "remove", parameters, float(np.count_nonzero(mask)) / SAMPLE_RATE
    )


def _drawn(clip: bytes, config: AnonymiseConfig, secret: bytes) -> tuple[float, float]:
    """Semitones with their sign, and McAdams' coefficient, of a clip."""
    ids, key = from_bytes([clip]), secret.hex()
    sign, size, bend = (
        float(uniform(ids, "anonymise", key, config.seed, name)[0])
        for name in ("sign", "size", "bend")
    )
    semitones = config.semitones[0] + (config.semitones[1] - config.semitones[0]) * size
    alpha = config.formants[0] + (config.formants[1] - config.formants[0]) * bend
    return round(-semitones if sign < 0.5 else semitones, 3), round(alpha, 4)


def _gain(mask: Any) -> Wave:
    """0 in speech, 1 elsewhere, faded outside of it so that nothing clicks and nothing is heard."""
    fade = round(FADE_SECONDS * SAMPLE_RATE)
    ramp = np.arange(1, fade + 1) / (fade + 1)
    gain = np.where(mask, 0.0, 1.0)
    edges = np.diff(mask.astype(np.int8))
    for end in np.flatnonzero(edges == 1) + 1:  # speech begins here
        piece = gain[max(0, end - fade) : end]
        piece[:] = np.minimum(piece, ramp[::-1][fade - len(piece) :])
    for start in np.flatnonzero(edges == -1) + 1:  # it has ended
        piece = gain[start : start + fade]
        piece[:] = np.minimum(piece, ramp[: len(piece)])
    return gain.astype(np.float32)
