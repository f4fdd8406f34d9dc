"""The whole round: `python -m launch.round experiment=<name>`.

prepare -> cache -> (train -> evaluate -> embed -> expand -> label) x rounds -> train -> evaluate.
Killed anywhere and started again it finishes with the same result. Writes runs/<name>/summary.json
and report.png, and prints the same numbers. `launcher=slurm` has the heavy stages made by jobs of a
cluster (docs/slurm.md); with `--dry-run` their scripts are printed and nothing is made.
"""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console

from launch.rounds.arms import run_arms
from launch.rounds.controls import measure_controls
from launch.rounds.report import draw_report
from launch.rounds.summary import print_summary, summarise
from launch.stages.launched_run import is_dry_run, launched_run, print_scripts, read_flags
from lsb.artifact import write_json
from vlmae.config import command, task_overrides


@command("round")
def main(config: DictConfig) -> None:
    """Run every stage that is not there yet, then report."""
    console = Console(log_path=False)
    if is_dry_run(config):
        print_scripts(config)
        return
    with launched_run(config, console.log, task_overrides()):
        arms = run_arms(config, console.log)
        settings, folder, shared = arms.settings, arms.folder, arms.shared
        last = arms.rounds[settings.arm][-1]
        controls = (
            measure_controls(settings, shared, folder, last, console.log)
            if settings.controls
            else {}
        )
    summary = summarise(settings, arms.rounds, controls, shared)
    write_json(folder.path / "summary.json", summary)
    draw_report(summary, folder.path / "report.png")
    print_summary(summary, console)
    made, reused = len(folder.made), len(folder.reused)
    console.print(
        f"{made + reused} stages: {made} made, {reused} reused. "
        f"{folder.path}/summary.json, {folder.path}/report.png",
        soft_wrap=True,
    )


if __name__ == "__main__":
    read_flags()
    main()
