"""Spoken digits from espeak-ng, for the generated bank.

espeak-ng is GPL-3.0: a tool at data-making time, reached through ctypes in the package
`espeakng-loader`, loaded here and nowhere else, and only when a generated bank is made.

Its output depends on a random state seeded with the time and on what it said before. So all digits
are spoken in one order by a fresh process, its state seeded before every word: same bytes always.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np

from lsb.workers import worker_pool
from vlmae.data.prepare.bank import SoundArray, hash_share, resample

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
TAKES = 20  # of each digit by each speaker

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: samples go to the callback, the call blocks
_SPEED, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_UTF8 = 1


@dataclass(frozen=True)
class Speaker:
    """A voice of espeak-ng with its usual speed (words a minute) and pitch (0-99)."""

    name: str
    voice: str
    speed: int
    pitch: int


SPEAKERS = (
    Speaker("ada", "en-us+f2", 150, 60),
    Speaker("bruno", "en-us+m3", 140, 35),
    Speaker("carla", "en+f4", 165, 55),
    Speaker("dmitri", "en-gb-scotland+m7", 130, 30),
    Speaker("edith", "en-gb-x-rp+grandma", 130, 45),
    Speaker("felix", "en-us+michael", 170, 50),
    Speaker("greta", "en-gb-x-gbclan+f1", 145, 65),
    Speaker("hugo", "en-029+m1", 155, 45),
)


@dataclass(frozen=True)
class Utterance:
    """One take of a digit, `sound` `(samples,)` int16 at 16 kHz, silence at both ends cut off."""

    speaker: str
    digit: int
    take: int
    sound: SoundArray


def speak_all(takes: int = TAKES) -> list[Utterance]:
    """Every digit by every speaker, `takes` times, in a process of its own.

    Raises:
        ValueError: the package espeakng-loader is not installed, or lacks a voice.
    """
    with worker_pool(1) as pool:
        return pool.submit(_speak_all, takes).result()


def _speak_all(takes: int) -> list[Utterance]:
    engine = _Engine()
    utterances: list[Utterance] = []
    for speaker in SPEAKERS:
        for take in range(takes):
            for digit, word in enumerate(DIGITS):
                seed = f"{speaker.name}/{digit}/{take}"
                speed = speaker.speed * (0.8 + 0.4 * hash_share(f"speed/{seed}"))
                pitch = speaker.pitch + 24 * (hash_share(f"pitch/{seed}") - 0.5)
                spread = 30 + 60 * hash_share(f"range/{seed}")
                sound = engine.say(
                    word, speaker.voice, round(speed), round(pitch), round(spread), len(utterances)
                )
                utterances.append(Utterance(speaker.name, digit, take, sound))
    return utterances


class _Engine:
    """The espeak-ng library of this process."""

    def __init__(self) -> None:
        try:
            import espeakng_loader
        except ImportError as error:
            raise ValueError(
                "data=generated needs the package espeakng-loader: pip install espeakng-loader, or "
                "use data=avt_compose"
            ) from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        path = str(espeakng_loader.get_data_path()).encode()
        self._rate = int(self._library.espeak_Initialize(_SYNCHRONOUS, 0, path, 0))
        if self._rate <= 0:
            raise ValueError("espeak-ng did not start: reinstall espeakng-loader")
        self._chunks: list[SoundArray] = []
        signature = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p
        )
        self._callback = signature(self._receive)  # kept: ctypes frees it with its last reference
        self._library.espeak_SetSynthCallback(self._callback)
        self._seed(0)

    def _seed(self, seed: int) -> None:
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))

    def _receive(self, samples: Any, count: int, events: Any) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def say(
        self, word: str, voice: str, speed: int, pitch: int, spread: int, seed: int
    ) -> SoundArray:
        """One word, `(samples,)` int16 at 16 kHz."""
        self._seed(seed)
        if self._library.espeak_SetVoiceByName(voice.encode()) != 0:
            raise ValueError(f"espeak-ng has no voice {voice!r}: reinstall espeakng-loader")
        for parameter, value in ((_SPEED, speed), (_PITCH, pitch), (_RANGE, spread)):
            self._library.espeak_SetParameter(parameter, value, 0)
        self._chunks.clear()
        text = word.encode()
        self._library.espeak_Synth(text, len(text) + 1, 0, 1, 0, _UTF8, None, None)
        self._library.espeak_Synchronize()
        sound = np.concatenate(self._chunks)
        loud = np.flatnonzero(np.abs(sound.astype(np.int32)) > 200)
        return resample(sound[loud[0] : loud[-1] + 1] / 32768.0, self._rate)
