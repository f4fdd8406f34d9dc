"""Points that Optuna chooses, in batches: `sweep.sampler=optuna`.

The study lies in `runs/<name>/study.sqlite`, whole trials only. The sampler has no state of its
own: that of trial n is seeded by (sweep.seed, n) and sees the trials before it, so that a command
that was killed anywhere asks for the points of one that was not.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import URL

from launch.jobs.executor import JobError, JobUntriedError
from launch.stages.run_folder import differences
from launch.sweeping.config import SweepConfig
from launch.sweeping.points import Planner, Point
from launch.sweeping.run import SweepRun
from launch.sweeping.space import Space, Swept, number_text
from launch.sweeping.table import FAILED, FINISHED
from lsb.artifact import fingerprint

STUDY_FILE = "study.sqlite"
TRIALS, BATCH, SEED = 20, 4, 0
MADE_OF = "vlmae"
STAGE = "stage"


class Trials:
    """The trials of a study.

    Args:
        run: folder of the run.
        space: what is swept over.
        config: metric, direction and seed, which a study keeps.

    Raises:
        ValueError: Optuna is not installed, or the study is of another sweep.
    """

    def __init__(self, run: Path, space: Space, config: SweepConfig) -> None:
        self._optuna = _import_optuna()
        self._space, self._config = space, config
        self._distributions = {one.key: self._distribution(one) for one in space.swept}
        file = run / STUDY_FILE
        url = URL.create("sqlite", database=str(file.absolute()))
        self._study = self._optuna.create_study(
            storage=url.render_as_string(),
            study_name=run.name,
            direction=config.direction,
            load_if_exists=True,
        )
        made_of = {
            "metric": config.metric,
            "direction": config.direction,
            "seed": config.seed or SEED,
            **{one.key: repr(distribution) for one, distribution in self._of_keys()},
        }
        held = self._study.user_attrs.get(MADE_OF)
        if held is None:
            self._study.set_user_attr(MADE_OF, made_of)
        elif held != made_of:
            changed = "; ".join(differences(held, made_of)[:3])
            raise ValueError(
                f"{file} is a study of another sweep ({changed}): give this one another name with "
                "name=<name>; trainings that both have are made once"
            )

    def __len__(self) -> int:
        return len(self._study.trials)

    def choice(self, number: int) -> dict[str, str]:
        """Key -> value of a trial, as on the command line."""
        return self._told(self._study.trials[number].params)

    def stage(self, number: int) -> str:
        """Name of the stage that a trial was to make when it was asked for."""
        return str(self._study.trials[number].user_attrs[STAGE])

    def open(self) -> list[int]:
        """Numbers of the trials that nothing was told of."""
        state = self._optuna.trial.TrialState.RUNNING
        return [trial.number for trial in self._study.trials if trial.state == state]

    @property
    def any_finished(self) -> bool:
        """Whether a metric was told of some trial."""
        complete = self._optuna.trial.TrialState.COMPLETE
        return any(trial.state == complete for trial in self._study.trials)

    def ask(self) -> dict[str, Any]:
        """Parameters of the next trial; `add` makes it one."""
        number = len(self)
        seed = int(fingerprint([self._config.seed or SEED, number])[:8], 16)
        sampler = self._optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        # Asked beside the file, which so holds whole trials only.
        memory = self._optuna.create_study(direction=self._config.direction, sampler=sampler)
        memory.add_trials(self._study.trials)
        parameters: dict[str, Any] = memory.ask(self._distributions).params
        return parameters

    def told(self, parameters: Mapping[str, Any]) -> dict[str, str]:
        """Key -> value of parameters, as on the command line."""
        return self._told(parameters)

    def add(self, parameters: Mapping[str, Any], stage: str) -> None:
        """Record a trial that is about to be trained."""
        self._study.add_trial(
            self._optuna.trial.create_trial(
                state=self._optuna.trial.TrialState.RUNNING,
                params=dict(parameters),
                distributions=self._distributions,
                user_attrs={STAGE: stage},
            )
        )

    def tell(self, number: int, value: float | None) -> None:
        """Record the metric of a trial; None for one that failed, or has none."""
        if value is None:
            self._study.tell(number, state=self._optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(number, value)

    def _told(self, parameters: Mapping[str, Any]) -> dict[str, str]:
        return {one.key: _text(one, parameters[one.key]) for one in self._space.swept}

    def _of_keys(self) -> list[tuple[Swept, Any]]:
        return [(one, self._distributions[one.key]) for one in self._space.swept]

    def _distribution(self, one: Swept) -> Any:
        kinds = self._optuna.distributions
        if one.interval:
            if one.integer:
                return kinds.IntDistribution(int(one.low), int(one.high), log=one.log)
            return kinds.FloatDistribution(one.low, one.high, log=one.log)
        if len(one.numbers) < 2:
            return kinds.CategoricalDistribution(list(one.values))
        step = abs(one.numbers[1] - one.numbers[0])
        low, high = min(one.numbers), max(one.numbers)
        if all(isinstance(number, int) for number in one.numbers):
            return kinds.IntDistribution(low, high, step=step)
        # Sums of steps are off in the last digit, and Optuna wants whole ones.
        return kinds.FloatDistribution(round(low, 12), round(high, 12), step=round(step, 12))


def _text(one: Swept, value: Any) -> str:
    """A parameter as an override has it."""
    if one.interval:
        return number_text(value, one.integer)
    if len(one.numbers) < 2:
        return str(value)
    near = min(range(len(one.numbers)), key=lambda place: abs(one.numbers[place] - value))
    return one.values[near]


def train_trials(
    sweep: SweepRun, planner: Planner, space: Space, config: SweepConfig
) -> tuple[list[Point], list[JobError]]:
    """Ask, train and tell, batch by batch, until there are `sweep.trials`.

    Returns:
        All points, and what was wrong with those of this call that failed.

    Raises:
        ValueError: see `Trials`; or labels or data have changed since a trial.
        JobError: all of a batch failed, and no point of the study has finished yet: it may be that
            none can be trained. They are not told, and trained again by the next command.
        JobUntriedError: some were refused or cancelled, others may be under way. None of the batch
            is told, and the next command goes on with all of it.
    """
    trials = Trials(sweep.run, space, config)
    count, batch = config.trials or TRIALS, config.batch or BATCH
    points: list[Point] = []
    failures: list[JobError] = []
    for start in range(0, count, batch):
        end = min(start + batch, count)
        while len(points) < end:
            number = len(points)
            if number < len(trials):
                point = planner.point(number, trials.choice(number))
                if point.stage != trials.stage(number):
                    raise ValueError(
                        f"labels, data or other keys have changed since trial {number} of "
                        f"{sweep.run / STUDY_FILE}: set them back, or give this sweep another "
                        "name with name=<name>"
                    )
            else:
                parameters = trials.ask()
                point = planner.point(number, trials.told(parameters))
                trials.add(parameters, point.stage)
            points.append(point)
        opened = [points[number] for number in trials.open() if number < end]
        sweep.record(points)
        errors = sweep.train(opened)
        told = {one.number: one for one in sweep.record(points).points}
        states = {told[point.number].state for point in opened}
        # All of a batch is told, or none: untold, the next command finds its jobs by its points.
        untried = [error for error in errors if isinstance(error, JobUntriedError)]
        if untried or (errors and not states <= {FINISHED, FAILED}):
            raise (untried or errors)[0]
        if opened and states == {FAILED} and not trials.any_finished:
            raise errors[0]
        failures += errors
        for point in opened:
            one = told[point.number]
            trials.tell(point.number, one.metric if one.state == FINISHED else None)
    return points, failures


def _import_optuna() -> Any:
    try:
        import optuna
    except ModuleNotFoundError as error:
        raise ValueError(
            "sweep.sampler=optuna needs Optuna: pip install 'vlmae[sweep]', or train every point "
            "with sweep.sampler=grid"
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
