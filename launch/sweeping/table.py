"""What became of the points of a sweep: `runs/<name>/sweep.json`, and the same for people.

    {"format": "vlmae-sweep", "version": 1, "metric": ..., "direction": ..., "sampler": ...,
     "best": number of a point, "points": [{"number", "choice", "stage", "state", "metric",
     "error"}, ...]}

Nothing in it depends on where the points were trained. A stage that is there is finished, whatever
the file says; `launch.status` looks anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.console import Group
from rich.table import Table

from launch.jobs.executor import ENDED, RUNNING, TaskState
from launch.jobs.job import RANKS, TRAININGS, Job
from launch.sweeping.config import MAXIMIZE
from launch.sweeping.metric import SweepMetric
from lsb.artifact import read_json, write_json

SWEEP_FILE = "sweep.json"
FORMAT = "vlmae-sweep"
VERSION = 1
FINISHED, AT_WORK, FAILED, WAITING = "finished", "running", "failed", "waiting"
JobStates = Sequence[tuple[Job, Mapping[int, TaskState]]]


@dataclass(frozen=True)
class Outcome:
    """How a point stands.

    Attributes:
        number: of the point.
        choice: key -> value of what is swept over.
        stage: name of the stage that it makes.
        state: `FINISHED`, `AT_WORK`, `FAILED` or `WAITING`.
        metric: of a finished one; None where it is undefined.
        error: of a failed one, in one line.
    """

    number: int
    choice: dict[str, str]
    stage: str
    state: str = WAITING
    metric: float | None = None
    error: str = ""


@dataclass(frozen=True)
class SweepRecord:
    """What sweep.json holds.

    Attributes:
        metric: name of what points are compared by.
        direction: "maximize" or "minimize".
        sampler: who chose the points.
        points: in order.
    """

    metric: str
    direction: str
    sampler: str
    points: list[Outcome]

    @property
    def best(self) -> Outcome | None:
        """The best finished point, the first of equals."""
        sign = 1 if self.direction == MAXIMIZE else -1
        measured = [one for one in self.points if one.metric is not None]
        return max(measured, key=lambda one: sign * (one.metric or 0.0), default=None)

    def write(self, run: Path) -> None:
        """Write it into the folder of the run."""
        best = self.best
        head = {"format": FORMAT, "version": VERSION, "metric": self.metric}
        head |= {"direction": self.direction, "sampler": self.sampler}
        number = None if best is None else best.number
        points = [asdict(one) for one in self.points]
        write_json(run / SWEEP_FILE, {**head, "best": number, "points": points})

    @classmethod
    def read(cls, run: Path) -> SweepRecord | None:
        """That of a run; None where it is no sweep.

        Raises:
            ValueError: it is of another format or version.
        """
        file = run / SWEEP_FILE
        if not file.is_file():
            return None
        held = read_json(file)
        found = (held.get("format"), held.get("version")) if isinstance(held, dict) else ("", "")
        if found != (FORMAT, VERSION):
            raise ValueError(
                f"{file} has format {found[0]!r} version {found[1]!r}, this release reads "
                f"{FORMAT!r} version {VERSION}: delete it and give the command of the sweep again"
            )
        points = [Outcome(**point) for point in held["points"]]
        return cls(held["metric"], held["direction"], held["sampler"], points)

    def looked_at(self, stages: Path, jobs: JobStates) -> SweepRecord:
        """The same points as they stand now.

        Args:
            stages: folder of all stages.
            jobs: of the run, with the states of their tasks.
        """
        known = _tasks(jobs)
        metric = SweepMetric.parse(self.metric)
        points = [_outcome(one, stages / one.stage, metric, known) for one in self.points]
        return SweepRecord(self.metric, self.direction, self.sampler, points)


Known = Mapping[str, Sequence[tuple[Job, int, TaskState | None]]]


def _tasks(jobs: JobStates) -> Known:
    """Stage -> the tasks that were submitted to make it."""
    known: dict[str, list[tuple[Job, int, TaskState | None]]] = {}
    for job, states in jobs:
        submitted = {task for attempt in job.attempts() for task in attempt.tasks}
        if job.kind == RANKS and submitted:
            known.setdefault(job.target.name, []).append((job, 0, states.get(0)))
        if job.kind == TRAININGS:
            for task in sorted(submitted):
                known.setdefault(job.shards[task], []).append((job, task, states.get(task)))
    return known


def _outcome(point: Outcome, stage: Path, metric: SweepMetric, known: Known) -> Outcome:
    now = Outcome(point.number, point.choice, point.stage)
    if stage.is_dir():
        return Outcome(**{**asdict(now), "state": FINISHED, "metric": metric.of(stage)})
    tasks = known.get(point.stage, [])
    active = [state for _, _, state in tasks if state is not None and state.state != ENDED]
    if active:
        running = any(state.state == RUNNING for state in active)
        return Outcome(**{**asdict(now), "state": AT_WORK if running else WAITING})
    if not tasks:
        return now
    job, task, state = tasks[-1]
    told = ": ".join(filter(None, [state.reason if state else "", job.why(task)]))
    return Outcome(**{**asdict(now), "state": FAILED, "error": told or "without a word"})


def sweep_page(record: SweepRecord) -> Group:
    """The table for people: what differs, how it stands, the metric, errors, the best."""
    keys = list(dict.fromkeys(key for one in record.points for key in one.choice))
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("point", justify="right")
    for key in (*keys, "state"):
        table.add_column(key, no_wrap=True)
    table.add_column(record.metric, justify="right", no_wrap=True)
    best = record.best
    for one in record.points:
        value = "" if one.metric is None else f"{one.metric:.4f}"
        if one.state == FINISHED and one.metric is None:
            value = "undefined"
        mark = " *" if best is not None and one.number == best.number else "  "
        chosen = (one.choice.get(key, "") for key in keys)
        table.add_row(str(one.number), *chosen, one.state, value + mark)
    errors = [f"point {one.number}: {one.error}" for one in record.points if one.error]
    counts = [
        f"{sum(one.state == state for one in record.points)} {state}"
        for state in (FINISHED, AT_WORK, WAITING, FAILED)
    ]
    foot = f"{len(record.points)} points: {', '.join(counts)}"
    if best is not None:
        told = " ".join(f"{key}={value}" for key, value in best.choice.items())
        foot += (
            f"; best: point {best.number}, {told}, {record.metric} {best.metric:.4f}, {best.stage}"
        )
    return Group(table, *errors, foot)
