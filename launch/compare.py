"""Several arms at equal budgets on shared data: `python -m launch.compare experiment=<name>`.

Arms are the presets of `conf/arm`; those compared are `arm` and `arms` of the config. Data, tokens
and the first model are shared; each arm has its own ledger. Writes runs/<name>/compare.json.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from launch.growth import GrowthRound, grow
from launch.run_folder import RunFolder
from launch.settings import Settings
from launch.shared import Say, Shared, prepare_shared
from launch.summary import print_summary, summarise
from lsb.artifact import write_json
from vlmae.config import command, compose_config

# What a preset of `conf/arm` chooses; an override of it would make all arms alike.
OF_AN_ARM = (
    "acquisition",
    "acquisition.name",
    "broadening",
    "threshold",
    "threshold.mode",
    "arm_name",
)


def task_overrides() -> list[str]:
    """The command line's overrides."""
    return [str(override) for override in HydraConfig.get().overrides.task]


def arm_settings(settings: Settings, overrides: Sequence[str]) -> list[Settings]:
    """Settings of the main arm and of every arm compared with it.

    Args:
        settings: of the main arm.
        overrides: of the command line; each arm is composed with them and its own preset.
    """
    shared = [override for override in overrides if not override.startswith("arm=")]
    others = [arm for arm in settings.arms if arm != settings.arm]
    for override in shared if others else ():
        key = override.lstrip("+~").split("=")[0].split("@")[0]
        if key in OF_AN_ARM:
            raise ValueError(
                f"{override} would change every arm of arms={others} under its old name: add "
                "arms=[], or make a preset in conf/arm"
            )
    composed = (compose_config("round", [*shared, f"arm={arm}"]) for arm in others)
    return [settings, *(Settings.from_config(config) for config in composed)]


@dataclass(frozen=True)
class Arms:
    """All arms of a run, finished.

    Attributes:
        settings: of the main arm.
        folder: of the run.
        shared: data and tokens.
        rounds: arm name -> its rounds.
    """

    settings: Settings
    folder: RunFolder
    shared: Shared
    rounds: dict[str, list[GrowthRound]]


def run_arms(config: DictConfig, say: Say) -> Arms:
    """Run every stage of every arm that is not there yet.

    Args:
        config: the composed config of `round.yaml`.
        say: called with what begins.
    """
    settings = Settings.from_config(config)
    arms = arm_settings(settings, task_overrides())
    folder = RunFolder(settings.folder, settings.identity)
    shared = prepare_shared(settings, folder, say)
    rounds = {arm.arm: grow(arm, shared, folder, say) for arm in arms}
    return Arms(settings, folder, shared, rounds)


@command("round")
def main(config: DictConfig) -> None:
    """Run every arm and print the table."""
    console = Console(log_path=False)
    arms = run_arms(config, console.log)
    summary = summarise(arms.settings, arms.rounds, {}, arms.shared)
    write_json(arms.folder.path / "compare.json", summary)
    print_summary(summary, console)


if __name__ == "__main__":
    main()
