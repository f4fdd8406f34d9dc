"""Trainings over several values: `python -m launch.sweep fusion=late,film model.dropout=0.1,0.3`.

The keys are those of launch.train; what is listed in Hydra's grammar (choices, range, glob,
interval) is swept over. Every point is a task of one array, or of as many processes here. A point
that was trained before is not trained again, and one that fails stops no other. Killed and given
again, the command finds its jobs. Writes runs/<name>/sweep.json.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from hydra.errors import HydraException
from omegaconf import DictConfig

from launch.jobs.executor import JobError
from launch.jobs.job import RANKS, TRAININGS
from launch.jobs.launch_record import JOBS, Asked
from launch.jobs.launcher import Launcher
from launch.jobs.launcher_config import TRAIN, LauncherConfig, SlurmConfig, launcher_config
from launch.jobs.launcher_lock import only_one
from launch.stages.launched_run import NO_SCRIPTS, print_script, read_flags
from launch.stages.run_folder import RunFolder, run_name
from launch.sweeping.config import GRID, SweepConfig
from launch.sweeping.metric import SweepMetric
from launch.sweeping.optuna import BATCH, train_trials
from launch.sweeping.points import CONFIG, Planner, Point, point_config
from launch.sweeping.run import SWEEP, SweepRun
from launch.sweeping.space import Space, read_space
from launch.sweeping.table import SWEEP_FILE, Outcome, SweepRecord, sweep_page
from lsb.console import console
from lsb.delegation import delegated
from lsb.ledger import require_no_password
from vlmae.config import as_dict, build, checked, command

MULTIRUN = ("-m", "--multirun")
_GIVEN: list[tuple[Space, list[str]]] = []  # what the command line sweeps over, which Hydra refuses


@command(CONFIG)
def _sweep(config: DictConfig) -> None:
    """Train every point that is not there yet, then print the table."""
    space, arguments = _GIVEN[0]
    values = cast(dict[str, Any], as_dict(config))
    chosen = build("sweep", SweepConfig, values["sweep"])
    launcher = launcher_config(values["launcher"])
    name = run_name(checked("name", str, values["name"]))
    metric = SweepMetric.parse(chosen.metric)
    run = Path(values["runs"]) / name
    _require_no_password(space, values)  # before the launch is recorded
    out = console()
    for key in chosen.without_effect:
        out.print(f"warning: {key} has no effect on sweep.sampler={chosen.sampler}")
    if launcher.dry_run:
        _print_plan(space, launcher, chosen, run)
        return
    say = partial(out.print, soft_wrap=True)
    asked = Asked(values, arguments)
    with only_one(run, launcher):
        root = Path(values["runs"]) / "stages"
        folder = RunFolder(run, {"sweep": True})
        made_by = Launcher(launcher, run / JOBS, say, "give the same command again", asked)
        made_by.code()
        sweep = SweepRun(run, root, made_by, chosen)
        with delegated(made_by.delegate):
            planner = Planner(space, launcher, root, metric, folder, say)
            if chosen.sampler == GRID:
                points, errors = _train_grid(sweep, planner, space)
            else:
                points, errors = train_trials(sweep, planner, space, chosen)
        say(sweep_page(sweep.record(points)))
    say(str(run / SWEEP_FILE))
    if errors:
        raise errors[0]


def _require_no_password(space: Space, values: Mapping[str, Any]) -> None:
    """Refuse a password in `growing.ledger`, given once or swept over.

    Raises:
        ValueError: there is one.
    """
    swept = [one.values for one in space.swept if one.key.lstrip("+") == "growing.ledger"]
    for ledger in (values["growing"].get("ledger"), *itertools.chain(*swept)):
        if ledger:
            require_no_password("growing.ledger", str(ledger).strip("\"'"))


def _train_grid(
    sweep: SweepRun, planner: Planner, space: Space
) -> tuple[list[Point], list[JobError]]:
    """Train every combination; see `launch.sweeping.optuna.train_trials`."""
    choices = list(enumerate(space.grid()))
    for number, choice in choices:  # before data are prepared for the first
        point_config(space, number, choice)
    points = [planner.point(number, choice) for number, choice in choices]
    sweep.record(points)
    return points, sweep.train(points)


def _print_plan(space: Space, launcher: LauncherConfig, chosen: SweepConfig, run: Path) -> None:
    """Print the points, each composed, and the script that would be submitted."""
    tasks = chosen.batch or BATCH
    if chosen.sampler == GRID:
        choices = list(enumerate(space.grid()))
        for number, choice in choices:
            point_config(space, number, choice)
        asked = [Outcome(number, choice, "") for number, choice in choices]
        page = SweepRecord(chosen.metric, chosen.direction, chosen.sampler, asked)
        console().print(sweep_page(page), soft_wrap=True)
        tasks = len(choices)
    if not isinstance(launcher, SlurmConfig):
        print(NO_SCRIPTS)
    elif launcher.world == 1:
        print_script(launcher, TRAIN, run, kind=TRAININGS, name=SWEEP, tasks=tasks)
    else:
        print_script(launcher, TRAIN, run, kind=RANKS, name=TRAIN, tasks=1)


def main() -> None:
    """Take what is swept over from the command line, and hand one point of it to Hydra."""
    read_flags()
    sys.argv[1:] = [argument for argument in sys.argv[1:] if argument not in MULTIRUN]
    for argument in sys.argv[1:]:
        if argument.startswith(("--config", "-cd", "-cp", "-cn")):
            print(
                f"error: launch.sweep composes every point from conf, and takes no {argument}: put "
                "your file into its group there, as conf/launcher/mine.yaml",
                file=sys.stderr,
            )
            raise SystemExit(2)
    if not any(argument.startswith("-") for argument in sys.argv[1:]):  # else Hydra's own: --help
        arguments = sys.argv[1:]
        try:
            space = read_space(arguments)
        except (ValueError, HydraException) as error:
            refused = getattr(error, "override", "")  # Hydra's words do not always name it
            line = " ".join(f"{refused} {error}".split())
            print(f"error: {line}", file=sys.stderr)
            raise SystemExit(2) from None
        _GIVEN.append((space, arguments))
        sys.argv[1:] = space.first
    _sweep()


if __name__ == "__main__":
    main()
