"""Frozen tokens of a data set by tasks: `python -m launch.cache launcher=slurm data=... vl=...`.

The keys are those of vlmae.cache. The data set is prepared first, by tasks as well, where it is not
there yet (`data=folder data.path=...`, see vlmae.prepare). Each stage is one array whose tasks
share the shards; a task that is lost is made again alone, and the same command goes on where it
stopped.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig

from launch.jobs.flags import NO_SCRIPTS, read_flags
from launch.jobs.launch_record import Asked
from launch.jobs.launcher import launched
from launch.jobs.launcher_config import SlurmConfig, launcher_config
from launch.stages.launched_run import print_stages
from lsb.console import console
from lsb.kept import keep
from vlmae.cache import describe
from vlmae.config import as_dict, command, task_overrides
from vlmae.data.prefix_cache import cache_prefix
from vlmae.data.redaction import require_redacted
from vlmae.settings import PREPARED, prefix_of, prepared_data, share_of


def _stages(source: str | None) -> tuple[str, ...]:
    """What is made of a data set: nothing before the cache of a prepared one.

    Args:
        source: `data.source`; None for a data set that is composed of a bank of recordings.
    """
    if source == PREPARED:
        return ("cache",)
    return ("sources", "prepare", "cache") if source is None else ("prepare", "cache")


@command("launch_cache")
def main(config: DictConfig) -> None:
    """Make, finish or reuse the data set and the cache of its tokens."""
    values = cast(dict[str, Any], as_dict(config))
    launcher = launcher_config(values["launcher"])
    if share_of(values) != (0, 1):
        raise ValueError(
            f"share is {values['share']}: tasks share the shards here, set launcher.tasks; share "
            "is of vlmae.cache, for processes that are started by hand"
        )
    run = Path(values["runs"]) / values["name"]
    if launcher.dry_run:
        if not isinstance(launcher, SlurmConfig):
            print(NO_SCRIPTS)
            return
        print_stages(launcher, run, _stages(values["data"].get("source")))
        return
    out, root = console(), Path(values["runs"]) / "stages"
    asked = Asked(values, task_overrides())
    with launched(launcher, run, partial(out.print, soft_wrap=True), asked):
        data = require_redacted(root, prepared_data(values, root))
        keep(root, data, "launch.cache")  # now: while tasks wait, nobody else holds it
        stage = cache_prefix(root, prefix_of(values, data))
    assert stage is not None, "one share of one is the whole cache"
    keep(root, stage, "launch.cache")
    out.print(describe(stage), soft_wrap=True)


if __name__ == "__main__":
    read_flags()
    main()
