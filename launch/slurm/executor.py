"""Tasks as jobs of a SLURM cluster: one array for the tasks of a stage, one job for a training.

A job is known by its name, which is unique and written down before it is submitted: a command that
is killed at any moment finds its jobs again, and job ids may start anew on a fresh cluster.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from pathlib import Path

from launch.jobs.executor import ENDED, PENDING, RUNNING, JobError, JobUntriedError, TaskState
from launch.jobs.job import RANKS, Attempt, Job
from launch.jobs.launcher_config import SlurmConfig
from launch.slurm.commands import run_slurm
from launch.slurm.script import render_script
from lsb.artifact import write_bytes

ENDED_STATES = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)
"""SLURM's states of jobs that do nothing more; in all others they run, wait or are between both."""
REMEDIES = {"OUT_OF_MEMORY": "give each more: ++launcher.resources.{stage}.memory_gb=<GB>"}
"""State in which a job ended -> what it takes to end well."""
HELD = ("requeued held", "JobHoldMaxRequeue")
"""Why a job waits for ever that SLURM could not start on a node, as when the controller came back
with an older state than the node's. Whoever owns it may release it, and it starts elsewhere."""
LIMIT = re.compile(r"^MaxArraySize\s*=\s*(\d+)", re.MULTILINE)


class SlurmExecutor:
    """See `launch.jobs.executor.Executor`.

    Args:
        config: resources and set-up of jobs.

    Raises:
        JobError: there is no SLURM here, when one is asked.
    """

    name = "slurm"

    def __init__(self, config: SlurmConfig) -> None:
        self.config = config
        self.trouble = ""

    def submit(
        self, job: Job, tasks: Sequence[int], code: str, after: Sequence[Attempt] = ()
    ) -> list[Attempt]:
        """One job for the ranks of a training, else arrays no longer than the cluster allows."""
        submitted = []
        for offset, group in self._arrays(job, tasks):
            attempt = job.new_attempt(self.name, group, code, offset)
            script = self._script(job, attempt, after)
            file = job.folder / "attempts" / f"{attempt.number:03d}.sh"
            write_bytes(file, script.encode())
            done = run_slurm("sbatch", "--parsable", str(file.absolute()))
            if done.returncode:
                said = " ".join((done.stderr or done.stdout).split())
                raise JobUntriedError(
                    f"sbatch refused {file}: {said}; mend launcher.resources (python -m "
                    "launch.doctor with the same keys says what), then give the same command again"
                )
            submitted.append(job.submitted(attempt, done.stdout.strip().split(";")[0]))
        return submitted

    def states(self, job: Job, attempts: Sequence[Attempt]) -> dict[int, TaskState] | None:
        """What squeue says of each task's last attempt; tasks that it has forgotten have ended."""
        mine = [attempt for attempt in attempts if attempt.executor == self.name]
        found = {task: TaskState(ENDED, "GONE") for a in attempts for task in a.tasks}
        if not mine:
            return found
        done = run_slurm(
            "squeue",
            "--noheader",
            "--array",
            "--states=all",
            f"--name={','.join(attempt.name for attempt in mine)}",
            "--format=%j|%F|%K|%T|%R",
        )
        said = " ".join(done.stderr.split()) or "squeue failed"
        self.trouble = said if done.returncode else ""
        if self.trouble:
            return None
        known = {attempt.name: attempt for attempt in mine}
        numbers = dict.fromkeys(found, 0)
        for line in done.stdout.splitlines():
            name, id, index, state, rest = line.strip().split("|", 4)
            attempt = known.get(name)
            if attempt is None:
                continue
            place = index.isdecimal()
            task = int(index) + attempt.offset if place else 0
            if attempt.number >= numbers.get(task, 0):
                numbers[task] = attempt.number
                found[task] = _state(state, f"{id}_{index}" if place else id, rest, job.stage)
        return found

    def release(self, state: TaskState) -> bool:
        """Release one task by its id; one that cannot be released now is tried at the next look."""
        return run_slurm("scontrol", "release", state.id).returncode == 0

    def kill(self, state: TaskState) -> None:
        """Cancel one task by its id; SLURM kills what does not end by itself."""
        run_slurm("scancel", state.id)

    def cancel(self, job: Job, attempts: Sequence[Attempt]) -> None:
        """Cancel jobs by name, whether they wait or run."""
        for attempt in attempts:
            if attempt.executor == self.name:
                done = run_slurm("scancel", f"--name={attempt.name}")
                if done.returncode:
                    raise JobError(f"scancel failed: {' '.join(done.stderr.split())}")

    def _script(self, job: Job, attempt: Attempt, after: Sequence[Attempt]) -> str:
        folder = job.folder.absolute()
        return render_script(
            self.config,
            name=attempt.name,
            stage=job.stage,
            kind=job.kind,
            folder=folder,
            code=folder.parent / attempt.code,
            cwd=Path.cwd(),
            attempt=attempt.number,
            tasks=attempt.tasks,
            offset=attempt.offset,
            after=[earlier.id for earlier in after],
        )

    def _arrays(self, job: Job, tasks: Sequence[int]) -> list[tuple[int, list[int]]]:
        """Tasks by array, with what their numbers have more than the indices in it."""
        if job.kind == RANKS:
            return [(0, list(tasks))]
        size = self._largest_array
        groups = groupby(sorted(tasks), key=lambda task: task // size)
        return [(number * size, list(group)) for number, group in groups]

    @cached_property
    def _largest_array(self) -> int:
        """Array indices lie below the cluster's MaxArraySize."""
        found = LIMIT.search(run_slurm("scontrol", "show", "config").stdout)
        return max(1, int(found.group(1))) if found else 1000


def _state(state: str, id: str, rest: str, stage: str) -> TaskState:
    """A line of squeue: `rest` is where it runs, or in brackets why it does not."""
    reason = rest.strip("()") if rest.startswith("(") else ""
    if state in ENDED_STATES:
        if state in REMEDIES:
            reason = REMEDIES[state].format(stage=stage)
        more = f" ({reason})" if reason not in ("", "None", state) else ""
        return TaskState(ENDED, f"{state}{more}", id)
    if state in ("RUNNING", "COMPLETING"):
        return TaskState(RUNNING, id=id, place=rest if not reason else "")
    return TaskState(PENDING, reason or state, id, held=any(words in reason for words in HELD))
