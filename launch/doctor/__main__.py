"""What is to be mended before jobs are sent: `python -m launch.doctor launcher=slurm ...`.

Give it the keys of the round or the training that is to run. One small job over all nodes of the
partition looks at versions, GPUs, weights, data, the folder of runs, locks, clocks and routes;
`launcher=local` looks at this machine. Prints one page, and writes it as doctor.json. Exit codes:
0 all is well, 1 something is to be mended, 2 it could not be asked. `--dry-run` prints the script,
`--json` the findings.
"""

from __future__ import annotations

import json
from functools import partial
from typing import Any, cast

from omegaconf import DictConfig
from rich.console import Console

from launch.doctor.examination import Examination, dry_run
from launch.doctor.page import page
from launch.doctor.question import Limits
from launch.jobs.flags import NO_SCRIPTS, read_flags
from launch.jobs.launcher_config import STAGES, SlurmConfig, launcher_config
from lsb.console import console
from vlmae.config import as_dict, build, command


@command("doctor", refused=2)
def main(config: DictConfig) -> None:
    """Visit the nodes and print what is to be mended."""
    values = cast(dict[str, Any], as_dict(config))
    launcher = launcher_config(values["launcher"])
    limits = build("doctor", Limits, values["doctor"])
    if limits.stage not in STAGES:
        raise ValueError(f"doctor.stage is {limits.stage!r}: use one of {', '.join(STAGES)}")
    # Beside the findings as JSON nothing is printed on standard output.
    progress = Console(stderr=True, markup=False, highlight=False)
    say = partial(progress.print, soft_wrap=True)
    examination = Examination(values, launcher, limits, say)
    if launcher.dry_run:
        print(dry_run(examination) if isinstance(launcher, SlurmConfig) else NO_SCRIPTS)
        return
    told, record = examination.diagnose()
    if limits.json:
        print(json.dumps(record, indent=2, ensure_ascii=False))
    else:
        console().print(page(told), soft_wrap=True)
    if not told.well:
        raise SystemExit(1)


if __name__ == "__main__":
    read_flags(json="doctor.json=true")
    main()
