"""A training from a composed config as one job of connected ranks.

Not in the command's own module: a job finds what it runs by the name of its module, and that of a
command is `__main__`.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from launch.jobs.executor import JobError, run_job
from launch.jobs.job import RANKS, Job
from launch.jobs.launch_record import JOBS, Asked, executor_of, record_launch
from launch.jobs.launcher_config import TRAIN, LauncherConfig, launcher_config
from launch.jobs.launcher_lock import only_one
from launch.jobs.rank_logs import MergedTail
from launch.jobs.snapshot import snapshot
from lsb.artifact import (
    Stage,
    file_sha256,
    fingerprint,
    open_stage,
    read_json,
    waiting_for_others,
    write_json,
)
from lsb.console import console
from vlmae.config import checked

RESULT = "stage.json"


def train_by_ranks(values: dict[str, Any], overrides: list[str]) -> Stage:
    """Have a training made by the ranks of its launcher, or reuse it.

    Args:
        values: of `conf/launch_train.yaml`, as plain containers.
        overrides: of the command line, for the record.

    Returns:
        The finished `train` stage.

    Raises:
        ValueError: a value is wrong, or labels are absent.
        JobError: the job failed or was cancelled; says what to type.
    """
    from vlmae.ranks import Ranks
    from vlmae.train import require_trainable

    config = launcher_config(values["launcher"])
    require_trainable(values, Ranks(0, config.world, config.ranks))
    run = Path(values["runs"]) / checked("name", str, values["name"])
    say = partial(console().print, soft_wrap=True)
    with only_one(run, config):
        jobs = run / JOBS
        jobs.mkdir(exist_ok=True)
        code = snapshot(jobs)
        record_launch(jobs, code.name, Asked(values, overrides))
        asked = {key: value for key, value in values.items() if key not in ("launcher", "name")}
        target = jobs / f"{TRAIN}-{_identity(asked, config)[:16]}" / "result"
        job = Job.create(
            target.parent, stage=TRAIN, kind=RANKS, tasks=1, shards=[TRAIN], target=target
        )
        finished = _finished(target)
        if finished is not None:
            return finished
        job.put_work(partial(train_config_on_ranks, asked, target.absolute()), code.name)
        tail = MergedTail(job, say)
        run_job(
            executor_of(config),
            job,
            code.name,
            retries=config.retries,
            poll_seconds=config.poll_seconds,
            hang_minutes=config.hang_minutes,
            say=say,
            remedy="give the same command again",
            watch=tail.show,
        )
        tail.show()
        made = _finished(target)
        if made is None:
            raise JobError(f"{job.folder} has no result: give the same command again")
        return made


def train_config_on_ranks(values: dict[str, Any], target: Path) -> None:
    """What every rank runs; the first tells where the result is. Collective."""
    from vlmae.ranks import Ranks
    from vlmae.train import train_from_config

    ranks = Ranks.from_environment()
    with ranks.together(), waiting_for_others():
        stage = train_from_config(values, ranks)
        if ranks.first:
            work = target.with_name(f".{target.name}")
            work.mkdir(exist_ok=True)
            write_json(work / RESULT, {"stage": str(stage.path)})
            work.replace(target)


def _identity(values: dict[str, Any], config: LauncherConfig) -> str:
    """Of what a job was asked for: values, ranks, and the bytes of the labels."""
    tables = {}
    for name in ("labels", "validation"):
        path = checked(name, str | None, values[name])
        if not path or not Path(path).is_file():
            raise ValueError(f"{name} is {path!r}: give a table of labels, parquet or CSV")
        tables[name] = file_sha256(Path(path))
    tombstones = Path(values["runs"]) / "stages" / "tombstones.jsonl"
    taken_down = file_sha256(tombstones) if tombstones.is_file() else ""
    return fingerprint([values, config.nodes, config.ranks, tables, taken_down])


def _finished(target: Path) -> Stage | None:
    """The stage that a job has made, if it is still there."""
    if not target.is_dir():
        return None
    path = Path(read_json(target / RESULT)["stage"])
    if path.is_dir():
        return open_stage(path)
    (target / RESULT).unlink()  # deleted since: made again
    target.rmdir()
    return None
