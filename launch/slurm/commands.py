"""SLURM's commands."""

from __future__ import annotations

import os
import subprocess

from launch.jobs.executor import JobError

TIMEOUT_SECONDS = 120
ABOUT_SLURM = ("SLURM_CONF", "SLURM_CLUSTERS", "SLURM_JWT")
"""Variables that say which SLURM is asked, and by whom; within a job the others of their prefix
are of that job."""


def run_slurm(*command: str, timeout: float = TIMEOUT_SECONDS) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's commands; one that does not answer has failed.

    Where it is asked from within a job (a command under `srun`), variables of that job are left
    out: `sbatch` would hand them on, and binding and memory of that job would be taken for the
    new one's.

    Raises:
        JobError: it is not installed.
    """
    try:
        return subprocess.run(
            command,
            env=_outside_of_jobs(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise JobError(
            f"there is no {command[0]} on this machine: run this where SLURM's commands are (a "
            "login node), or use launcher=local"
        ) from None
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(
            command, 1, "", f"{command[0]} did not answer for {timeout:g} s"
        )


def _outside_of_jobs() -> dict[str, str]:
    if "SLURM_JOB_ID" not in os.environ:
        return dict(os.environ)
    return {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "SRUN_")) or name in ABOUT_SLURM
    }
