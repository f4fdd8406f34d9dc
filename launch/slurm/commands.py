"""SLURM's commands."""

from __future__ import annotations

import subprocess

from launch.jobs.executor import JobError

TIMEOUT_SECONDS = 120


def run_slurm(*command: str, timeout: float = TIMEOUT_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands; one that does not answer has failed.

    Raises:
        JobError: it is not installed.
    """
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)
    except FileNotFoundError:
        raise JobError(
            f"there is no {command[0]} on this machine: run this where SLURM's commands are (a "
            "login node), or use launcher=local"
        ) from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(
            command, 1, "", f"{command[0]} did not answer for {timeout:g} s"
        )
