"""Arms compared over seeds: `python -m launch.compare experiment=<name> arm=a,b seed=1,2`.

`arm=all` takes every preset of `conf/arm`; without `arm` the arms of the config are compared. Each
unit (protocol, arm, seed) runs in one process from first labels to last, as many side by side as
`compare.processes`; `launcher=slurm` has each made by a job of a cluster (docs/slurm.md), and
`--dry-run` prints their scripts. Started again, finished units are read. Writes
runs/<name>_compare/compare.json: runs/<name> is the folder of the round of that name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig
from rich.console import Console

from launch.comparing.table import Measure, print_comparison, summarise_comparison
from launch.comparing.unit_tasks import run_units_by_tasks
from launch.comparing.units import PROTOCOLS, Comparison, Unit, run_units, unit_ledger
from launch.jobs.job import UNITS
from launch.jobs.launcher_config import COMPARE, SlurmConfig
from launch.rounds.arms import require_no_arm_override
from launch.stages.launched_run import launched_run, print_script, print_scripts, read_flags
from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from launch.stages.shared import Shared, prepare_shared
from lsb import ids as sample_ids
from lsb.artifact import write_json
from vlmae.config import as_dict, build, command, conf_dir, task_overrides
from vlmae.data.prepare import read_truth

EVERY_ARM = "all"
LISTED = ("arm", "seed")
OF_COMPARISON = "_compare"
"""Behind the name of a folder: that of the round of the same name has another content."""
SHARED_STAGES = ("sources", "prepare", "cache")
"""Stages of all units, made before them by tasks of their own; a unit makes the others itself."""
_CHOICES: dict[str, list[str]] = {}  # what the command line lists, which Hydra would refuse


@dataclass(frozen=True)
class CompareConfig:
    """How arms are compared.

    Attributes:
        protocols: of `launch.comparing.units.PROTOCOLS`.
        scoring_share: share of the pool that protocol "scoring" scores in a round.
        confidence: smallest probability of the wrong class for a confident error found, for all
            arms alike.
        processes: units at a time, where the command itself runs them; None for one a core.
        resamples: of the bootstrap.
    """

    protocols: list[str]
    scoring_share: float
    confidence: float
    processes: int | None
    resamples: int

    def __post_init__(self) -> None:
        unknown = sorted(set(self.protocols) - set(PROTOCOLS))
        if unknown or not self.protocols:
            raise ValueError(
                f"compare.protocols is {self.protocols}: name one or both of {', '.join(PROTOCOLS)}"
            )
        if not 0 < self.scoring_share < 1:
            raise ValueError(
                f"compare.scoring_share is {self.scoring_share}: give a share of the pool in (0, 1)"
            )
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"compare.confidence is {self.confidence}: give a probability in (0, 1)"
            )
        if (self.processes is not None and self.processes < 1) or self.resamples < 1:
            raise ValueError(
                f"compare has processes {self.processes}, resamples {self.resamples}: give at "
                "least 1 each"
            )


def listed_choices(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Lists of arms and seeds of a command line, and its other arguments.

    Args:
        arguments: e.g. ["experiment=demo", "arm=random,entropy", "seed=1,2"].

    Raises:
        ValueError: an arm does not exist, a seed is no number, or one is named twice.
    """
    chosen: dict[str, list[str]] = {}
    others = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in LISTED and value:
            chosen[key] = value.split(",")
        else:
            others.append(argument)
    known = sorted(file.stem for file in (Path(conf_dir()) / "arm").glob("*.yaml"))
    if chosen.get("arm") == [EVERY_ARM]:
        chosen["arm"] = known
    unknown = sorted(set(chosen.get("arm", [])) - set(known))
    if unknown:
        raise ValueError(f"arm {unknown[0]!r} is none of {', '.join(known)}, nor {EVERY_ARM}")
    for seed in chosen.get("seed", []):
        if not seed.isdecimal():
            raise ValueError(f"seed {seed!r} is not a number: give e.g. seed=1,2,3")
    for key, values in chosen.items():
        if len(set(values)) < len(values):
            raise ValueError(f"{key}={','.join(values)} names one twice")
    return chosen, others


def units_of(
    choices: Mapping[str, Sequence[str]], settings: Settings, config: CompareConfig
) -> list[Unit]:
    """Units in the order in which they start: all arms of a seed before the next seed, so that a
    comparison that is stopped early has whole seeds."""
    arms = choices.get("arm") or list(dict.fromkeys([settings.arm, *settings.arms]))
    seeds = [int(seed) for seed in choices.get("seed", [])] or [settings.train.seed]
    return [
        Unit(protocol, arm, seed) for seed in seeds for protocol in config.protocols for arm in arms
    ]


@command("compare")
def _compare(config: DictConfig) -> None:
    """Run every unit that is not finished, then print the table."""
    console = Console(log_path=False)
    config.name = f"{config.name}{OF_COMPARISON}"
    values = cast(dict[str, Any], as_dict(config))
    chosen = build("compare", CompareConfig, values["compare"])
    settings = Settings.from_config(config)
    settings.launcher.require_one_rank("launch.compare")
    settings.require_rounds("launch.compare")
    given = task_overrides()
    overrides = [one for one in given if not one.startswith("compare.")]
    require_no_arm_override(overrides)
    units = units_of(_CHOICES, settings, chosen)
    settings.ledgers.require_units()
    if settings.launcher.dry_run:
        _print_plan(config, settings, len(units))
        return
    identity = {"comparison": _without_unit(settings.identity)}
    results: dict[tuple[str, str], list[dict[str, Any]]] = {
        (unit.protocol, unit.arm): [] for unit in units
    }
    listed = [f"{key}={','.join(values)}" for key, values in _CHOICES.items()]
    with launched_run(config, console.log, [*listed, *given]) as launcher:
        folder = RunFolder(settings.folder, identity)
        for unit in units:  # a server that is not there is told before hours of work
            unit_ledger(settings.ledgers, folder.path, unit).claim()
        shared = prepare_shared(settings, folder, console.log)
        comparison = Comparison(
            folder.path, identity, overrides, chosen.scoring_share, chosen.confidence, shared
        )
        if launcher is None:
            at_once = chosen.processes or len(os.sched_getaffinity(0))
            finished = run_units(comparison, units, min(at_once, len(units)))
        else:
            if any(one.startswith("compare.processes=") for one in given):
                console.log(
                    f"warning: compare.processes has no effect with launcher="
                    f"{settings.launcher.name}: launcher.at_once says how many units run at a time"
                )
            finished = run_units_by_tasks(launcher, comparison, units)
        for number, (unit, result) in enumerate(finished, 1):
            results[unit.protocol, unit.arm].append(result)
            console.log(f"{number} of {len(units)}: {unit.arm}, seed {unit.seed}, {unit.protocol}")
    measure = Measure(
        settings.evaluate.target_precision,
        chosen.resamples,
        settings.evaluate.seed,
        _seen(settings, shared),
    )
    summary = summarise_comparison(settings.stages, results, settings.tasks, measure)
    summary["data"] = {"name": settings.data.name, "measured": settings.clips.measured}
    write_json(folder.path / "compare.json", summary)
    print_comparison(summary, console)
    console.print(f"{folder.path}/compare.json", soft_wrap=True)


def _print_plan(config: DictConfig, settings: Settings, units: int) -> None:
    """Print the scripts that would be submitted: of what all units share, and of the units."""
    print_scripts(config, SHARED_STAGES)
    if isinstance(settings.launcher, SlurmConfig):
        print(f"# ---- {COMPARE}")
        print_script(
            settings.launcher, COMPARE, settings.folder, kind=UNITS, name=COMPARE, tasks=units
        )


def _without_unit(identity: Mapping[str, Any]) -> dict[str, Any]:
    """What all units of a comparison share: nothing that an arm, a seed or a protocol chooses."""
    own = ("acquisition", "broadening", "threshold", "shortlist", "compare", "seed", "arm_name")
    kept = {key: value for key, value in identity.items() if key not in own}
    for group in ("trainer", "oracle"):
        kept[group] = {key: value for key, value in kept[group].items() if key != "seed"}
    return kept


def _seen(settings: Settings, shared: Shared) -> dict[bytes, bool]:
    """Id -> whether the speaker is heard in training; empty if the data hold no others."""
    unseen = set(settings.data.unseen_speakers)
    if not unseen or settings.clips.measured != "test":
        return {}
    truth = read_truth(shared.data)
    names = sample_ids.to_bytes(sample_ids.from_arrow(truth["id"]))
    return {
        name: speaker not in unseen
        for name, speaker in zip(names, truth["speaker"].to_pylist(), strict=True)
    }


def main() -> None:
    """Take the lists of arms and seeds from the command line, and hand the rest to Hydra."""
    read_flags()
    try:
        choices, others = listed_choices(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    _CHOICES.update(choices)
    sys.argv[1:] = others
    _compare()


if __name__ == "__main__":
    main()
