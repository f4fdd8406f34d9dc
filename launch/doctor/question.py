"""What a node is asked: one JSON file, written by the command and read on every node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lsb.artifact import read_json, write_json

FORMAT = "vlmae-doctor"
VERSION = 1
QUESTION = "question.json"
NONCE = "nonce"
LOCK = "lock"
ANSWERS = "answers"
ECHOES = "echoes"


@dataclass(frozen=True)
class Place:
    """A folder or a file that jobs use.

    Attributes:
        key: of the config that names it.
        path: absolute, or what the hub calls a model.
        revision: of a model of the hub.
        hub: whether it is such a model, which lies in a cache.
        writes: whether jobs write into it; what lies in other folders is compared.
        listing: what the command found in it; None where it is not compared.
    """

    key: str
    path: str
    revision: str | None = None
    hub: bool = False
    writes: bool = False
    listing: str | None = None


@dataclass(frozen=True)
class Limits:
    """The least that a node has to have; the group `doctor` of the config.

    Attributes:
        stage: whose resources are looked for.
        patience: seconds that one step of a check may take.
        queue_seconds: that the job may wait for its nodes.
        free_gb: of a folder that is written to.
        shm_gb: of /dev/shm.
        open_files: of one process, as `ulimit -n` says.
        clock_seconds: that a node's clock may be off.
        json: print the findings as JSON instead of a page.
    """

    stage: str = "train"
    patience: float = 15.0
    queue_seconds: float = 20.0
    free_gb: float = 5.0
    shm_gb: float = 1.0
    open_files: int = 1024
    clock_seconds: float = 5.0
    json: bool = False

    def __post_init__(self) -> None:
        for name in ("patience", "queue_seconds", "clock_seconds"):
            if not getattr(self, name) > 0:
                raise ValueError(f"doctor.{name} is {getattr(self, name)}: give more than 0")
        for name in ("free_gb", "shm_gb", "open_files"):
            if getattr(self, name) < 0:
                raise ValueError(f"doctor.{name} is {getattr(self, name)}: give 0 or more")


@dataclass(frozen=True)
class Question:
    """What every node is asked.

    Attributes:
        token: of this visit; also what the file `nonce` holds.
        nodes: names, the first of which is rank 0.
        versions: package -> version, as the command has them.
        places: folders and files.
        gpus: that a node was given.
        memory_gb: that the ranks of one node ask for.
        patience: see `Limits`, like the next three.
        free_gb: see there.
        shm_gb: see there.
        open_files: see there.
    """

    token: str
    nodes: tuple[str, ...]
    versions: dict[str, str]
    places: tuple[Place, ...]
    gpus: int
    memory_gb: float
    patience: float
    free_gb: float
    shm_gb: float
    open_files: int

    def write(self, folder: Path) -> None:
        """Write it and the nonce, and make the folders of the answers.

        The nonce is written over another one: a node that still reads the first does not see what
        is renamed.
        """
        for name in (ANSWERS, ECHOES, "logs"):
            (folder / name).mkdir(parents=True)
        (folder / NONCE).write_text("not renamed yet", encoding="utf-8")
        write_json(folder / NONCE, self.token)
        write_json(folder / QUESTION, {"format": FORMAT, "version": VERSION, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Question:
        """The question of a folder.

        Raises:
            ValueError: it is of another format or version.
        """
        record: dict[str, Any] = dict(read_json(folder / QUESTION))
        if (record.pop("format", None), record.pop("version", None)) != (FORMAT, VERSION):
            raise ValueError(f"{folder / QUESTION} is not of this release: run the doctor again")
        places = tuple(Place(**place) for place in record.pop("places"))
        return cls(places=places, nodes=tuple(record.pop("nodes")), **record)


def answer_file(folder: Path, node: str) -> Path:
    """Where a node writes what it has found."""
    return folder / ANSWERS / f"{node}.json"


def echo_file(folder: Path, node: str) -> Path:
    """Where the command writes that it has seen a node's answer."""
    return folder / ECHOES / f"{node}.json"


def told_by(record: Mapping[str, Any]) -> str:
    """The check that a node was at when it last wrote; empty where it has ended."""
    return str(record.get("doing", ""))
