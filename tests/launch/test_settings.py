"""Values of the wrong kind are one line that names the key, before anything is made."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from launch.rounds.arms import arm_settings
from launch.stages import shortlist
from launch.stages.expansion import identity_of
from launch.stages.settings import Settings
from lsb.acquisition.config import ACQUISITIONS
from vlmae.config import compose_config
from vlmae.embedding import Scoring

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
    "acquisition.name=bald": r"acquisition\.dropout_samples is 0: bald",
    "acquisition.name=proxy": "fit_proxy",
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
    "pseudo.mode=all": "pseudo.mode is 'all'",
    "+pseudo.foo=1": "pseudo has no key 'foo'",
    "ledger.location=5": "ledger.location: ",
    'ledger.location="postgresql://me:secret@db/growth_{arm}"': "ledger.location is .* ~/.pgpass",
    'ledger.location="growth_{seed}.sqlite"': r"ledger.location has {seed} .*: use {name}, {arm}",
    "ledger.location=growth.sqlite": r"one ledger for the arms lsb_lt, .* put {arm} into it",
    "ledger.location=mysql://host/x": "not 'mysql'",
    '+growing.ledger="postgresql://me@db/growth?password=secret"': "growing.ledger is .*PGPASS",
    "budgets=[5]": r"budgets is \[5\] for 2 rounds",
    "budgets=[5,0]": "give 1 or more",
}


@pytest.mark.parametrize("override", WRONG)
def test_wrong_values_name_their_key(override: str) -> None:
    config = compose_config("round", ["experiment=tiny", override])
    with pytest.raises(ValueError, match=WRONG[override]) as refused:
        Settings.from_config(config)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("override", ["acquisition=entropy", "broadening=lsb", "arm_name=x"])
def test_an_override_that_would_make_all_arms_alike_is_refused(override: str) -> None:
    overrides = ["experiment=tiny", override]
    settings = Settings.from_config(compose_config("round", overrides))
    with pytest.raises(ValueError, match=r"would change every compared arm.*arms=\[\]"):
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


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_every_acquisition_is_an_arm_without_broadening(name: str) -> None:
    settings = Settings.from_config(compose_config("round", ["experiment=tiny", f"arm={name}"]))
    assert (settings.arm, settings.expand.acquisition.name) == (name, name)
    assert settings.expand.broadening.total == 0
    assert settings.expand.threshold.mode == "none"


@pytest.mark.parametrize("arm", ["entropy", "random", "lsb_lt"])
def test_settings_that_an_acquisition_does_not_read_change_no_name(arm: str) -> None:
    """Expansions of these arms were named before there were other acquisitions."""
    overrides = ["experiment=tiny", f"arm={arm}"]
    one = Settings.from_config(compose_config("round", overrides)).expand
    identity = identity_of(one)["acquisition"]
    assert set(identity) == {"name", "task_weights", "seed"}
    other = compose_config("round", [*overrides, "+acquisition.candidates=7"])
    assert identity_of(Settings.from_config(other).expand)["acquisition"] == identity


@pytest.mark.parametrize(
    ("arm", "split", "passes"), [("bald", "pool", 10), ("bald", "gold", 0), ("entropy", "pool", 0)]
)
def test_only_a_pool_that_is_asked_by_dropout_is_embedded_with_it(
    monkeypatch: pytest.MonkeyPatch, arm: str, split: str, passes: int
) -> None:
    asked: list[int] = []

    def embed(root: object, source: object, trained: object, config: object, scoring: Scoring):  # type: ignore[no-untyped-def]
        asked.append(scoring.dropout_samples)
        return "stage"

    monkeypatch.setattr(shortlist, "embed_fused", embed)
    settings = Settings.from_config(compose_config("round", ["experiment=tiny", f"arm={arm}"]))
    shared = SimpleNamespace(tokens=None)
    shortlist.embed_scored(settings, shared, None, split, None)  # type: ignore[arg-type]
    assert asked == [passes]


def test_a_round_may_have_a_budget_of_its_own() -> None:
    plain = Settings.from_config(compose_config("round", ["experiment=tiny"]))
    assert plain.in_round(2) is plain
    assert "budgets" not in plain.identity, "runs of before there was a choice go on"
    own = Settings.from_config(compose_config("round", ["experiment=tiny", "budgets=[5,7,9]"]))
    budgets = [own.in_round(number).expand.selection.budget for number in (1, 2, 3)]
    assert budgets == [5, 7, 9]
    assert own.in_round(2).expand.broadening == plain.expand.broadening
    assert own.identity["budgets"] == [5, 7, 9]
    asked = compose_config("round", ["experiment=tiny", "pilot.label_noise=0.3"])
    assert Settings.from_config(asked).identity == plain.identity
