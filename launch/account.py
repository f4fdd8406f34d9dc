"""What asking cost and what it brought: `python -m launch.account experiment=<name>`.

For every round of the main arm: labels asked, positives and confident errors found, what became of
confident errors on test and gold clips, money and hours, and labels (and money) saved against the
arm `random` at equal R@P. Runs what is not there yet, as `launch.round`. Writes account.json and
account.png into the run's folder and prints one table (docs/account.md).
"""

from __future__ import annotations

from omegaconf import DictConfig
from rich.console import Console

from launch.rounds.account import write_account
from launch.rounds.arms import run_arms
from vlmae.config import command


@command("round")
def main(config: DictConfig) -> None:
    """Run every arm, or reuse it, and give the account of the main one."""
    console = Console(log_path=False)
    write_account(run_arms(config, console.log), console)


if __name__ == "__main__":
    main()
