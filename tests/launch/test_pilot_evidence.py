"""What a pilot's criteria rest on: annotators by step, why LT was refused, curves that end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_criteria import ASKED

from launch.labelling.annotation import GIVEN
from launch.pilot import GOLD_LEDGER, measured_annotators
from launch.piloting.criteria import MORE_DATA, NO, NOT_MEASURED, YES, verdict
from launch.piloting.evidence import Evidence
from launch.rounds import account
from launch.stages.expansion import identity_of
from launch.stages.settings import Settings
from lsb.annotate import annotation_table
from lsb.artifact import Part, run_stage, write_json
from lsb.ids import sample_id
from lsb.ledger import GOLD_LABELS, AnnotatorQuality, Ledger, Round, TaskThreshold
from lsb.selection import CHOSEN
from vlmae.config import compose_config

TASKS = ("relevance", "clickbait", "unsafe")


def settings(runs: Path, *overrides: str) -> Settings:
    given = ["experiment=tiny", "name=pilot", f"runs={runs}", *overrides]
    return Settings.from_config(compose_config("round", given))


def annotations(keys: list[str], label: int, source: str, labeller: str) -> pa.Table:
    ids = [sample_id(key) for key in keys]
    count = len(keys)
    return annotation_table(
        ids, keys, ["unsafe"] * count, [label] * count, source=source, labeller=labeller
    )


def arms_of(config: Settings, *rounds: pa.Table, gold: list[str]) -> Any:
    """A finished run with these answers of round 0, 1, ..., and gold labels that are all 1.

    As people are told to, they are given for clips of a round before the next one is recorded.
    """
    place = config.folder / config.arm / "ledger.sqlite"
    with Ledger.open(place) as ledger:
        for number, answers in enumerate(rounds):
            record = Round(number, "lsb_lt", f"c{number}", f"s{number}")
            ledger.record_round(record, CHOSEN.empty_table(), answers)
            own = sorted(set(gold) & set(answers["key"].to_pylist()))
            known = [
                {"id": sample_id(key), "key": key, "task": "unsafe", "label": 1} for key in own
            ]
            ledger.add_gold(pa.Table.from_pylist(known, schema=GOLD_LABELS))
    ids = [sample_id(f"gold-{n}") for n in range(4)]
    truth = pa.table(
        {
            "id": pa.array(ids, pa.binary(16)),
            "key": [f"gold-{n}" for n in range(4)],
            "split": ["gold"] * 4,
            **{f"label_{task}": pa.array([1, 0, 1, 0], pa.int8()) for task in TASKS},
        }
    )
    shared = SimpleNamespace(truth=truth, labels=None)
    return SimpleNamespace(
        settings=config, folder=SimpleNamespace(path=config.folder), shared=shared, rounds={}
    )


def noise(quality: list[AnnotatorQuality], last: int) -> Any:
    arms: Any = SimpleNamespace()
    return Evidence(ASKED, arms, {}, {last: quality})._noise(0.05, last)


@pytest.mark.parametrize("oracle", ["files", "label_studio"])
def test_nobody_answers_for_people(oracle: str, tmp_path: Path) -> None:
    given = annotations(["first"], 1, "human", GIVEN)
    arms = arms_of(settings(tmp_path, f"oracle={oracle}"), given, gold=["first"])
    quality = measured_annotators(arms, 10, 0)
    assert quality == []
    assert not (arms.folder.path / GOLD_LEDGER).exists()
    found = noise(quality, 0)
    assert found.answer == NOT_MEASURED
    assert verdict([found]) == MORE_DATA


def test_people_are_measured_by_what_they_had_answered(tmp_path: Path) -> None:
    first = annotations(["first"], 1, "oracle", "oracle:noise=0.0")
    early = annotations([f"a-{n}" for n in range(80)], 1, "human", "ann")
    late = annotations([f"b-{n}" for n in range(40)], 0, "human", "bob")
    gold = [*(f"a-{n}" for n in range(80)), *(f"b-{n}" for n in range(40)), "first"]
    arms = arms_of(settings(tmp_path, "oracle=files"), first, early, late, gold=gold)
    assert measured_annotators(arms, 10, 0) == []
    after_one, after_two = (measured_annotators(arms, 10, last) for last in (1, 2))
    assert [(one.labeller, one.gold, one.correct) for one in after_one] == [("ann", 80, 80)]
    assert [(one.labeller, one.correct) for one in after_two] == [("ann", 80), ("bob", 0)]
    assert noise(after_one, 1).answer == YES
    told = noise(after_two, 2)
    assert told.answer == NO
    assert "40 of 120 answers on gold clips are wrong, 2 annotator(s)" in told.evidence


def test_simulated_annotators_are_asked_besides(tmp_path: Path) -> None:
    first = annotations(["first"], 1, "oracle", "oracle:noise=0.0")
    arms = arms_of(settings(tmp_path), first, gold=[])
    quality = measured_annotators(arms, 3, 0)
    assert sum(one.gold for one in quality) == 9
    assert (arms.folder.path / GOLD_LEDGER).is_file()


# ---- why LT could not be set


def refused(root: Path, name: str, why: str | None, **more: Any) -> Any:
    """A stage with a threshold.json that says why."""

    def write(output: Path) -> dict[str, int]:
        write_json(output / "threshold.json", {"threshold": None, "refusal": why})
        return {}

    more.setdefault("config", {"why": why})
    more.setdefault("inputs", {})
    parts = [Part("all", ("threshold.json",), write)]
    return run_stage(root, name, parts=parts, **more)


def told(config: Settings, stages: dict[str, Any]) -> str:
    fallback = {"mode": "fallback", "value": 0.9}
    before: Any = SimpleNamespace(round=0, threshold=None, task_thresholds=(), stages=stages)
    entry: Any = SimpleNamespace(round=1, threshold=fallback, task_thresholds=(), stages={})
    folder = SimpleNamespace(path=config.folder)
    arms: Any = SimpleNamespace(
        settings=config, folder=folder, rounds={config.arm: [before, entry]}
    )
    criterion = Evidence(ASKED, arms, {}, {})._lookalikes(0.5, 1)
    assert criterion.answer == NO
    return criterion.evidence


def test_the_reason_is_the_expansions(tmp_path: Path) -> None:
    stages = {"expand": [refused(tmp_path, "expand", "3 pairs are too few")]}
    assert told(settings(tmp_path), stages) == "round 1: LT could not be set: 3 pairs are too few"


def test_within_a_scoring_budget_it_is_the_shortlists(tmp_path: Path) -> None:
    stages = {
        "shortlist": [refused(tmp_path, "shortlist", "pooled space has none")],
        "expand": [refused(tmp_path, "expand", None)],
    }
    assert told(settings(tmp_path), stages).endswith("pooled space has none")


@pytest.mark.parametrize("budgets", ["[]", "[7,9]"])
def test_after_a_takedown_it_is_found_by_the_ledgers_round(tmp_path: Path, budgets: str) -> None:
    config = settings(tmp_path, f"budgets={budgets}")
    asking = config.in_round(1).expand
    refused(
        config.stages,
        "expand",
        "no similarity reaches it",
        config={"expand": identity_of(asking), "round": 1},
        inputs={"pool": "s1"},
    )
    none = annotations([], 1, "oracle", "x")
    arms_of(config, none, none, gold=[])
    assert told(config, {"train": []}).endswith("no similarity reaches it")


# ---- LT of each task


def of_tasks(*rounds: tuple[TaskThreshold, ...], last: int) -> Any:
    """What is said of the lookalike precision of an arm that lists stream by stream."""
    entries = [
        SimpleNamespace(round=number, threshold=None, task_thresholds=one)
        for number, one in enumerate(rounds)
    ]
    arms: Any = SimpleNamespace(settings=SimpleNamespace(arm="lsb_lt"), rounds={"lsb_lt": entries})
    return Evidence(ASKED, arms, {}, {})._lookalikes(0.5, last)


POLICY = TaskThreshold("policy", "audio+image", "calibrated", 2.3456, 0.53, 60, 21)
UNSAFE = TaskThreshold("unsafe", "audio", "calibrated", 1.5, 0.61, 80, 30)


def test_every_task_has_to_reach_the_limit() -> None:
    found = of_tasks((), (POLICY, UNSAFE), last=1)
    assert (found.answer, found.low) == (YES, 0.53)
    assert found.evidence == (
        "round 1: policy LT 2.346 in audio+image, 60 labelled pairs of 21 seeds, >= 53.0 %; "
        "unsafe LT 1.500 in audio, 80 labelled pairs of 30 seeds, >= 61.0 %"
    )
    poorer = replace(POLICY, precision=0.49)
    assert of_tasks((), (poorer, UNSAFE), last=1).answer == NO
    assert of_tasks((), (poorer, UNSAFE), (POLICY, UNSAFE), last=2).answer == YES
    assert of_tasks((), (POLICY, UNSAFE), (poorer, UNSAFE), last=1).answer == YES
    assert of_tasks((), (POLICY, UNSAFE), last=0).answer == NOT_MEASURED


def test_a_task_whose_threshold_is_refused_is_a_no() -> None:
    refused = TaskThreshold("policy", "image", "refused", refusal="3 pairs are too few")
    found = of_tasks((), (refused, UNSAFE), last=1)
    assert (found.answer, found.low, found.open) == (NO, None, True)
    assert found.evidence == "round 1: LT could not be set: policy: 3 pairs are too few"


def test_thresholds_that_were_given_or_not_wanted_measure_nothing() -> None:
    given = of_tasks((), (TaskThreshold("policy", "image", "fixed", 2.0, None, 0, 0),), last=1)
    assert given.answer == NOT_MEASURED
    assert given.evidence == "LT was given (policy 2), not measured"
    no_positive = TaskThreshold("policy", "", "none", refusal="lookalikes need two")
    none = of_tasks((), (no_positive, TaskThreshold("unsafe", "image", "none")), last=1)
    assert none.evidence == "no round has set LT yet, or the arm has none"


# ---- a random arm whose pool has run out


def test_rounds_that_bring_no_label_are_no_points_of_the_curve() -> None:
    assert account.more_labels([80, 160, 160]) == [0, 1]
    assert account.more_labels([80, 160, 150, 161]) == [0, 1, 3]
    assert account.more_labels([]) == []


def test_savings_are_read_off_a_curve_that_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings(tmp_path)
    values = {"arm": 0.5, "r0": 0.2, "r1": 0.6, "r2": 0.6}

    def recalls(arms: Any, entry: Any, task: str) -> Any:
        return np.full(3, values[entry.name])

    monkeypatch.setattr(account, "recalls", recalls)
    labels = [80, 160, 160]
    random = [SimpleNamespace(name=f"r{n}", round=n, labels=labels[n]) for n in range(3)]
    arms: Any = SimpleNamespace(settings=config, rounds={"random": random})
    entry: Any = SimpleNamespace(name="arm", round=1, labels=100)
    paid = [{"all_money": money, "all_hours": 0.0} for money in (8.0, 16.0, 17.0)]
    curve = {"labels": labels, "cost": paid}
    found = account._saved(arms, entry, {"all_money": 10.0, "all_hours": 0.0}, curve)
    assert found is not None
    assert found["unsafe"]["random_labels"] == pytest.approx(140)
    assert found["unsafe"]["most_asked"] == 160
    assert found["unsafe"]["saved_money"] == pytest.approx(14 - 10)
