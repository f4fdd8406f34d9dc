"""AVT-compose: real media with composed labels, from four public repositories.

MNIST pictures, FSDD spoken digits, ESC-10 environmental sounds and news headlines are real; which
of them meet in a clip, and hence its labels, is composed. Always say so when reporting on it.

Source groups: FSDD recordings 0-4 are test (its official split), 5-9 gold; ESC-10 folds 1-3 are
train, 4 gold, 5 test; MNIST's own test pictures are test, a hash share of the others gold;
headlines go by hash of their text, copies dropped.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from PIL import Image

from lsb.artifact import Counts, Part
from vlmae.data.prepare import bank, licences
from vlmae.data.prepare.archives import CLICKBAIT, ESC10, FSDD, MNIST, content_hash, locate, read
from vlmae.data.prepare.bank import Background, Picture, Title, Voice, hash_share

VERSION = 1  # raise it when reading or grouping changes, so that old banks are not reused
GOLD_PICTURES = 0.15  # of MNIST's training pictures
GOLD_TITLES = 0.10
TEST_TITLES = 0.20
ESC_CLASSES = {
    "001": "dog",
    "002": "rain",
    "003": "sea_waves",
    "004": "crying_baby",
    "005": "clock_tick",
    "006": "sneezing",
    "007": "helicopter",
    "008": "chainsaw",
    "009": "rooster",
    "010": "crackling_fire",
}
FOLD_GROUP = {"1": "train", "2": "train", "3": "train", "4": "gold", "5": "test"}
LICENCE_FILES = re.compile(r"(.*/)?(LICENSE|LICENCE|README)(\.\w+)?", re.IGNORECASE)


@dataclass(frozen=True)
class AvtComposeSources:
    """The four repositories as `Sources`.

    Attributes:
        paths: repository name -> archive or unpacked folder, as `archives.locate` finds them.
        pictures_per_digit: at most so many pictures of each digit, those of smallest hash.
    """

    paths: Mapping[str, Path]
    pictures_per_digit: int | None

    @classmethod
    def find(
        cls, sources: str | None, cache: str, pictures_per_digit: int | None
    ) -> AvtComposeSources:
        """Locate the repositories.

        Raises:
            ValueError: see `archives.locate`.
        """
        return cls(locate(sources, cache), pictures_per_digit)

    def identity(self) -> Mapping[str, Any]:
        """Version of the reader and content hash of each repository."""
        return {
            "avt_compose": VERSION,
            "repositories": {name: content_hash(path) for name, path in sorted(self.paths.items())},
            "pictures_per_digit": self.pictures_per_digit,
        }

    def parts(self) -> Sequence[Part]:
        """One part for each kind of recording."""
        makers = {
            "pictures": partial(make_pictures, self.paths[MNIST.name], self.pictures_per_digit),
            "voices": partial(make_voices, self.paths[FSDD.name]),
            "backgrounds": partial(make_backgrounds, self.paths[ESC10.name]),
            "titles": partial(make_titles, self.paths[CLICKBAIT.name]),
        }
        return [Part(kind, bank.part_files(kind), make) for kind, make in makers.items()]


def make_pictures(path: Path, per_digit: int | None, folder: Path) -> Counts:
    """Fill the pictures of a bank from mnist-pngs."""
    pattern = re.compile(r"(train|test)/(\d)/\d+\.png")
    ranked: dict[int, list[tuple[float, str, bytes]]] = {digit: [] for digit in range(10)}
    texts: dict[str, bytes] = {}
    for name, data in read(path, lambda name: _either(name, pattern)):
        match = pattern.fullmatch(name)
        if match is None:
            texts[name] = data
        else:
            ranked[int(match[2])].append((hash_share(f"rank/{name}"), name, data))

    def decode() -> Iterator[Picture]:
        for digit, entries in ranked.items():
            for _, name, data in sorted(entries)[:per_digit]:
                ink = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
                gold = hash_share(f"gold/{name}") < GOLD_PICTURES
                group = "test" if name.startswith("test/") else "gold" if gold else "train"
                yield Picture(f"{MNIST.name}/{name}", group, digit, ink)

    _require(any(ranked.values()), path, "train/<digit>/<number>.png")
    licences.write(folder / "pictures.licence.md", licences.MNIST_NOTICE, texts)
    return bank.write_pictures(folder, decode())


def make_voices(path: Path, folder: Path) -> Counts:
    """Fill the voices of a bank from the Free Spoken Digit Dataset."""
    pattern = re.compile(r"recordings/(\d)_(\w+)_(\d+)\.wav")
    voices: list[Voice] = []
    texts: dict[str, bytes] = {}
    for name, data in read(path, lambda name: _either(name, pattern)):
        match = pattern.fullmatch(name)
        if match is None:
            texts[name] = data
            continue
        index = int(match[3])
        group = "test" if index < 5 else "gold" if index < 10 else "train"
        voices.append(
            Voice(
                f"{FSDD.name}/{name}",
                group,
                int(match[1]),
                match[2],
                _sound(data),
            )
        )
    _require(bool(voices), path, "recordings/<digit>_<speaker>_<index>.wav")
    licences.write(folder / "voices.licence.md", licences.FSDD_NOTICE, texts)
    return bank.write_voices(folder, voices)


def make_backgrounds(path: Path, folder: Path) -> Counts:
    """Fill the backgrounds of a bank from ESC-10."""
    pattern = re.compile(r"(\d{3}) - [^/]+/([1-5])-[^/]+\.ogg")
    sounds: list[Background] = []
    texts: dict[str, bytes] = {}
    for name, data in read(path, lambda name: _either(name, pattern)):
        match = pattern.fullmatch(name)
        if match is None:
            texts[name] = data
            continue
        sounds.append(
            Background(
                f"{ESC10.name}/{name}",
                FOLD_GROUP[match[2]],
                ESC_CLASSES[match[1]],
                _sound(data),
            )
        )
    _require(bool(sounds), path, "<number> - <class>/<fold>-<clip>.ogg")
    licences.write(folder / "backgrounds.licence.md", licences.ESC10_NOTICE, texts)
    return bank.write_backgrounds(folder, sounds)


def make_titles(path: Path, folder: Path) -> Counts:
    """Fill the titles of a bank from the clickbait headlines, each text once.

    A text that stands in both files has no single class and is dropped.
    """
    files = {"dataset/clickbait_data.gz": True, "dataset/non_clickbait_data.gz": False}
    headlines: dict[bool, dict[str, Title]] = {True: {}, False: {}}
    texts: dict[str, bytes] = {}
    for name, data in read(path, lambda name: name in files or bool(LICENCE_FILES.fullmatch(name))):
        if name not in files:
            texts[name] = data
            continue
        clickbait = files[name]
        for number, line in enumerate(gzip.decompress(data).decode("utf-8").splitlines()):
            title = " ".join(line.split())
            share = hash_share(title.casefold())
            group = (
                "test"
                if share < TEST_TITLES
                else "gold"
                if share < TEST_TITLES + GOLD_TITLES
                else "train"
            )
            recording = f"{CLICKBAIT.name}/{name}#{number:05d}"
            if title:
                headlines[clickbait].setdefault(
                    title.casefold(), Title(recording, group, title, clickbait)
                )
    _require(all(headlines.values()), path, " and ".join(files))
    both = headlines[True].keys() & headlines[False].keys()
    kept = [
        title for found in headlines.values() for text, title in found.items() if text not in both
    ]
    licences.write(folder / "titles.licence.md", licences.CLICKBAIT_NOTICE, texts)
    return bank.write_titles(folder, kept)


def _sound(data: bytes) -> bank.SoundArray:
    """The bytes of a sound file as int16 at 16 kHz, channels averaged."""
    sound, rate = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    return bank.resample(sound.mean(axis=1), rate)


def _either(name: str, pattern: re.Pattern[str]) -> bool:
    return bool(pattern.fullmatch(name) or LICENCE_FILES.fullmatch(name))


def _require(found: bool, path: Path, layout: str) -> None:
    if not found:
        raise ValueError(
            f"{path} holds no {layout}: it is not the expected repository; get it again"
        )
