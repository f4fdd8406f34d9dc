"""A small data set from four small archives that have the layout of the real ones."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from lsb.artifact import Stage
from vlmae.config import build
from vlmae.data.prepare import PrepareConfig, prepare

SPEAKERS = ("anna", "bert", "cleo")
CLASSES = (
    "001 - Dog bark",
    "002 - Rain",
    "003 - Sea waves",
    "004 - Baby cry",
    "005 - Clock tick",
    "006 - Person sneeze",
    "007 - Helicopter",
    "008 - Chainsaw",
    "009 - Rooster",
    "010 - Fire crackling",
)


def picture(digit: int, rng: np.random.Generator) -> bytes:
    """A bar whose length says the digit, 28 x 28 PNG."""
    ink = np.zeros((28, 28), np.uint8)
    ink[6:22, 4 : 8 + digit * 2] = rng.integers(150, 256)
    stream = io.BytesIO()
    Image.fromarray(ink).save(stream, "PNG")
    return stream.getvalue()


def sound(wave: np.ndarray, rate: int, **options: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, wave.astype(np.float32), rate, **options)
    return stream.getvalue()


def mini_repositories() -> dict[str, dict[str, bytes]]:
    """Repository name -> path below its top folder -> bytes."""
    rng = np.random.default_rng(7)
    pictures = {"LICENSE": b"licence of mini pictures", "README.md": b"pictures"}
    voices = {"README.md": b"licence of mini voices"}
    for digit in range(10):
        for number in range(60):
            side = "test" if number < 6 else "train"
            pictures[f"{side}/{digit}/{digit}{number:03d}.png"] = picture(digit, rng)
        time = np.arange(2400) / 8000
        for speaker, name in enumerate(SPEAKERS):
            for index in range(12):
                wave = 0.3 * np.sin(2 * np.pi * (200 + 90 * digit + 20 * speaker) * time)
                voices[f"recordings/{digit}_{name}_{index}.wav"] = sound(
                    wave + 0.01 * rng.standard_normal(len(time)), 8000, format="WAV"
                )
    backgrounds = {"README.md": b"licence of mini sounds", "README.txt": b"by their authors"}
    for name in CLASSES:
        for fold in range(1, 6):
            backgrounds[f"{name}/{fold}-{int(name[:3]):06d}-A.ogg"] = sound(
                0.1 * rng.standard_normal(22050), 44100, format="OGG", subtype="VORBIS"
            )
    bait = "".join(f"{n} Things You Won\u2019t Believe\n\n" for n in range(90))
    news = "".join(f"Council votes on budget item {n}\n" for n in range(90))
    both = "The same words in both files\n"
    titles = {
        "LICENSE": b"licence of mini titles",
        "dataset/README.txt": b"titles",
        "dataset/clickbait_data.gz": gzip.compress((bait + both + bait).encode()),
        "dataset/non_clickbait_data.gz": gzip.compress((news + both).encode()),
    }
    return {
        "mnist-pngs": pictures,
        "free-spoken-digit-dataset": voices,
        "ESC-10": backgrounds,
        "clickbait": titles,
    }


def pack(path: Path, mode: str, top: str, files: dict[str, bytes]) -> None:
    with tarfile.open(path, mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{top}/{name}")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


@pytest.fixture(scope="session", name="pack")
def pack_fixture() -> Callable[[Path, str, str, dict[str, bytes]], None]:
    """`pack`, for tests that need an archive of their own."""
    return pack


@pytest.fixture(scope="session")
def repositories() -> dict[str, dict[str, bytes]]:
    return mini_repositories()


@pytest.fixture(scope="session")
def sources(
    tmp_path_factory: pytest.TempPathFactory, repositories: dict[str, dict[str, bytes]]
) -> Path:
    """A folder of four archives named like the real ones."""
    folder = tmp_path_factory.mktemp("sources")
    for name, files in repositories.items():
        ending = ("w", ".tar") if name == "ESC-10" else ("w:xz", ".tar.xz")
        pack(folder / f"{name}{ending[1]}", ending[0], name, files)
    return folder


ConfigMaker = Callable[..., PrepareConfig]


@pytest.fixture(scope="session")
def make_config(sources: Path) -> ConfigMaker:
    """A function from changed fields to the config of a very small data set."""

    def make(**changes: object) -> PrepareConfig:
        values: dict[str, object] = {
            "name": "mini",
            "bank": "avt_compose",
            "sources": str(sources),
            "first": 16,
            "pool": 32,
            "gold": 16,
            "test": 16,
            "shard_clips": 16,
            "unsafe_rate": 0.2,
            "policy_pairs": 30,
            "clip_seconds": 2.0,
            "pictures_per_digit": 50,
        }
        return build("data", PrepareConfig, {**values, **changes})

    return make


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of stages shared by tests that only read, so that the mini bank is made once."""
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="session")
def mini(root: Path, make_config: ConfigMaker) -> Stage:
    """The very small data set, made once."""
    return prepare(root, make_config())
