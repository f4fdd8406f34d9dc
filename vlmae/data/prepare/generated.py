"""The generated bank: recordings that need nothing but what pip installed, for demos and tests.

Everything is SYNTHETIC. Recordings depend on their own id alone, not on the data set's seed, so the
bank is made once for all seeds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont
from scipy.ndimage import gaussian_filter, map_coordinates

from lsb.artifact import Counts, Part
from vlmae.data.prepare import bank, headlines, licences, soundscape, speech
from vlmae.data.prepare.bank import (
    BACKGROUNDS,
    Background,
    InkArray,
    Picture,
    Title,
    Voice,
    hash_share,
)

VERSION = 1  # raise it when a generator changes, so that old banks are not reused
PICTURES_PER_DIGIT = 300
SOUNDS_PER_CLASS = 40
TITLES_PER_CLASS = 1500
CANVAS = 64
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "DejaVuSerif-Italic.ttf",
    "STIXGeneral.ttf",
    "STIXGeneralBol.ttf",
    "STIXGeneralItalic.ttf",
    "cmr10.ttf",
    "cmss10.ttf",
    "cmtt10.ttf",
    "cmb10.ttf",
)


class GeneratedSources:
    """Generated recordings as `Sources`.

    Args:
        pictures_per_digit: pictures drawn of each digit; None for the default of 300.
    """

    def __init__(self, pictures_per_digit: int | None) -> None:
        self.pictures_per_digit = pictures_per_digit or PICTURES_PER_DIGIT

    def identity(self) -> Mapping[str, Any]:
        """Version of the generators and how many recordings they make."""
        return {
            "generated": VERSION,
            "pictures_per_digit": self.pictures_per_digit,
            "takes": speech.TAKES,
            "sounds_per_class": SOUNDS_PER_CLASS,
            "titles_per_class": TITLES_PER_CLASS,
        }

    def parts(self) -> Sequence[Part]:
        """One part for each kind of recording."""
        makers: dict[str, Callable[[Path], Counts]] = {
            "pictures": partial(make_pictures, self.pictures_per_digit),
            "voices": make_voices,
            "backgrounds": make_backgrounds,
            "titles": make_titles,
        }
        return [Part(kind, bank.part_files(kind), make) for kind, make in makers.items()]


def recording_rng(recording: str) -> np.random.Generator:
    """A generator that depends on the id of a recording alone."""
    digest = hashlib.blake2b(recording.encode(), digest_size=16).digest()
    return np.random.default_rng(int.from_bytes(digest, "big"))


def group_by_hash(recording: str) -> str:
    """Source group of a recording: 70 % train, 10 % gold, 20 % test."""
    share = hash_share(f"group/{recording}")
    return "test" if share < 0.2 else "gold" if share < 0.3 else "train"


def make_pictures(per_digit: int, folder: Path) -> Counts:
    """Draw the pictures of a bank."""

    def draw_all() -> Iterator[Picture]:
        for digit in range(10):
            for number in range(per_digit):
                recording = f"generated/pictures/{digit}-{number:05d}"
                ink = draw_digit(digit, recording_rng(recording))
                yield Picture(recording, group_by_hash(recording), digit, ink)

    licences.write(folder / "pictures.licence.md", licences.GENERATED_NOTICE["pictures"], {})
    return bank.write_pictures(folder, draw_all())


@lru_cache(maxsize=256)
def _font(name: str, size: int) -> ImageFont.FreeTypeFont:
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    # The basic layout engine: raqm is not in every build of Pillow and would change the bytes.
    return ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)


def draw_digit(digit: int, rng: np.random.Generator) -> InkArray:
    """One digit in a random font, weight, slant, width, size and hand, `(64, 64)` uint8 ink."""
    font = _font(FONTS[int(rng.integers(len(FONTS)))], int(rng.integers(42, 54)))
    canvas = Image.new("L", (CANVAS, CANVAS))
    draw = ImageDraw.Draw(canvas)
    stroke = float(rng.choice([0.0, 0.0, 1.0, 1.5]))
    draw.text((CANVAS / 2, CANVAS / 2), str(digit), 255, font, anchor="mm", stroke_width=stroke)
    # Sheared beyond about 0.35, or turned beyond about 15 degrees, 6 and 9, 1 and 7 grow alike.
    angle = rng.uniform(-0.2, 0.2)
    shear = rng.uniform(-0.3, 0.3)
    scale_y, scale_x = rng.uniform(0.95, 1.2), rng.uniform(0.95, 1.5)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = turn @ np.array([[1.0, 0.0], [shear, 1.0]]) @ np.diag([scale_y, scale_x])
    grid = np.indices((CANVAS, CANVAS), dtype=np.float64).reshape(2, -1) - CANVAS / 2
    wobble = np.stack(
        [gaussian_filter(rng.standard_normal((CANVAS, CANVAS)), 7.0).ravel() for _ in range(2)]
    )
    wobble *= rng.uniform(0.5, 2.0) / np.abs(wobble).std()
    source = matrix @ grid + CANVAS / 2 + wobble
    ink = map_coordinates(np.asarray(canvas, dtype=np.float64), source, order=1, cval=0.0)
    drawn = Image.fromarray(np.round(ink).astype(np.uint8).reshape(CANVAS, CANVAS))
    if rng.random() < 0.3:  # a broken pen: paler, uneven strokes
        patches = gaussian_filter(rng.standard_normal((CANVAS, CANVAS)), 3.0)
        shade = 215 + 40 * np.tanh(patches / patches.std())
        drawn = ImageChops.multiply(drawn, Image.fromarray(np.round(shade).astype(np.uint8)))
    return np.asarray(drawn)


def make_voices(folder: Path) -> Counts:
    """Speak the voices of a bank: of each speaker and digit, takes 0-2 are test, 3-4 gold."""

    def speak() -> Iterator[Voice]:
        for said in speech.speak_all():
            group = "test" if said.take < 3 else "gold" if said.take < 5 else "train"
            recording = f"generated/voices/{said.digit}_{said.speaker}_{said.take:02d}"
            yield Voice(recording, group, said.digit, said.speaker, said.sound)

    licences.write(folder / "voices.licence.md", licences.GENERATED_NOTICE["voices"], {})
    return bank.write_voices(folder, speak())


def make_backgrounds(folder: Path) -> Counts:
    """Compute the backgrounds of a bank, in five folds like ESC-10: 0-2 train, 3 gold, 4 test."""

    def compute() -> Iterator[Background]:
        for name in BACKGROUNDS:
            for number in range(SOUNDS_PER_CLASS):
                recording = f"generated/backgrounds/{name}-{number:03d}"
                group = ("train", "train", "train", "gold", "test")[number % 5]
                sound = soundscape.imitate(name, recording_rng(recording))
                yield Background(recording, group, name, sound)

    licences.write(folder / "backgrounds.licence.md", licences.GENERATED_NOTICE["backgrounds"], {})
    return bank.write_backgrounds(folder, compute())


def make_titles(folder: Path) -> Counts:
    """Fill the titles of a bank from templates, each text once."""

    def fill() -> Iterator[Title]:
        for clickbait in (False, True):
            seen: set[str] = set()
            number = 0
            while len(seen) < TITLES_PER_CLASS:
                recording = f"generated/titles/{'clickbait' if clickbait else 'news'}-{number:05d}"
                number += 1
                title = headlines.write_headline(clickbait, recording_rng(recording))
                if title not in seen:
                    seen.add(title)
                    yield Title(recording, group_by_hash(title), title, clickbait)

    licences.write(folder / "titles.licence.md", licences.GENERATED_NOTICE["titles"], {})
    return bank.write_titles(folder, fill())
