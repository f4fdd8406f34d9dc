"""Values of the wrong kind are one line that names the key, before anything is made."""

from __future__ import annotations

import pytest

from launch.compare import arm_settings
from launch.settings import Settings
from vlmae.config import compose_config

WRONG = {
    "rounds=two": "rounds: ",
    "rounds=1.5": "rounds: ",
    "name=null": "name: ",
    "name=stages": "not 'stages'",
    "arms=random": "arms: ",
    "controls=maybe": "controls: ",
    "selection.budget=abc": "selection.budget: ",
    "search.neighbours=abc": "search.neighbours: ",
    "data.clip_seconds=abc": "data.clip_seconds: ",
    "acquisition.task_weights=3": "acquisition.task_weights: ",
    "+acquisition.task_weights.policy=1": r"names \['policy'\]",
    "+trainer.foo=1": "trainer has no key 'foo'",
    "trainer.epochs=-1": "at least 1",
    "trainer.inputs=foo": "trainer.inputs is 'foo'",
    "trainer.target_precision=80": "trainer.target_precision is 80",
    "optimizer.learning_rate=abc": "optimizer.learning_rate: ",
    "oracle.noise=abc": "oracle.noise: ",
    "decode.frames=0": "decode.frames is 0",
    "decode.sampling=all": "decode.sampling: ",
    "prefix.dtype=float8": "prefix.dtype is 'float8'",
    "prefix.use=maybe": "prefix.use is 'maybe'",
    "loader.remainder=keep": "loader.remainder is 'keep'",
    "loader.workers=-1": "loader has workers -1",
    "+loader.positive_weight.unsafe=0": "loader weight unsafe is 0",
    "evaluation.resamples=0": "resamples 0",
    "task.names=[relevance,beauty]": "beauty",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_values_name_their_key(override: str) -> None:
    config = compose_config("round", ["experiment=tiny", override])
    with pytest.raises(ValueError, match=WRONG[override]):
        Settings.from_config(config)


@pytest.mark.parametrize("override", ["acquisition=entropy", "broadening=lsb", "arm_name=x"])
def test_an_override_that_would_make_all_arms_alike_is_refused(override: str) -> None:
    overrides = ["experiment=tiny", override]
    settings = Settings.from_config(compose_config("round", overrides))
    with pytest.raises(ValueError, match=r"would change every arm.*arms=\[\]"):
        arm_settings(settings, overrides)


def test_arms_differ_in_what_their_presets_say() -> None:
    overrides = ["experiment=tiny"]
    arms = arm_settings(Settings.from_config(compose_config("round", overrides)), overrides)
    presets = {
        arm.arm: (
            arm.expand.acquisition.name,
            arm.expand.broadening.total,
            arm.expand.threshold.mode,
        )
        for arm in arms
    }
    assert presets == {
        "lsb_lt": ("entropy", 8, "calibrated"),
        "random": ("random", 0, "none"),
        "entropy": ("entropy", 0, "none"),
    }


def test_paths_and_parallelism_do_not_change_the_identity() -> None:
    one, other = (
        Settings.from_config(compose_config("round", ["experiment=avt_small", *overrides]))
        for overrides in ([], ["data.sources=elsewhere", "data.processes=7", "prefix.processes=3"])
    )
    assert one.identity == other.identity
