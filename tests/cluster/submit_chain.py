"""Jobs in a chain, submitted at once: an array, and after it ranks that need what it has made."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from counting_stage import counting_stage
from rank_sum import add_ranks

from launch.jobs.job import RANKS, SHARDS, Job
from launch.jobs.launcher_config import SlurmConfig
from launch.jobs.snapshot import snapshot
from launch.slurm import SlurmExecutor
from lsb.delegation import StageCall, delegated


def main(folder: Path) -> None:
    """Submit both jobs and print their ids."""
    resources = {"default": {"cpus": 1, "memory_gb": 1}, "train": {"gpus": 1}}
    config = SlurmConfig(name="slurm", tasks=3, nodes=2, ranks=2, resources=resources)
    executor, jobs = SlurmExecutor(config), folder / "jobs"
    jobs.mkdir()
    code = snapshot(jobs).name

    def submit(call: StageCall) -> bool:
        first = Job.create(
            jobs / call.target.name,
            stage=call.stage,
            kind=SHARDS,
            tasks=3,
            shards=[part.name for part in call.parts],
            target=call.target,
        )
        first.put_work(call, code)
        array = executor.submit(first, first.busy, code)
        target = folder / "stages" / "train-1"
        then = Job.create(
            jobs / "train-1", stage="train", kind=RANKS, tasks=1, shards=["all"], target=target
        )
        then.put_work(partial(add_ranks, call.root, target), code)
        ranks = executor.submit(then, then.busy, code, after=array)
        print(array[-1].id, ranks[-1].id)
        raise SystemExit(0)

    with delegated(submit):
        counting_stage(folder / "stages", folder / "orders")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
