"""`launch.plan` prints the memory of a config, and names what fits where it does not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from hydra.errors import HydraException
from tiny_run import run_python

from launch.jobs.planning import GIB, Planner
from launch.plan import report
from vlmae.config import as_dict, build, compose_config
from vlmae.footprint.arithmetic import COPY
from vlmae.strategy import StrategyConfig

TWO_NODES = (
    "launcher=slurm",
    "launcher.nodes=2",
    "launcher.ranks=8",
    "trainer=gpu",
    "prefix.use=require",
)
MUCH = (*TWO_NODES, "tuning=full", "trainer.batch_size=64")


def planner(*overrides: str) -> Planner:
    return Planner(cast(dict[str, Any], as_dict(compose_config("plan", list(overrides)))))


def test_the_command_prints_and_refuses_with_a_setting_that_fits(tmp_path: Path) -> None:
    small = "plan.gpu_memory_gb=2"
    refused = run_python("-m", "launch.plan", *MUCH, small, cwd=tmp_path)
    for words in ("2 nodes x 8 ranks = 16", "1024 clips a step", "gradients", "activations"):
        assert words in refused.stdout, words
    assert refused.returncode == 2
    line = refused.stderr.strip().splitlines()[-1]
    assert line.startswith("error: a GPU needs ")
    assert "usable: add trainer." in line
    assert not list(tmp_path.iterdir()), "nothing is made"
    remedy = line.split(": add ")[1].split(" (")[0].split()
    again = planner(*MUCH, small, *remedy)
    assert again.asked.global_batch == 1024, "the step stays the same"
    assert again.fits(again.need(again.asked))
    large = planner(*MUCH)
    assert large.fits(large.need(large.asked))


def test_nothing_fits_a_gpu_that_is_too_small() -> None:
    plan = planner(*MUCH, "plan.gpu_memory_gb=0.01")
    assert plan.nearest() is None
    tried = [" ".join(overrides) for _, overrides in plan.alternatives()]
    assert len(tried) == len(set(tried))
    assert tried[0] == "trainer.checkpoint_blocks=true"
    assert any("strategy=zero3_offload" in one and "launcher.nodes=64" in one for one in tried)


def test_every_rank_of_a_machine_loads_towers_and_builds_a_model() -> None:
    plan = planner(*TWO_NODES)
    need, model = plan.need(plan.asked), 4 * plan.size.parameters
    assert need.node == 8 * (plan.size.prefix + plan.size.loaded + model)
    alone = planner("trainer=gpu", "prefix.use=require")
    # At the end the first rank has what was trained and a new model.
    assert alone.need(alone.asked).node == plan.size.prefix + plan.size.loaded + 2 * model
    short = planner(*TWO_NODES, f"plan.host_memory_gb={need.node / GIB / 2:.4f}")
    assert not short.fits(short.need(short.asked))


def test_what_is_named_is_what_was_counted() -> None:
    for asked in ("ddp", "zero2_offload", "zero3", "zero3 strategy.hpz_ranks=4"):
        given = (*MUCH, *f"strategy={asked}".split())
        plan = planner(*given, "plan.gpu_memory_gb=0.01")
        tried = [(setting, found) for setting, found in plan.alternatives() if setting.nodes == 2]
        assert len({" ".join(found) for _, found in tried}) == len(tried)
        for strategy, words in {
            setting.strategy: [word for word in found if word.startswith("strategy")]
            for setting, found in tried
        }.items():
            values = compose_config("plan", [*given, *words])
            named = build("strategy", StrategyConfig, as_dict(values)["strategy"])
            assert named == strategy, f"{asked}, {words}"


def test_one_gpu_a_machine_is_shared_over_machines() -> None:
    plan = planner("launcher=slurm", "trainer=gpu", "tuning=full")
    tried = {(setting.nodes, setting.strategy.name) for setting, _ in plan.alternatives()}
    assert {(2, name) for name in ("ddp", "zero1", "zero2", "zero3")} <= tried
    assert not {(1, name) for name in ("zero1", "zero2")} & tried, "one rank shares with nobody"


def test_a_second_copy_is_offered_where_there_is_room() -> None:
    zero3 = (*MUCH, "strategy=zero3")
    plan = planner(*zero3)
    copied = plan.with_copy(plan.asked.strategy, 2)
    assert copied is not None
    assert copied.hpz_ranks == 8
    alone = plan.need(plan.asked).gpu_peak[1]
    need = plan.need(replace(plan.asked, strategy=copied))
    more = need.gpu_peak[1]
    copy = next(line.size for line in need.gpu if line.name == COPY)
    assert more == alone + copy
    for room, said in ((more, "fits"), (alone, "does not fit")):
        tight = planner(*zero3, f"plan.gpu_memory_gb={room / GIB / 0.9 + 1e-6:.7f}")
        *_, last = report(tight, tight.need(tight.asked))
        assert str(last).startswith("strategy.hpz_ranks=8 keeps a second copy")
        assert str(last).endswith(f"GiB, {said}")
    ordered = [setting.strategy.hpz_ranks for setting, _ in planner(*MUCH).alternatives()]
    assert 8 in ordered, "it is tried"
    for overrides in ("launcher.nodes=1", "launcher.ranks=1", "strategy=zero3_offload"):
        there = planner(*zero3, overrides)
        assert there.with_copy(there.asked.strategy, there.asked.nodes) is None, overrides


def test_one_machine_is_not_told_to_be_two() -> None:
    plan = planner("launcher.ranks=2", "trainer=gpu")
    assert not any("launcher" in word for _, found in plan.alternatives() for word in found)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("plan.gpu_memory_gb=0", "plan has gpu_memory_gb 0.0"),
        ("plan.headroom=1", "headroom 1.0"),
        ("plan.host_memory_gb=-1", "plan.host_memory_gb is -1.0: give more than 0, or null"),
    ],
)
def test_what_cannot_be_planned_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        planner(override)


def test_a_tower_without_configuration_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(HydraException, match="cannot get the configuration of 'nobody/nothing'"):
        planner("vl=clip", "vl.model=nobody/nothing")
