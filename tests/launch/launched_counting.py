"""A command that has the counting stage made by tasks: `python launched_counting.py <folder> ...`.

Options are keys of the launcher, as key=value; `launcher=slurm` or local.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml
from counting_stage import counting_stage

from launch.jobs.launch_record import Asked
from launch.jobs.launcher import launched
from launch.jobs.launcher_config import launcher_config


def main(folder: Path, options: list[str]) -> int:
    values: dict[str, Any] = {"name": "local", "poll_seconds": 0.2}
    for option in options:
        key, _, value = option.partition("=")
        values["name" if key == "launcher" else key] = yaml.safe_load(value)
    config = launcher_config(values)
    asked = Asked({"launcher": values}, options)
    try:
        with launched(config, folder / "run", lambda line: print(line, flush=True), asked):
            stage = counting_stage(folder / "stages", folder / "orders")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("made", stage.content, not stage.reused)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
