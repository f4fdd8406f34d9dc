"""A round on a real SLURM to which things happen: it has to end as if nothing had.

    python tests/cluster/chaos.py --events 20 --seed 1        (`make chaos`)

Events are drawn by chance, one after another, and as many rounds are run as they need. Each round
must end with the stages, byte for byte, and the summary of the round of one machine. Prints a line
an event: who was hit, and how the work went on. Exit code 0, or 1 where a round differs.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from slurm_cluster import Cluster, what_is_missing
from small_round import ROUND, RUN, SLURM, round_here, stages, summary, with_its_data

from launch.jobs.heartbeat import last_beats
from launch.jobs.job import Job, jobs_below
from lsb.console import console

ANY = ("cache", "embed", "neighbours", "train")
EPOCHS = 60
"""Enough for a training to be met while it takes steps."""
LONG_EPOCHS = 300
"""Enough for it to meet its time limit, which SLURM counts in minutes."""
PATIENCE = 600.0
"""Seconds without an event, or the end of a round, until it counts as stuck."""
PER_ROUND = 5
"""Events that happen to one round: with more, all of the others would meet its long training."""


@dataclass(frozen=True)
class Target:
    """A task that runs.

    Attributes:
        job: whose task.
        task: its number.
        record: what it told as it was started: attempt, host, pid, job, time.
    """

    job: Job
    task: int
    record: dict[str, Any]

    @property
    def host(self) -> str:
        """Where."""
        return str(self.record["host"])

    @property
    def slurm_id(self) -> str:
        """Of its job, or of its place in an array."""
        return str(self.record["job"])

    def __str__(self) -> str:
        """E.g. "embed task 1 on node2"."""
        return f"{self.job.stage} task {self.task} on {self.host}"


@dataclass(frozen=True)
class Event:
    """Something that happens.

    Attributes:
        name: for people.
        stages: whose running tasks it may meet.
        strike: does it; returns what was done.
        steps: whether the task has to be a training that takes steps.
        restarts: whether the task it meets has to begin again. One that was started a moment
            before the controller is killed may, too: SLURM had not yet written it down.
    """

    name: str
    stages: tuple[str, ...]
    strike: Callable[[Cluster, Target], str]
    steps: bool = False
    restarts: bool = True


def _cut_power(cluster: Cluster, target: Target) -> str:
    cluster.cut(target.host)
    return f"power of {target.host} cut"


def _preempt(cluster: Cluster, target: Target) -> str:
    """Have SLURM take the node for a job of a higher partition: it sends USR2, then waits."""
    code, out, err = cluster.run(
        "sbatch",
        "--parsable",
        "--partition=high",
        "--exclusive",
        f"--nodelist={target.host}",
        "--output=/dev/null",
        "--wrap=sleep 2",
        cwd=cluster.base,
    )
    assert code == 0, err
    return f"{target.host} given to job {out.strip()} of partition high"


def _signal(cluster: Cluster, target: Target) -> str:
    cluster.run("scancel", "--batch", "--signal=USR2", target.slurm_id, cwd=cluster.base)
    return f"USR2 to job {target.slurm_id}"


def _kill(cluster: Cluster, target: Target) -> str:
    pid = target.record["pid"]
    cluster.start("kill", "-KILL", pid, cwd=cluster.base, host=target.host).communicate()
    return f"kill -9 of {pid} on {target.host}"


def _restart_controller(cluster: Cluster, target: Target) -> str:
    cluster.run("pkill", "-KILL", "-x", "slurmctld", cwd=cluster.base)
    time.sleep(3)
    cluster.up()
    return "slurmctld killed, started again after 3 s"


def _kill_command(cluster: Cluster, target: Target) -> str:
    cluster.kill("launch.round")
    return "kill -9 of the command, which was given again"


def _end_time(cluster: Cluster, target: Target) -> str:
    id = target.slurm_id
    code, _, err = cluster.run("scontrol", "update", f"JobId={id}", "TimeLimit=1", cwd=cluster.base)
    assert code == 0, err
    return f"time limit of job {id} set to a minute"


POWER = Event("power cut", ("embed", "cache", "train"), _cut_power)
PREEMPTED = Event("preempted by another job", ("train",), _preempt, steps=True)
SIGNAL = Event("USR2", ("train",), _signal, steps=True)
KILLED = Event("kill -9 of a task", ANY, _kill)
CONTROLLER = Event("controller restart", ANY, _restart_controller, restarts=False)
COMMAND = Event("kill -9 of the command", ANY, _kill_command, restarts=False)
TIME = Event("time limit", ("train",), _end_time, steps=True)
LONG = (POWER, PREEMPTED, SIGNAL, KILLED, CONTROLLER, COMMAND, TIME)


def at(event: Event, *stages: str) -> Event:
    """The event, where it meets tasks of some stages only."""
    return replace(event, stages=stages)


@dataclass
class Blow:
    """An event that has happened.

    Attributes:
        event: which.
        target: whom it met.
        did: what was done.
        time: when, on the clock of this process.
        went_on: how the work did, once it has.
        after: seconds until then.
    """

    event: Event
    target: Target
    did: str
    time: float
    went_on: str = ""
    after: float = 0.0

    def look(self) -> None:
        """See whether the work goes on."""
        job, task = self.target.job, self.target.task
        told = job.told("started", task)
        if told != self.target.record:
            where = "" if told["host"] == self.target.host else f" on {told['host']}"
            by = "requeued" if told["attempt"] == self.target.record["attempt"] else "submitted"
            self.went_on = f"{by} again{where}"
        elif job.finished or task not in job.missing():
            self.went_on = "ended before it felt it" if self.event.restarts else "went on"
        self.after = time.monotonic() - self.time


@dataclass
class Chaos:
    """Rounds on a cluster, with events to come.

    Args:
        cluster: that makes them.
        reference: folder of the undisturbed round of this machine.
        events: to come, in order.
        say: called with what happens.
        delay: seconds to wait before an event, given the event.
        per_round: how many happen to one round at most.
    """

    cluster: Cluster
    reference: Path
    events: list[Event]
    say: Callable[[str], None]
    delay: Callable[[Event], float] = lambda event: 0.0
    per_round: int = PER_ROUND
    blows: list[Blow] = field(default_factory=list)

    def round(self, folder: Path, epochs: int = EPOCHS) -> list[Job]:
        """Run one round in a new folder, disturbed as long as there are events; returns its jobs.

        Raises:
            AssertionError: it ended badly, or got stuck, or differs from the reference.
        """
        with_its_data(folder, self.reference)
        command = (sys.executable, *ROUND, f"trainer.epochs={epochs}", *SLURM)
        first = len(self.blows)
        with open(folder / "command.log", "ab") as log:

            def start() -> subprocess.Popen[str]:
                return self.cluster.start(*command, "launcher.retries=5", cwd=folder, output=log)

            process, since = start(), time.monotonic()
            while True:
                time.sleep(0.1)
                code = process.poll()
                if code == -9 or code == 137:
                    process = start()
                elif code is not None:
                    break
                if self._advance(folder, self.blows[first:]):
                    since = time.monotonic()
                if time.monotonic() - since > PATIENCE:
                    process.kill()
                    raise AssertionError(f"nothing happens any more: see {folder}/command.log")
        for blow in self.blows[first:]:
            if not blow.went_on:
                blow.look()
        self.cluster.up()  # what was cut last
        said = (folder / "command.log").read_text()
        assert code == 0, said
        assert stages(folder, "neighbours") == stages(self.reference), "other bytes"
        assert summary(folder) == summary(self.reference), "another summary"
        return jobs_below(folder / RUN / "jobs")

    def _advance(self, folder: Path, blows: Sequence[Blow]) -> bool:
        """Look after the last event, or let the next one happen; returns whether anything did."""
        waiting = [blow for blow in blows if not blow.went_on]
        for blow in waiting:
            blow.look()
            if blow.went_on:
                self.say(f"  {blow.target}: {blow.went_on} after {blow.after:.0f} s")
                if blow.event.strike is _cut_power:
                    self.cluster.up()
                return True
        if waiting or not self.events or len(blows) >= self.per_round:
            return False
        event = self.events[0]
        target = next(running(folder / RUN / "jobs", event), None)
        if target is None:
            return False
        time.sleep(self.delay(event))
        if target.job.told("started", target.task) != target.record or target.job.finished:
            return False
        self.events.pop(0)
        begun = time.monotonic()
        blow = Blow(event, target, event.strike(self.cluster, target), begun)
        self.blows.append(blow)
        self.say(f"{event.name}: {target}: {blow.did}")
        return True


def running(jobs: Path, event: Event) -> Iterator[Target]:
    """Tasks that run now, and that an event may meet."""
    for job in jobs_below(jobs):
        if job.stage not in event.stages or job.finished:
            continue
        missing = job.missing()
        for task in job.busy:
            record = job.told("started", task)
            ended = [job.told(kind, task).get("attempt") for kind in ("done", "failed")]
            if not record or task not in missing or record["attempt"] in ended:
                continue
            if event.steps and not any("step" in beat.what for beat in last_beats(job, task)):
                continue
            yield Target(job, task, record)


def table(blows: Sequence[Blow]) -> Table:
    """The events, and how the work went on."""
    made = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("event", "met", "what was done", "the work", "after"):
        made.add_column(name, justify="right" if name == "after" else "left", no_wrap=True)
    for blow in blows:
        made.add_row(
            blow.event.name, str(blow.target), blow.did, blow.went_on, f"{blow.after:.0f} s"
        )
    return made


def main(arguments: list[str] | None = None) -> int:
    """Command line entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--events", type=int, default=20, help="how many (20)")
    parser.add_argument("--seed", type=int, default=1, help="of chance (1)")
    options = parser.parse_args(arguments)
    if options.events < 1:
        parser.error(f"--events is {options.events}: give at least 1")
    missing = what_is_missing()
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    chance = random.Random(options.seed)
    # Each kind at least once, where there is room.
    drawn = [LONG[number % len(LONG)] for number in range(options.events)]
    chance.shuffle(drawn)
    out = console()
    with tempfile.TemporaryDirectory(prefix="vlmae-chaos-") as base:
        cluster = Cluster(Path(base) / "c")
        cluster.base.mkdir()
        try:
            cluster.up()
            out.print("the undisturbed round, on this machine")
            round_here(Path(base) / "here", LONG_EPOCHS)
            chaos = Chaos(
                cluster,
                Path(base) / "here",
                drawn,
                out.print,
                delay=lambda event: chance.uniform(0, 3),
            )
            number = 0
            while chaos.events:
                number += 1
                out.print(f"round {number}, {len(chaos.events)} events to come")
                before = len(chaos.events)
                chaos.round(Path(base) / f"round-{number}", LONG_EPOCHS)
                out.print("  ended as the undisturbed one")
                assert len(chaos.events) < before, "a round without an event"
            out.print(table(chaos.blows), soft_wrap=True)
            out.print(f"{options.events} events in {number} round(s): all ended as undisturbed")
        except AssertionError as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        finally:
            cluster.down()
    return 0


if __name__ == "__main__":
    sys.exit(main())
