"""The group `launcher`: what it refuses, and what of it is part of a run's identity."""

from __future__ import annotations

from typing import Any

import pytest

from launch.jobs.launcher_config import LocalConfig, SlurmConfig, launcher_config
from launch.stages.settings import Settings
from vlmae.config import as_dict, compose_config


def group(*overrides: str) -> dict[str, Any]:
    return as_dict(compose_config("round", list(overrides)))["launcher"]


def test_both_groups_compose() -> None:
    local, slurm = launcher_config(group()), launcher_config(group("launcher=slurm"))
    assert isinstance(local, LocalConfig)
    assert local.in_process
    assert isinstance(slurm, SlurmConfig)
    assert not slurm.in_process


def test_a_stage_has_its_own_resources_over_the_default() -> None:
    config = launcher_config(
        group(
            "launcher=slurm",
            "launcher.resources.default.account=lab",
            "+launcher.resources.train.gpus=1",
            '+launcher.resources.train.time="1-00:00:00"',
        )
    )
    assert isinstance(config, SlurmConfig)
    train, embed = config.of("train"), config.of("embed")
    assert (train.account, train.gpus, train.time) == ("lab", 1, "1-00:00:00")
    assert (embed.account, embed.gpus, embed.time) == ("lab", 0, "04:00:00")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["launcher.tasks=0"], r"launcher\.tasks is 0: give at least 1"),
        (["launcher.nodes=2"], "use launcher=slurm"),
        (["launcher.stages=[expand]"], "launcher.stages names 'expand'"),
        (["launcher.retries=-1"], "retries -1"),
        (["launcher=slurm", "launcher.resources.default.time=soon"], "time 'soon': give HH:MM:SS"),
        (["launcher=slurm", "launcher.resources.default.partition='a b'"], "partition 'a b'"),
        (["launcher=slurm", "+launcher.resources.train.gpu=1"], "has no key 'gpu'"),
        (["launcher=slurm", "+launcher.resources.evaluate.gpus=1"], "has 'evaluate'"),
        (["launcher=slurm", "launcher.options=[--mem]", "launcher.requeues=-1"], "requeues -1"),
        (["launcher=slurm", "launcher.options=['-p gpu']"], "long options of sbatch"),
        (["launcher=slurm", "launcher.modules=['cuda; rm']"], "names of modules"),
        (["launcher=slurm", "launcher.resources.default.cpus=0"], "cpus 0"),
    ],
)
def test_refusals_name_the_value(overrides: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        launcher_config(group(*overrides))


def test_an_unknown_launcher_is_refused() -> None:
    with pytest.raises(ValueError, match=r"launcher\.name is 'ray': use local or slurm"):
        launcher_config({"name": "ray"})


def test_only_the_ranks_of_a_training_are_part_of_a_run() -> None:
    def identity(*overrides: str) -> dict[str, Any]:
        return Settings.from_config(compose_config("round", list(overrides))).identity

    plain = identity()
    assert "launcher" not in plain
    assert "ranks" not in plain  # runs of earlier releases go on
    assert identity("launcher=slurm", "launcher.tasks=7") == plain
    two = identity("launcher.ranks=2")
    assert two == {**plain, "ranks": 2}
    assert identity("launcher=slurm", "launcher.nodes=2") == two


def test_a_launcher_without_effect_is_refused() -> None:
    launcher_config(group()).require_none("launch.variants", "variants.processes")
    with pytest.raises(ValueError, match=r"launcher=local with 2 tasks.*variants\.processes"):
        launcher_config(group("launcher.tasks=2")).require_none(
            "launch.variants", "variants.processes"
        )
