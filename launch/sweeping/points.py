"""The points of a sweep: each a training, known by the stage that it makes.

A point that was trained before, by whatever command, is found by its stage; two that come to the
same training are trained once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from launch.jobs.launcher_config import LauncherConfig
from launch.stages.run_folder import RunFolder
from launch.sweeping.metric import SweepMetric
from launch.sweeping.space import Space
from lsb.artifact import Stage, fingerprint, waiting_for_others
from vlmae.config import as_dict, build, compose_config
from vlmae.data.token_source import TokenSource
from vlmae.growing.config import GrowingConfig
from vlmae.ranks import Ranks
from vlmae.train import SOURCE, token_source, training_of
from vlmae.training import Training, train, train_directory

CONFIG = "launch_sweep"


@dataclass(frozen=True)
class Point:
    """One training of a sweep.

    Attributes:
        number: from 0, in the order of the sweep.
        choice: key -> value of what is swept over, as on the command line.
        stage: name of the stage that it makes.
        training: ready to run.
    """

    number: int
    choice: dict[str, str]
    stage: str
    training: Training


class Planner:
    """Makes points out of what is swept over; data and whitening are made as it goes.

    Args:
        space: of the command line.
        config: where trainings run, and on how many ranks.
        root: folder of all stages.
        metric: that every training has to have.
        folder: of the run, which keeps the stages of its points.
        say: called with what is read.
    """

    def __init__(
        self,
        space: Space,
        config: LauncherConfig,
        root: Path,
        metric: SweepMetric,
        folder: RunFolder,
        say: Callable[[str], None],
    ) -> None:
        self.space, self.root, self.metric, self.folder, self.say = space, root, metric, folder, say
        self.ranks = Ranks(0, config.world, config.ranks)
        self._sources: dict[str, TokenSource] = {}
        self._tables: dict[str, pa.Table] = {}

    def point(self, number: int, choice: Mapping[str, str]) -> Point:
        """The point of some values.

        Raises:
            ValueError: one of them is wrong; names the point.
        """
        values = point_config(self.space, number, choice)
        try:
            if build("growing", GrowingConfig, values["growing"]).on:
                raise ValueError(
                    "a sweep compares trainings on one set of labels: set growing=none, or give "
                    "each training that grows to launch.train"
                )
            training = training_of(values, Ranks(), partial(self._source, values))
            training = replace(
                training,
                ranks=self.ranks,
                labelled=self._shared([values["labels"], training.tasks], training.labelled),
                validation=self._shared(
                    [values["validation"], training.tasks], training.validation
                ),
            )
            self.metric.require_known(training.tasks)
            stage = train_directory(self.root, training).name
        except ValueError as error:  # without a cause, which would be told in place of the point
            raise ValueError(f"point {number} ({_told(choice)}): {error}") from None
        self.folder.use(training.whitened)
        self.folder.keep(stage)
        return Point(number, dict(choice), stage, training)

    def _source(self, values: Mapping[str, Any]) -> TokenSource:
        """Opened once: it may be that all of its files are read for their hashes."""
        key = fingerprint([values[group] for group in SOURCE])
        if key not in self._sources:
            self._sources[key] = token_source(values, Ranks(), self.say)
        return self._sources[key]

    def _shared(self, of: list[Any], table: pa.Table) -> pa.Table:
        """One object for all points that name the same table: they are pickled together."""
        return self._tables.setdefault(fingerprint(of), table)


def point_config(space: Space, number: int, choice: Mapping[str, str]) -> dict[str, Any]:
    """The composed config of a point, as plain containers.

    Raises:
        ValueError: it cannot be composed; names the point.
    """
    try:
        values = cast(dict[str, Any], as_dict(compose_config(CONFIG, space.point(choice))))
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(f"point {number} ({_told(choice)}): {error}") from error
    # Jobs may be submitted again from another folder.
    return {**values, "runs": str(Path(values["runs"]).absolute())}


def train_point(root: Path, trainings: list[Training], number: int) -> Stage:
    """What a task runs: one of the trainings. Another sweep may be at the same one."""
    with waiting_for_others():
        return train(root, trainings[number])


def train_point_on_ranks(root: Path, training: Training) -> Stage:
    """What every rank of a training runs; see `train_point`. Collective."""
    ranks = Ranks.from_environment()
    with waiting_for_others(), ranks.together():
        return train(root, replace(training, ranks=ranks))


def _told(choice: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in choice.items())
