"""One training on the ranks of a launcher: `python -m launch.train launcher=slurm ...`.

The keys are those of vlmae.train. On a cluster it is one job of `launcher.nodes` x `launcher.ranks`
ranks, all started by srun; here it is so many processes. What is trained, from the seed to the name
of the run, is settled by this command, once; every rank reads it from the job's folder and writes a
log of its own, and this command prints them as one. Killed and given again it finds its job.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig

from launch.jobs.job import RANKS
from launch.jobs.launcher_config import TRAIN, SlurmConfig, launcher_config
from launch.jobs.training_job import train_by_ranks
from launch.stages.launched_run import NO_SCRIPTS, print_script, read_flags
from lsb.console import console
from vlmae.config import as_dict, command, task_overrides


@command("launch_train")
def main(config: DictConfig) -> None:
    """Make, finish or reuse a checkpoint."""
    values = cast(dict[str, Any], as_dict(config))
    launcher = launcher_config(values["launcher"])
    if launcher.dry_run:
        if isinstance(launcher, SlurmConfig):
            run = Path(values["runs"]) / values["name"]
            print_script(launcher, TRAIN, run, kind=RANKS, name=TRAIN, tasks=1)
        else:
            print(NO_SCRIPTS)
        return
    stage = train_by_ranks(values, task_overrides())
    console().print(f"{stage.path}: {stage.counts['labels']} labels", soft_wrap=True)


if __name__ == "__main__":
    read_flags()
    main()
