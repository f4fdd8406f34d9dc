"""Several arms at equal budgets on shared data: `python -m launch.compare experiment=<name>`.

Arms are the presets of `conf/arm`; those compared are `arm` and `arms` of the config. Data, tokens
and the first model are shared; each arm has its own ledger. Writes runs/<name>/compare.json.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from rich.console import Console

from launch.growth import GrowthRound, Say, Shared, grow, prepare_shared
from launch.run_folder import RunFolder
from launch.settings import Settings
from launch.summary import print_summary, summarise
from lsb.artifact import write_json
from vlmae.config import command, compose_config


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
    others = (arm for arm in settings.arms if arm != settings.arm)
    composed = (compose_config("round", [*shared, f"arm={arm}"]) for arm in others)
    return [settings, *(Settings.from_config(config) for config in composed)]


def grow_arms(
    arms: Sequence[Settings], shared: Shared, folder: RunFolder, say: Say
) -> dict[str, list[GrowthRound]]:
    """Arm name -> its rounds."""
    return {settings.arm: grow(settings, shared, folder, say) for settings in arms}


@command("round")
def main(config: DictConfig) -> None:
    """Run every arm and print the table."""
    console = Console(log_path=False)
    settings = Settings.from_config(config)
    arms = arm_settings(settings, task_overrides())
    folder = RunFolder(settings.folder, settings.identity)
    shared = prepare_shared(settings, folder, console.log)
    rounds = grow_arms(arms, shared, folder, console.log)
    summary = summarise(settings, rounds, {}, shared)
    write_json(folder.path / "compare.json", summary)
    print_summary(summary, console)


if __name__ == "__main__":
    main()
