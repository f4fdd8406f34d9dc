"""Compositions: which recordings meet in a clip, and the labels that follow.

Labels are composed before media, each clip's from a generator seeded by (seed, clip key) alone, so
nothing depends on shards, their order or the size of a split.

    relevance   the spoken digit is the shown one; neither picture nor sound tells alone
    clickbait   a clickbait headline over a picture that is not what the voice says
    unsafe      the background is a chainsaw, a crying baby or a crackling fire
    policy      (shown, spoken) is one of a few unequal pairs that the seed chose
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from vlmae.data.prepare.bank import SAFE, SPLIT_GROUP, UNSAFE, Bank, Rows, hash_share
from vlmae.data.prepare.config import SPLITS, PrepareConfig

TASKS = ("relevance", "clickbait", "unsafe", "policy")
BROKEN_KINDS = ("no_audio_track", "truncated", "one_frame", "zero_length_audio")
# The broken clip of a block is among its first few, so that even a split of 16 clips has one.
BROKEN_WITHIN = 16


@dataclass(frozen=True)
class Composition:
    """One clip to be: rows of its four recordings in the bank, what they say, and its labels."""

    picture: int
    voice: int
    background: int
    title: int
    shown: int
    spoken: int
    speaker: str
    background_class: str
    relevance: bool
    clickbait: bool
    unsafe: bool
    policy: bool


def clip_rng(seed: int, key: str, purpose: str) -> np.random.Generator:
    """A generator that depends on (seed, clip key, purpose) alone."""
    digest = hashlib.blake2b(f"{seed}\0{key}\0{purpose}".encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def policy_pairs(config: PrepareConfig) -> frozenset[tuple[int, int]]:
    """The (shown, spoken) pairs, shown != spoken, that break the policy."""
    pairs = [(shown, spoken) for shown in range(10) for spoken in range(10) if shown != spoken]
    rng = clip_rng(config.seed, "", "policy")
    chosen = rng.choice(len(pairs), size=config.policy_pairs, replace=False)
    return frozenset(pairs[int(index)] for index in chosen)


def compose(config: PrepareConfig, bank: Bank, split: str, key: str) -> Composition:
    """Draw the composition of one clip."""
    rng = clip_rng(config.seed, key, "composition")
    group = SPLIT_GROUP[split]
    clickbait_title = bool(rng.random() < config.clickbait_title_rate)
    match = bool(rng.random() < config.match_rate)
    unsafe = bool(rng.random() < config.unsafe_rate)
    shown = int(rng.integers(10))
    other = (shown + int(rng.integers(1, 10))) % 10
    spoken = shown if match else other
    classes = UNSAFE if unsafe else SAFE
    background_class = classes[int(rng.integers(len(classes)))]
    speakers = bank.speakers(group)
    speaker = speakers[int(rng.integers(len(speakers)))]

    def draw(rows: Rows) -> int:
        return int(rows[int(rng.integers(len(rows)))])

    return Composition(
        picture=draw(bank.candidates("pictures", group, shown)),
        voice=draw(bank.candidates("voices", group, spoken, speaker)),
        background=draw(bank.candidates("backgrounds", group, background_class)),
        title=draw(bank.candidates("titles", group, clickbait_title)),
        shown=shown,
        spoken=spoken,
        speaker=speaker,
        background_class=background_class,
        relevance=match,
        clickbait=clickbait_title and not match,
        unsafe=unsafe,
        policy=(shown, spoken) in policy_pairs(config),
    )


def broken_clips(config: PrepareConfig, split: str) -> dict[str, str]:
    """Clip key -> kind, for the deliberately broken clips of a split.

    Each block of `1 / broken` clips has one, at a place chosen by hash, the kinds taking turns;
    each split starts with another kind. Whether a clip is broken does not depend on the size of its
    split.
    """
    return dict(_broken(config, split)) if config.broken else {}


def _broken(config: PrepareConfig, split: str) -> Iterator[tuple[str, str]]:
    block = round(1 / config.broken)
    clips = config.sizes[split]
    for number, start in enumerate(range(0, clips, block)):
        place = hash_share(f"broken/{config.key(split, start)}") * min(block, BROKEN_WITHIN)
        index = start + int(place)
        if index < clips:
            kind = BROKEN_KINDS[(number + SPLITS.index(split)) % len(BROKEN_KINDS)]
            yield config.key(split, index), kind
