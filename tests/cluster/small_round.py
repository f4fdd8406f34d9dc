"""A round small enough for tests, and what is the same of it wherever it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from one_machine import here

from lsb.artifact import open_stage

SMALL = (
    "rounds=1",
    "trainer.batch_size=8",
    "data.pictures_per_digit=30",
    "data.first=24",
    "data.pool=32",
    "data.gold=16",
    "data.test=16",
)
"""Keys of a round, or of the units of a comparison."""
ROUND = (
    "-m",
    "launch.round",
    "experiment=tiny",
    "arms=[]",
    "controls=false",
    *SMALL,
)
SLURM = (
    "launcher=slurm",
    "launcher.tasks=2",
    "launcher.poll_seconds=0.5",
    "launcher.signal_seconds=20",
    "launcher.stages=[cache,embed,neighbours,train]",
    "launcher.resources.default.cpus=1",
    "launcher.resources.default.memory_gb=2",
)
RUN = Path("runs") / "tiny"


def round_here(folder: Path, epochs: int) -> None:
    """The round by this machine's own processes, in a new folder."""
    here(folder, *ROUND, f"trainer.epochs={epochs}")


def with_its_data(folder: Path, of: Path) -> None:
    """A new folder with the data of a round: all from the tokens on is to be made again."""
    for stage in (of / "runs" / "stages").glob("[ps]*-*"):
        shutil.copytree(stage, folder / "runs" / "stages" / stage.name)


def stages(folder: Path, *left_out: str) -> dict[str, str]:
    """Name of each finished stage -> hash of its contents."""
    found = {}
    for path in sorted((folder / "runs" / "stages").glob("*-*")):
        if path.is_dir() and path.name.split("-")[0] not in left_out:
            found[path.name] = open_stage(path).content
    return found


def summary(folder: Path, run: Path = RUN) -> Any:
    """The summary of a round, without what depends on the clock."""
    return _without_times(json.loads((folder / run / "summary.json").read_text()))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        clock = ("seconds", "epochs_to_pay")
        return {
            key: _without_times(entry)
            for key, entry in value.items()
            if not key.endswith("seconds") and key not in clock
        }
    return [_without_times(entry) for entry in value] if isinstance(value, list) else value
