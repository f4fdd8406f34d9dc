"""The arms of a round: `arm` and `arms` of the config, at equal budgets on shared data.

Arms are the presets of `conf/arm`. Data, tokens and the first model are shared; each arm has its
own ledger.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from omegaconf import DictConfig

from launch.rounds.growth import GrowthRound, grow
from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from launch.stages.shared import Say, Shared, prepare_shared
from vlmae.config import compose_config, task_overrides

# What a preset of `conf/arm` chooses; an override of it would make all arms alike.
OF_AN_ARM = (
    "acquisition",
    "acquisition.name",
    "broadening",
    "threshold",
    "threshold.mode",
    "shortlist",
    "shortlist.name",
    "shortlist.limited",
    "arm_name",
)


def require_no_arm_override(overrides: Sequence[str]) -> None:
    """Refuse what would change every arm under its old name.

    Raises:
        ValueError: names the override.
    """
    for override in overrides:
        key = override.lstrip("+~").split("=")[0].split("@")[0]
        if key in OF_AN_ARM:
            raise ValueError(
                f"{override} would change every compared arm under its old name: compare none "
                "(arms=[] in launch.round), or make a preset in conf/arm"
            )


def arm_settings(settings: Settings, overrides: Sequence[str]) -> list[Settings]:
    """Settings of the main arm and of every arm compared with it.

    Args:
        settings: of the main arm.
        overrides: of the command line; each arm is composed with them and its own preset.
    """
    shared = [override for override in overrides if not override.startswith("arm=")]
    others = [arm for arm in settings.arms if arm != settings.arm]
    if others:
        require_no_arm_override(shared)
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
    for arm in arms:  # a server that is not there is told before hours of work
        arm.ledger.claim()
    shared = prepare_shared(settings, folder, say)
    rounds = {arm.arm: grow(arm, shared, folder, say) for arm in arms}
    return Arms(settings, folder, shared, rounds)
