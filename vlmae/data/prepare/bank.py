"""A bank of recordings: the pictures, voices, backgrounds and titles that clips are composed from.

Both sources of recordings (`generated`, `avt_compose`) fill the same layout, one stage directory:

    pictures.npy      (N, S, S) uint8, ink 0-255       pictures.parquet     recording group digit
    voices.npy        (samples,) int16, 16 kHz mono    voices.parquet       recording group digit
                                                                            speaker start samples
    backgrounds.npy   (samples,) int16, 16 kHz mono    backgrounds.parquet  recording group
                                                                            background start samples
                                                       titles.parquet       recording group title
                                                                            clickbait
    {kind}.licence.md

A recording belongs to exactly one source group, so no medium of a test clip was heard, seen or read
in training. Arrays are memory mapped: worker processes share the pages.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from scipy.signal import resample_poly

from lsb.artifact import Part
from vlmae.data.prepare.config import PrepareConfig

RATE = 16_000
SPLIT_GROUP = {"first": "train", "pool": "train", "gold": "gold", "test": "test"}
BACKGROUNDS = (
    "chainsaw",
    "clock_tick",
    "crackling_fire",
    "crying_baby",
    "dog",
    "helicopter",
    "rain",
    "rooster",
    "sea_waves",
    "sneezing",
)
UNSAFE = ("chainsaw", "crackling_fire", "crying_baby")
SAFE = tuple(name for name in BACKGROUNDS if name not in UNSAFE)
KINDS = ("pictures", "voices", "backgrounds", "titles")

InkArray = npt.NDArray[np.uint8]
SoundArray = npt.NDArray[np.int16]
Rows = npt.NDArray[np.int64]


class Sources(Protocol):
    """Somewhere recordings come from: what identifies them, and how to fill a bank."""

    def identity(self) -> Mapping[str, Any]:
        """What determines the bank's bytes, JSON-like."""

    def parts(self) -> Sequence[Part]:
        """One part for each kind of recording."""


@dataclass(frozen=True)
class Picture:
    """A handwritten or drawn digit, `ink` `(S, S)` uint8, 0 where there is none."""

    recording: str
    group: str
    digit: int
    ink: InkArray


@dataclass(frozen=True)
class Voice:
    """A spoken digit, `sound` `(samples,)` int16 at 16 kHz."""

    recording: str
    group: str
    digit: int
    speaker: str
    sound: SoundArray


@dataclass(frozen=True)
class Background:
    """An environmental sound of one of `BACKGROUNDS`, `sound` `(samples,)` int16 at 16 kHz."""

    recording: str
    group: str
    background: str
    sound: SoundArray


@dataclass(frozen=True)
class Title:
    """A headline."""

    recording: str
    group: str
    title: str
    clickbait: bool


def part_files(kind: str) -> tuple[str, ...]:
    """Files of the part that holds one kind of recording."""
    table = (f"{kind}.parquet", f"{kind}.licence.md")
    return table if kind == "titles" else (f"{kind}.npy", *table)


def hash_share(text: str) -> float:
    """A number in [0, 1) that depends on `text` alone: how recordings are dealt to groups."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def resample(sound: npt.NDArray[Any], rate: int) -> SoundArray:
    """Bring a mono sound, `(samples,)` float in [-1, 1], to int16 at 16 kHz."""
    divisor = int(np.gcd(RATE, rate))
    moved = resample_poly(np.asarray(sound, dtype=np.float64), RATE // divisor, rate // divisor)
    return np.asarray(np.round(np.clip(moved, -1.0, 1.0) * 32767), dtype=np.int16)


def write_pictures(folder: Path, items: Iterable[Picture]) -> dict[str, int]:
    """Write pictures in order of recording; returns the counts of the part."""
    pictures = sorted(items, key=lambda item: item.recording)
    np.save(folder / "pictures.npy", np.stack([item.ink for item in pictures]))
    _write_table(folder / "pictures.parquet", pictures, ("recording", "group", "digit"), {})
    return {"pictures": len(pictures)}


def write_voices(folder: Path, items: Iterable[Voice]) -> dict[str, int]:
    """Write spoken digits in order of recording; returns the counts of the part."""
    voices = sorted(items, key=lambda item: item.recording)
    ranges = _write_sounds(folder / "voices.npy", [item.sound for item in voices])
    columns = ("recording", "group", "digit", "speaker")
    _write_table(folder / "voices.parquet", voices, columns, ranges)
    return {"voices": len(voices)}


def write_backgrounds(folder: Path, items: Iterable[Background]) -> dict[str, int]:
    """Write backgrounds in order of recording; returns the counts of the part."""
    sounds = sorted(items, key=lambda item: item.recording)
    ranges = _write_sounds(folder / "backgrounds.npy", [item.sound for item in sounds])
    columns = ("recording", "group", "background")
    _write_table(folder / "backgrounds.parquet", sounds, columns, ranges)
    return {"backgrounds": len(sounds)}


def write_titles(folder: Path, items: Iterable[Title]) -> dict[str, int]:
    """Write headlines in order of recording; returns the counts of the part."""
    titles = sorted(items, key=lambda item: item.recording)
    columns = ("recording", "group", "title", "clickbait")
    _write_table(folder / "titles.parquet", titles, columns, {})
    return {"titles": len(titles)}


def _write_sounds(path: Path, sounds: Sequence[SoundArray]) -> dict[str, list[int]]:
    lengths = [len(sound) for sound in sounds]
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]]).astype(int).tolist()
    np.save(path, np.concatenate(sounds))
    return {"start": starts, "samples": lengths}


def _write_table(
    path: Path, items: Sequence[Any], columns: Sequence[str], extra: Mapping[str, list[int]]
) -> None:
    table = {column: [getattr(item, column) for item in items] for column in columns}
    pq.write_table(pa.table({**table, **extra}), path)


class Bank:
    """Read access to a finished bank; candidates are row numbers in order of recording.

    Args:
        folder: the directory of a finished `sources` stage.
        unseen_speakers: moves all their recordings to the group `test`, and every recording of any
            other speaker out of it.
        seen_in_test: leaves the test recordings of the other speakers there.

    Raises:
        ValueError: an unseen speaker is not in the bank, or nobody is left for training.
    """

    def __init__(
        self, folder: Path, unseen_speakers: tuple[str, ...] = (), seen_in_test: bool = False
    ) -> None:
        self.folder = folder
        tables = {kind: pq.read_table(folder / f"{kind}.parquet") for kind in KINDS}
        self._columns = {kind: table.to_pydict() for kind, table in tables.items()}
        self._arrays = {
            kind: np.load(folder / f"{kind}.npy", mmap_mode="r")
            for kind in ("pictures", "voices", "backgrounds")
        }
        self._hold_out(unseen_speakers, seen_in_test)
        self._rows = {
            "pictures": self._group_rows("pictures", "digit"),
            "voices": self._group_rows("voices", "digit", "speaker"),
            "backgrounds": self._group_rows("backgrounds", "background"),
            "titles": self._group_rows("titles", "clickbait"),
        }

    def _hold_out(self, unseen: tuple[str, ...], seen_in_test: bool) -> None:
        if not unseen:
            return
        voices = self._columns["voices"]
        known = sorted(set(voices["speaker"]))
        absent = sorted(set(unseen) - set(known))
        if absent or set(unseen) == set(known):
            raise ValueError(
                f"data.unseen_speakers is {list(unseen)}: name some but not all of "
                f"{', '.join(known)}"
            )
        of_seen = "test" if seen_in_test else "unused"
        voices["group"] = [
            "test" if speaker in unseen else of_seen if group == "test" else group
            for speaker, group in zip(voices["speaker"], voices["group"], strict=True)
        ]

    def _group_rows(self, kind: str, *keys: str) -> dict[tuple[Any, ...], Rows]:
        columns = self._columns[kind]
        rows: dict[tuple[Any, ...], list[int]] = {}
        for row, values in enumerate(zip(*(columns[key] for key in ("group", *keys)), strict=True)):
            rows.setdefault(values, []).append(row)
        return {values: np.asarray(found, dtype=np.int64) for values, found in rows.items()}

    def speakers(self, group: str) -> list[str]:
        """Speakers heard in a source group, sorted."""
        return sorted({key[2] for key in self._rows["voices"] if key[0] == group})

    def candidates(self, kind: str, group: str, *keys: Any) -> Rows:
        """Rows of one kind in one source group, e.g. `("voices", "train", 3, "theo")`.

        Raises:
            ValueError: there is none.
        """
        rows = self._rows[kind].get((group, *keys))
        if rows is None:
            raise ValueError(
                f"the bank {self.folder} has no {kind} for {keys} in source group {group!r}: the "
                "sources are incomplete; give the full archives or raise data.pictures_per_digit"
            )
        return rows

    def value(self, kind: str, row: int, column: str) -> Any:
        """One field of one recording."""
        return self._columns[kind][column][row]

    def ink(self, row: int) -> InkArray:
        """A picture's ink, `(S, S)` uint8."""
        return np.asarray(self._arrays["pictures"][row])

    def sound(self, kind: str, row: int) -> SoundArray:
        """A voice's or background's samples, `(samples,)` int16 at 16 kHz."""
        start = self._columns[kind]["start"][row]
        return np.asarray(self._arrays[kind][start : start + self._columns[kind]["samples"][row]])

    def require_complete(self, config: PrepareConfig) -> None:
        """Refuse a bank that lacks something a clip may need.

        Raises:
            ValueError: names what is absent, or the recording that is longer than a clip.
        """
        for group in sorted({SPLIT_GROUP[split] for split, size in config.sizes.items() if size}):
            for digit in range(10):
                self.candidates("pictures", group, digit)
                for speaker in self.speakers(group) or ["anybody"]:
                    self.candidates("voices", group, digit, speaker)
            for background in BACKGROUNDS:
                self.candidates("backgrounds", group, background)
            for clickbait in (False, True):
                self.candidates("titles", group, clickbait)
        longest = max(self._columns["voices"]["samples"]) / RATE
        if longest > config.clip_seconds:
            raise ValueError(
                f"data.clip_seconds is {config.clip_seconds}, but a spoken digit takes "
                f"{longest:.2f} s: make clips longer"
            )


@lru_cache(maxsize=4)
def open_bank(
    folder: Path, unseen_speakers: tuple[str, ...] = (), seen_in_test: bool = False
) -> Bank:
    """`Bank(...)` with the same arguments, opened once a process."""
    return Bank(folder, unseen_speakers, seen_in_test)
