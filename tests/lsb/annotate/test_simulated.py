from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

from lsb.annotate import ANNOTATIONS
from lsb.annotate.simulated import (
    FlipRates,
    SimulatedAnnotator,
    SimulatedAnnotators,
    SimulatedConfig,
)
from lsb.ids import sample_ids, to_arrow

COUNT = 4000
KEYS = [f"clip-{index}" for index in range(COUNT)]
IDS = sample_ids(KEYS)
LABELS = (np.random.default_rng(0).random(COUNT) < 0.3).astype(np.int8)
TRUTH = pa.table({"id": to_arrow(IDS), "label_x": LABELS, "label_y": 1 - LABELS})
OF_KEY = dict(zip(KEYS, LABELS.tolist(), strict=True))
CROWD = SimulatedConfig(
    {
        "ann": SimulatedAnnotator(0.02, 0.2, seconds=20, price=0.01),
        "bob": SimulatedAnnotator(0.1, 0.4, {"y": FlipRates(0.0, 0.0)}, skip=0.25, seconds=9),
        "cyd": SimulatedAnnotator(),
    },
    answers_per_clip=2,
    hourly_wage=18,
    seed=7,
)


def judged(rows: list[int] | range = range(COUNT), config: SimulatedConfig = CROWD) -> pa.Table:
    crowd = SimulatedAnnotators(TRUTH, config)
    return crowd.annotate(IDS[list(rows)], [KEYS[row] for row in rows], ["y", "x"])


def test_each_errs_at_its_own_rates_for_each_class_and_task() -> None:
    table = judged()
    assert table.schema == ANNOTATIONS
    wrong: Counter[tuple[str, str, int]] = Counter()
    every: Counter[tuple[str, str, int]] = Counter()
    for row in table.to_pylist():
        truth = OF_KEY[row["key"]] if row["task"] == "x" else 1 - OF_KEY[row["key"]]
        place = (row["labeller"].removeprefix("oracle:"), row["task"], truth)
        every[place] += 1
        wrong[place] += row["label"] != truth
    for (name, task, truth), count in every.items():
        rates = CROWD.annotators[name].rates(task)
        expected = rates.false_negative if truth else rates.false_positive
        assert count > 500
        deviation = 4 * (expected * (1 - expected) / count) ** 0.5
        assert abs(wrong[name, task, truth] / count - expected) <= deviation, (name, task, truth)


def test_two_of_three_are_asked_and_one_of_them_skips_a_quarter() -> None:
    crowd = SimulatedAnnotators(TRUTH, CROWD)
    done = crowd.judge(IDS, KEYS, ["x", "y"])
    costs = {row["labeller"]: row for row in done.costs.to_pylist()}
    given = Counter(done.annotations["labeller"].to_pylist())
    assert sum(row["judgements"] for row in costs.values()) == 2 * 2 * COUNT
    for labeller, row in costs.items():
        assert row["judgements"] - row["skipped"] == given[labeller]
        assert 0.63 < row["judgements"] / 2 / COUNT < 0.70
    assert 0.22 < costs["oracle:bob"]["skipped"] / costs["oracle:bob"]["judgements"] < 0.28
    assert costs["oracle:ann"]["skipped"] == costs["oracle:cyd"]["skipped"] == 0
    assert costs["oracle:ann"]["unit_price"] == pytest.approx(0.01 + 18 * 20 / 3600)
    assert costs["oracle:ann"]["seconds"] == costs["oracle:ann"]["judgements"] * 20
    assert costs["oracle:cyd"]["unit_price"] == 0
    assert crowd.name == "oracle:ann, oracle:bob, oracle:cyd"


def test_an_answer_depends_on_its_clip_alone() -> None:
    every = {
        (row["key"], row["task"], row["labeller"]): row["label"] for row in judged().to_pylist()
    }
    some = np.random.default_rng(1).permutation(COUNT)[:300].tolist()
    table = judged(some)
    places = [(row["id"], row["task"], row["labeller"]) for row in table.to_pylist()]
    assert places == sorted(places)
    keys = {KEYS[row] for row in some}
    assert {
        (row["key"], row["task"], row["labeller"]): row["label"] for row in table.to_pylist()
    } == {place: label for place, label in every.items() if place[0] in keys}


def ties(annotations: pa.Table) -> set[tuple[str, str]]:
    told: dict[tuple[str, str], list[int]] = defaultdict(list)
    for row in annotations.to_pylist():
        told[row["id"].hex(), row["task"]].append(row["label"])
    return {item for item, given in told.items() if 2 * sum(given) == len(given)}


def test_another_is_asked_about_what_is_open_and_paid_for_it() -> None:
    asking = replace(CROWD, further_answers=1)
    crowd = SimulatedAnnotators(TRUTH, asking)
    before = SimulatedAnnotators(TRUTH, CROWD).judge(IDS, KEYS, ["x", "y"])
    done = crowd.judge(IDS, KEYS, ["x", "y"], ties)
    open_before = ties(before.annotations)
    assert len(open_before) > 500
    first = {
        (row["id"].hex(), row["task"], row["labeller"]): row["label"]
        for row in before.annotations.to_pylist()
    }
    given = {
        (row["id"].hex(), row["task"], row["labeller"]): row["label"]
        for row in done.annotations.to_pylist()
    }
    assert first.items() <= given.items(), "who has answered is not asked twice"
    further = given.keys() - first.keys()
    assert {place[:2] for place in further} <= open_before
    assert max(Counter(place[:2] for place in further).values()) == 1
    # Of three annotators two have answered, so the third is asked, and may skip.
    left = ties(done.annotations)
    assert left == open_before - {place[:2] for place in further}
    assert 0 < len(left) < len(open_before) / 5
    made = sum(done.costs["judgements"].to_pylist()) - sum(before.costs["judgements"].to_pylist())
    assert made == len(open_before)
    told = {row["labeller"]: row for row in done.costs.to_pylist()}
    assert sum(row["judgements"] - row["skipped"] for row in told.values()) == len(given)
    assert told["oracle:ann"]["seconds"] == 20 * told["oracle:ann"]["judgements"]
    nobody = crowd.judge(IDS, KEYS, ["x", "y"])
    assert nobody.annotations.equals(before.annotations)
    assert "further_answers" not in CROWD.identity() | CROWD.deciding()
    assert asking.identity()["further_answers"] == asking.deciding()["further_answers"] == 1


def test_what_cannot_be_is_refused() -> None:
    ann = SimulatedAnnotator()
    with pytest.raises(ValueError, match=r"false_positive is 1\.2: give a share"):
        SimulatedAnnotator(1.2)
    with pytest.raises(ValueError, match="skip is -1"):
        SimulatedAnnotator(skip=-1)
    with pytest.raises(ValueError, match=r"seconds is inf: give a number"):
        SimulatedAnnotator(seconds=float("inf"))
    with pytest.raises(ValueError, match="answers_per_clip is 2 of 1 annotators"):
        SimulatedConfig({"ann": ann}, answers_per_clip=2)
    with pytest.raises(ValueError, match=r"further_answers is 1, and of 2 .* give 0 to 0"):
        SimulatedConfig({"ann": ann, "bob": ann}, answers_per_clip=2, further_answers=1)
    odd = SimulatedConfig({"ann": SimulatedAnnotator(tasks={"z": FlipRates()})})
    with pytest.raises(ValueError, match="rates of task 'z', asked are"):
        judged(range(3), odd)
