"""What SLURM says of a job that has ended, as it is told with what to type."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launch.jobs.executor import ENDED, JobError, run_job
from launch.jobs.job import SHARDS, Job
from launch.jobs.launcher_config import SlurmConfig, launcher_config
from launch.slurm import executor
from launch.slurm.executor import SlurmExecutor


class Slurm:
    """Commands of a SLURM whose jobs all end in one way."""

    def __init__(self, job: Job, state: str, rest: str) -> None:
        self.job, self.state, self.rest = job, state, rest

    def __call__(self, *command: str, timeout: float = 1) -> subprocess.CompletedProcess[str]:
        attempts = self.job.attempts()
        lines = {
            "sbatch": f"{len(attempts)}\n",
            "squeue": "".join(f"{a.name}|7|0|{self.state}|{self.rest}\n" for a in attempts),
        }
        return subprocess.CompletedProcess(command, 0, lines.get(command[0], ""), "")


@pytest.fixture
def job(tmp_path: Path) -> Job:
    target = tmp_path / "stages" / "embed-1"
    return Job.create(
        tmp_path / "jobs" / "embed-1",
        stage="embed",
        kind=SHARDS,
        tasks=1,
        shards=["a"],
        target=target,
    )


@pytest.mark.parametrize(
    ("state", "rest", "told"),
    [
        (
            "OUT_OF_MEMORY",
            "(OutOfMemory)",
            "OUT_OF_MEMORY (give each more: ++launcher.resources.embed.memory_gb=<GB>)",
        ),
        ("FAILED", "(NonZeroExitCode)", "FAILED (NonZeroExitCode)"),
        ("TIMEOUT", "(TimeLimit)", "TIMEOUT (TimeLimit)"),
        ("FAILED", "(None)", "FAILED"),
    ],
)
def test_how_a_task_ended_is_told_with_its_remedy(
    job: Job, state: str, rest: str, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "run_slurm", Slurm(job, state, rest))
    config = launcher_config({"name": "slurm"})
    assert isinstance(config, SlurmConfig)
    slurm = SlurmExecutor(config)
    with pytest.raises(JobError) as error:
        run_job(slurm, job, "code", retries=0, poll_seconds=0, say=print, remedy="<command>")
    assert f"task 0 of 1 failed: {told}; logs are in" in str(error.value)
    states = slurm.states(job, job.attempts())
    assert states is not None
    assert (states[0].state, states[0].reason) == (ENDED, told)
