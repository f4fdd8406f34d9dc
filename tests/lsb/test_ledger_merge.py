"""Merge policies on answers made by annotators of known quality."""

from __future__ import annotations

import builtins
from typing import Any

import numpy as np
import pytest

from lsb.ledger import MergeConfig
from lsb.ledger.merge import POLICIES, decide
from lsb.ledger.quality import Votes, annotator_quality, current_votes

CROWD_KIT = "pip install 'vlmae[crowd]'"


def row(
    clip: str, labeller: str, label: int, number: int = 1, source: str = "human"
) -> dict[str, Any]:
    return {
        "clip_id": clip, "task": "x", "labeller": labeller, "label": label, "round": number,
        "source": source, "key": clip,
    }  # fmt: skip


def votes(answers: dict[str, dict[str, int]]) -> Votes:
    """Clip -> labeller -> label."""
    rows = [row(clip, *answer) for clip, given in answers.items() for answer in given.items()]
    return current_votes(rows, ["human"])


def labels(
    answers: dict[str, dict[str, int]], known: dict[str, int] | None = None, **config: Any
) -> dict[str, int | None]:
    gold = {(clip, "x"): label for clip, label in (known or {}).items()}
    decisions = decide(votes(answers), gold, MergeConfig(**config))
    return {clip: decision.label for (clip, _), decision in decisions.items()}


def crowd(items: int, accuracies: list[float], seed: int) -> tuple[dict, dict[str, int]]:
    """Answers of annotators that are right at given rates, and the truth."""
    random = np.random.default_rng(seed)
    truth = {f"c{n:04d}": int(random.random() < 0.4) for n in range(items)}
    answers = {
        clip: {
            f"a{who}": label if random.random() < accuracy else 1 - label
            for who, accuracy in enumerate(accuracies)
        }
        for clip, label in truth.items()
    }
    return answers, truth


def test_majority_and_its_ties() -> None:
    answers = {
        "all": {"a": 1, "b": 1, "c": 1},
        "two": {"a": 0, "b": 0, "c": 1},
        "tie": {"a": 0, "b": 1},
        "classes": {"a": 0, "b": 1, "c": 2, "d": 2},
        "one": {"a": 1},
    }
    half = {"all": 1, "two": 0, "tie": None, "classes": None}
    assert labels(answers) == half  # one answer is the label as it is
    # A plurality: two of four, but never a tie.
    assert labels(answers, agreement=0.0) == {**half, "classes": 2}
    assert labels(answers, agreement=0.99) == {**half, "two": None}
    more = {"all": 1, "two": 0, "tie": None, "classes": None, "one": None}
    assert labels(answers, minimum_annotators=2) == more
    assert labels(answers, {"tie": 1, "all": 0}) == {"two": 0, "classes": None}


def test_the_last_answer_of_a_labeller_counts_and_others_sources_do_not() -> None:
    rows = [row("c", "a", 0, 1), row("c", "a", 1, 2), row("c", "b", 1, 1)]
    rows += [row("c", "m", 0, 3, "pseudo"), row("c", "o", 0, 1, "oracle")]
    for order in (rows, rows[::-1]):
        found = current_votes(order, ["human", "oracle"])
        assert {who: answer["label"] for who, answer in found["c", "x"].items()} == {
            "a": 1, "b": 1, "o": 0,
        }  # fmt: skip
        decision = decide(found, {}, MergeConfig())["c", "x"]
        assert decision.label == 1
        assert decision.confidence == pytest.approx(2 / 3)


def test_gold_weights_overrule_a_majority_of_bad_annotators() -> None:
    known = {f"g{n}": n % 2 for n in range(20)}
    answers: dict[str, dict[str, int]] = {
        clip: {"good": label, "bad1": 1 - label, "bad2": 1 - label} for clip, label in known.items()
    }
    answers["c"] = {"good": 1, "bad1": 0, "bad2": 0}
    answers["tie"] = {"new1": 1, "new2": 0}  # no gold item answered: equal weights
    assert labels(answers, known) == {"c": 0, "tie": None}
    assert labels(answers, known, policy="gold_weighted") == {"c": 1, "tie": None}
    # (20 + 1) / (20 + 2) against twice (0 + 1) / (20 + 2)
    gold = {(clip, "x"): label for clip, label in known.items()}
    decision = decide(votes(answers), gold, MergeConfig("gold_weighted"))["c", "x"]
    assert decision.confidence == pytest.approx(21 / 23)


def test_quality_counts_and_wilson_interval() -> None:
    known = {(f"g{n}", "x"): 1 for n in range(10)}
    answers = {f"g{n}": {"a": int(n < 9)} for n in range(10)} | {"other": {"a": 1, "b": 0}}
    a, b = annotator_quality(votes(answers), known)
    assert (a.labeller, a.annotations, a.gold, a.correct, a.accuracy) == ("a", 11, 10, 9, 0.9)
    # Wilson's interval of 9 in 10 at 95 %, e.g. Newcombe 1998: both ends are where |z| is 1.96.
    assert (a.low, a.high) == (pytest.approx(0.5958, abs=1e-4), pytest.approx(0.9821, abs=1e-4))
    for end in (a.low, a.high):
        assert end is not None
        assert abs(0.9 - end) / np.sqrt(end * (1 - end) / 10) == pytest.approx(1.96, abs=1e-3)
    assert (b.gold, b.accuracy, b.low, b.high) == (0, None, None, None)


def test_dawid_skene_beats_majority_where_annotators_differ() -> None:
    pytest.importorskip("crowdkit", reason=f"no crowd-kit: {CROWD_KIT}")
    answers, truth = crowd(600, [0.95, 0.9, 0.55, 0.55, 0.52], seed=3)

    def right(found: dict[str, int | None]) -> float:
        return float(np.mean([found[clip] == label for clip, label in truth.items()]))

    majority, skene = right(labels(answers)), right(labels(answers, policy="dawid_skene"))
    assert skene > majority + 0.05
    assert skene > 0.9


def test_gold_tells_dawid_skene_which_of_two_camps_is_right() -> None:
    pytest.importorskip("crowdkit", reason=f"no crowd-kit: {CROWD_KIT}")
    answers, truth = crowd(200, [0.05, 0.05, 0.95], seed=5)
    assert np.mean([labels(answers)[clip] == label for clip, label in truth.items()]) < 0.2
    known = dict(list(truth.items())[:60])
    found = labels(answers, known, policy="dawid_skene")
    assert set(found) == set(truth) - set(known)
    assert np.mean([label == truth[clip] for clip, label in found.items()]) > 0.85


def test_dawid_skene_without_crowd_kit_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.startswith("crowdkit"):
            raise ModuleNotFoundError("No module named 'crowdkit'", name="crowdkit")
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ValueError, match=r"the package (pandas|crowdkit): .*vlmae\[crowd\]"):
        labels({"c": {"a": 1, "b": 0}}, policy="dawid_skene")
    # Nothing to merge needs nothing.
    assert labels({"c": {"a": 1}}, policy="dawid_skene") == {}


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_does_not_depend_on_the_order_of_answers(policy: str) -> None:
    if policy == "dawid_skene":
        pytest.importorskip("crowdkit", reason=f"no crowd-kit: {CROWD_KIT}")
    answers, _ = crowd(40, [0.9, 0.6, 0.7], seed=1)
    other = {clip: dict(reversed(given.items())) for clip, given in reversed(answers.items())}
    config = MergeConfig(policy)  # type: ignore[arg-type]
    assert decide(votes(answers), {}, config) == decide(votes(other), {}, config)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"policy": "vote"}, r"ledger\.policy is 'vote': use one of majority"),
        ({"sources": ("gold",)}, r"ledger\.sources is \['gold'\]: give some of human"),
        ({"sources": ()}, r"ledger\.sources is \[\]"),
        ({"agreement": 1.0}, r"ledger\.agreement is 1\.0: give a share"),
        ({"minimum_annotators": 0}, r"ledger\.minimum_annotators is 0"),
        ({"smoothing": 0}, r"ledger\.smoothing is 0"),
        ({"iterations": 0}, r"ledger\.iterations is 0"),
    ],
)
def test_settings_out_of_range_are_refused(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MergeConfig(**config)


def test_the_first_labels_of_one_labeller_are_not_fewer_than_demanded() -> None:
    given = [row("g", "given", 1, 0), row("h", "given", 0, 0), row("asked", "ann", 1, 1)]
    config = MergeConfig(minimum_annotators=2)

    def decided(rows: list[dict[str, Any]]) -> dict[str, int | None]:
        decisions = decide(current_votes(rows, ["human"]), {}, config)
        return {clip: decision.label for (clip, _), decision in decisions.items()}

    assert decided(given) == {"asked": None}
    # A crowd that answered in round 0 can be demanded to have done so twice.
    crowd = [row("both", "ann", 1, 0), row("both", "bob", 1, 0), row("one", "bob", 0, 0)]
    assert decided(crowd) == {"both": 1, "one": None}


def test_the_only_answer_to_an_item_that_was_decided_is_its_label() -> None:
    answers = votes({"one": {"a": 1}, "other": {"a": 0}})
    decisions = decide(answers, {}, MergeConfig(agreement=0.99), [("one", "x")])
    assert {item: decision.label for item, decision in decisions.items()} == {("one", "x"): 1}
