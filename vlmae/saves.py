"""Saves of a training that is under way: whole or absent, the last few, on any number of ranks.

    saves/step-000120/
        save.json       which training, step, ranks; written last: without it nobody reads the rest
        state           of Lightning (one file), or of DeepSpeed (a folder with a shard a rank)
        universal       of a ZeRO save, once other ranks than its own have asked for it
    saves/.step-000160.tmp/   one that was interrupted; the next save removes it

Generators have no state here: what a step draws comes from (seed, rank, step), and what validation
reads is fixed.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lsb.files import read_json, write_json

MARKER = "save.json"
STATE = "state"
VERSION = 1


@dataclass(frozen=True)
class Moment:
    """Where in which training a save was made.

    Attributes:
        training: fingerprint of all that a training is made of, without the number of ranks.
        step: of the optimiser.
        ranks: how many trained.
        accumulate: micro-batches of a rank in a step.
        strategy: name of it.
    """

    training: str
    step: int
    ranks: int
    accumulate: int
    strategy: str


@dataclass(frozen=True)
class Save:
    """A finished save."""

    path: Path
    moment: Moment

    @property
    def state(self) -> Path:
        """What the trainer goes on from."""
        return self.path / STATE


class Saves:
    """The saves of one training.

    Args:
        folder: that holds them.
        keep: how many, the latest.
    """

    def __init__(self, folder: Path, keep: int = 1) -> None:
        if keep < 1:
            raise ValueError(f"trainer.keep_saves is {keep}: keep at least 1")
        self.folder, self.keep = folder, keep

    def finished(self) -> list[Save]:
        """Whole saves, earliest first; an interrupted one is none."""
        saves = [
            Save(marker.parent, _moment(marker)) for marker in self.folder.glob(f"step-*/{MARKER}")
        ]
        return sorted(saves, key=lambda save: save.moment.step)

    def latest(self) -> Save | None:
        """The one to go on from."""
        saves = self.finished()
        return saves[-1] if saves else None

    def begin(self, step: int) -> Path:
        """Where the state of a step is to be written; same on all ranks, made by no-one yet."""
        return self.folder / f".step-{step:06d}.tmp" / STATE

    def clear(self, step: int) -> None:
        """Remove what an interrupted save has left and make room. First rank only."""
        for leftover in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(leftover)
        self.begin(step).parent.mkdir(parents=True)

    def finish(self, moment: Moment) -> None:
        """Make the state that all ranks have written a save, and drop the oldest. First rank only.

        Raises:
            ValueError: nothing was written.
        """
        state = self.begin(moment.step)
        if not state.exists():
            raise ValueError(f"{state} was not written: look for what the ranks say before this")
        files = [state] if state.is_file() else [p for p in state.rglob("*") if p.is_file()]
        for file in files:  # else a crash of the machine could leave a marker beside empty files
            _flush(file)
        write_json(state.parent / MARKER, {"version": VERSION, **asdict(moment)})
        target = self.folder / f"step-{moment.step:06d}"
        shutil.rmtree(target, ignore_errors=True)
        os.replace(state.parent, target)
        for save in self.finished()[: -self.keep]:
            # Without its marker first: a reader never meets half of one.
            (save.path / MARKER).unlink()
            shutil.rmtree(save.path)


def find_save(place: Path, training: str = "") -> Save:
    """A save by its folder, or the latest in a folder of saves or of a stage under way.

    Args:
        place: one of these folders.
        training: whose saves in it are looked at, see `Moment`; "" for all.

    Raises:
        ValueError: there is none.
    """
    if (place / MARKER).is_file():
        return Save(place, _moment(place / MARKER))
    saves = [*Saves(place).finished(), *saves_below(place)]
    saves = [save for save in saves if save.moment.training == training] if training else saves
    if not saves:
        raise ValueError(
            f"{place} holds no finished save of this training: give trainer.resume_from a folder "
            "saves/step-<n>, or one that holds such"
        )
    return max(saves, key=lambda save: save.moment.step)


def saves_below(folder: Path) -> list[Save]:
    """All finished saves of a stage under way, or of all in a folder of stages.

    Those of other releases are left out, and those that a running training drops meanwhile.
    """
    scratch = f".scratch-*/saves/step-*/{MARKER}"
    # Not at any depth: stages hold many files, on a file system that may be far away.
    patterns = (f"saves/step-*/{MARKER}", scratch, f"train-*.partial/{scratch}")
    found = []
    for marker in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        try:
            found.append(Save(marker.parent, _moment(marker)))
        except (ValueError, FileNotFoundError):
            continue
    return found


def _moment(marker: Path) -> Moment:
    values: dict[str, Any] = read_json(marker)
    if values.pop("version", None) != VERSION:
        raise ValueError(
            f"{marker} is of another release, this one reads version {VERSION}: delete "
            f"{marker.parent} to start the training anew"
        )
    return Moment(**values)


def _flush(file: Path) -> None:
    with open(file, "rb") as stream:
        os.fsync(stream.fileno())
