"""What determines a prepared data set: a frozen dataclass with the keys of conf/data as fields."""

from __future__ import annotations

import re
import warnings
from dataclasses import dataclass, fields
from typing import Any

BANKS = ("generated", "avt_compose")
SPLITS = ("first", "pool", "gold", "test")
# A split's clips are numbered from its own base, so a clip of the same data set and seed keeps its
# key and its content in every size: tiny is a subset of small, small of full.
SPLIT_BASE = {"first": 0, "pool": 100_000, "gold": 800_000, "test": 900_000}
SPLIT_LIMIT = {"first": 100_000, "pool": 700_000, "gold": 100_000, "test": 100_000}
# Raise it when composing, drawing, mixing or encoding changes, so that old shards are not reused.
COMPOSER_VERSION = 1
# Where things are and how many hands make them changes no byte, so these stay out of the hash.
NOT_HASHED = ("sources", "cache", "processes")


@dataclass(frozen=True)
class PrepareConfig:
    """One data set, as composed from the config groups `data` and `size`.

    Attributes:
        name: first part of every clip key; holds "generated" exactly when the bank is generated.
        bank: where recordings come from, "generated" or "avt_compose".
        seed: of the compositions; recordings and their source groups do not depend on it.
        first, pool, gold, test: clips in each split.
        shard_clips: clips in one shard, the last of a split may have fewer.
        sources: for avt_compose a folder, or "download"; unused by generated.
        cache: folder that downloads are kept in.
        pictures_per_digit: at most so many pictures of each digit, chosen by hash; None for all.
            The generated bank draws exactly so many.
        clip_seconds: length of a clip.
        frame_size: height and width in pixels, even.
        digit_size: longer side of the drawn digit in pixels, before a jitter of 8 %.
        fps: frames per second.
        snr_db: level of the spoken digit over the loudest half second of the background, decibel.
        match_rate: share of clips whose spoken digit is the shown one.
        clickbait_title_rate: share of clips with a clickbait headline.
        unsafe_rate: share of clips with an unsafe background.
        policy_pairs: number of (shown, spoken) pairs, shown != spoken, that break the policy.
        broken: share of deliberately broken clips, one in each block of `1 / broken` clips.
        unseen_speakers: speakers heard in `test` and nowhere else; `test` then has only them.
        seen_in_test: keep the test recordings of the other speakers in `test` beside them.
        processes: shards made at a time.
    """

    name: str
    bank: str
    seed: int = 0
    first: int = 48
    pool: int = 96
    gold: int = 24
    test: int = 48
    shard_clips: int = 250
    sources: str | None = None
    cache: str = "~/.cache/vlmae/sources"
    pictures_per_digit: int | None = None
    clip_seconds: float = 4.0
    frame_size: int = 128
    digit_size: int = 84
    fps: int = 8
    snr_db: float = 10.0
    match_rate: float = 0.5
    clickbait_title_rate: float = 0.5
    unsafe_rate: float = 0.02
    policy_pairs: int = 6
    broken: float = 0.01
    unseen_speakers: tuple[str, ...] = ()
    seen_in_test: bool = False
    processes: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "unseen_speakers", tuple(self.unseen_speakers))
        if self.seen_in_test and not self.unseen_speakers:
            warnings.warn(
                "data.seen_in_test has no effect: data.unseen_speakers is empty", stacklevel=2
            )
        if self.bank not in BANKS:
            raise ValueError(f"data.bank is {self.bank!r}: choose one of {', '.join(BANKS)}")
        if not re.fullmatch(r"[A-Za-z0-9_]+", self.name):
            raise ValueError(f"data.name is {self.name!r}: use letters, digits and _ only")
        if ("generated" in self.name) != (self.bank == "generated"):
            raise ValueError(
                f"data.name is {self.name!r} but data.bank is {self.bank!r}: the name says "
                "'generated' exactly when the media are synthetic; rename it"
            )
        if self.frame_size % 2 or not 0 < 1.3 * self.digit_size <= self.frame_size:
            raise ValueError(
                f"data.frame_size is {self.frame_size}, data.digit_size {self.digit_size}: H.264 "
                "needs an even frame, and the digit room to move; make it 1.3 times the digit"
            )
        if not 0.0 <= self.broken <= 0.25:
            raise ValueError(f"data.broken is {self.broken}: give a share from 0 to 0.25")
        if not 0 <= self.policy_pairs <= 90:
            raise ValueError(
                f"data.policy_pairs is {self.policy_pairs}: there are 90 unequal pairs"
            )
        for rate in ("match_rate", "clickbait_title_rate", "unsafe_rate"):
            if not 0.0 <= getattr(self, rate) <= 1.0:
                raise ValueError(f"data.{rate} is {getattr(self, rate)}: give a share from 0 to 1")
        for split, clips in self.sizes.items():
            if not 0 <= clips <= SPLIT_LIMIT[split]:
                raise ValueError(f"data.{split} is {clips}: at most {SPLIT_LIMIT[split]} clips")
        for key in ("shard_clips", "fps", "clip_seconds", "processes"):
            if getattr(self, key) <= 0:
                raise ValueError(f"data.{key} is {getattr(self, key)}: it must be positive")
        if self.pictures_per_digit is not None and self.pictures_per_digit < 1:
            raise ValueError("data.pictures_per_digit must be positive, or null for all")

    @property
    def sizes(self) -> dict[str, int]:
        """Clips by split, in the order in which splits are made."""
        return {split: int(getattr(self, split)) for split in SPLITS}

    @property
    def synthetic(self) -> bool:
        """Whether the media are generated."""
        return self.bank == "generated"

    @property
    def frames(self) -> int:
        """Video frames in a clip."""
        return round(self.clip_seconds * self.fps)

    def hashed(self) -> dict[str, Any]:
        """Every field that determines bytes, and the composer's version, JSON-like."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        kept = {
            key: list(value) if isinstance(value, tuple) else value
            for key, value in values.items()
            if key not in NOT_HASHED
        }
        if not self.seen_in_test:  # as it was before there was a choice
            del kept["seen_in_test"]
        return {"composer": COMPOSER_VERSION, **kept}

    def key(self, split: str, index: int) -> str:
        """Key of one clip: `{name}-{seed}-{number:06d}`, unique over splits."""
        return f"{self.name}-{self.seed}-{SPLIT_BASE[split] + index:06d}"
