"""What asking cost and what it brought: `python -m launch.account experiment=<name>`.

For every round of the main arm: labels asked, positives and confident errors found, what became of
confident errors on test and gold clips, money and hours, and labels (and money) saved against the
arm `random` at equal R@P. Runs what is not there yet, as `launch.round` and where its `launcher`
says. Writes account.json and account.png into the run's folder and prints two tables
(docs/account.md).
"""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console

from launch.rounds.account import write_account
from launch.rounds.arms import run_arms
from launch.stages.launched_run import is_dry_run, launched_run, print_scripts, read_flags
from launch.stages.settings import Settings
from vlmae.config import command, task_overrides


@command("round")
def main(config: DictConfig) -> None:
    """Run every arm, or reuse it, and give the account of the main one."""
    console = Console(log_path=False)
    Settings.from_config(config).require_rounds("launch.account")
    if is_dry_run(config):
        print_scripts(config)
        return
    with launched_run(config, console.log, task_overrides()):
        arms = run_arms(config, console.log)
    write_account(arms, console)


if __name__ == "__main__":
    read_flags()
    main()
