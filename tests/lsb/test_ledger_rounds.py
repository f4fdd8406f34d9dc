"""What comes later changes no training set of an earlier round: answers, policies, gold labels."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_ledger import chosen, labels, record
from test_ledger_annotators import answers, content, gold, trained

from lsb.annotate.carried import carried_labeller
from lsb.ids import sample_id
from lsb.ledger import Ledger, MergeConfig
from lsb.selection import CHOSEN

KNOWN = {f"g{n}": n % 2 for n in range(10)}
ASKED_LATER = {f"c{n:02d}": n % 2 for n in range(30)}


@pytest.fixture
def ledger(ledger_location: str) -> Iterator[Ledger]:
    """Round 0 has a label that came with its media; in round 1 two people differ about `a`."""
    with Ledger.open(ledger_location) as ledger:
        first = labels({("old", "x"): 0}, "human", "given")
        ledger.record_round(record(0, "first"), CHOSEN.empty_table(), first)
        ledger.record_round(record(1), chosen("a", "b"), None)
        ledger.import_annotations(1, answers("ann", {"a": 1, "b": 1}))
        ledger.import_annotations(1, answers("bob", {"a": 0, "b": 1}))
        yield ledger


def ask_again(ledger: Ledger) -> None:
    """Round 2, in which ann turns out to be right and bob wrong."""
    ledger.record_round(record(2), chosen(*KNOWN, *ASKED_LATER), None)
    for known in (KNOWN, ASKED_LATER):
        wrong = {clip: 1 - label for clip, label in known.items()}
        ledger.import_annotations(2, answers("ann", known))
        ledger.import_annotations(2, answers("bob", wrong))
        ledger.import_annotations(2, answers("cy", known))
    ledger.add_gold(gold(KNOWN))


def adjudicated(ledger: Ledger, config: MergeConfig, rounds: int) -> list[dict[str, object]]:
    """Training sets of all rounds, in the order in which a run adjudicates and trains."""
    found = []
    for number in range(rounds):
        ledger.adjudicate(config, number)
        found.append(trained(ledger, number))
    return found


@pytest.mark.parametrize("policy", ["majority", "gold_weighted", "dawid_skene"])
def test_answers_of_a_later_round_change_later_training_sets_alone(
    ledger: Ledger, policy: str
) -> None:
    if policy == "dawid_skene":
        pytest.importorskip("crowdkit", reason="no crowd-kit: pip install 'vlmae[crowd]'")
    config = MergeConfig(policy)  # type: ignore[arg-type]
    first = adjudicated(ledger, config, 2)
    assert first[0] == {"old": (0, 0, "human")}
    assert first[1].get("a") != (1, 1, "human")
    ask_again(ledger)
    last = adjudicated(ledger, config, 3)
    assert last[:2] == first
    # Two answers are a tie for a majority; who knows bob by now takes ann's.
    assert last[2].get("a") == (None if policy == "majority" else (1, 1, "human"))
    before = content(ledger)
    assert adjudicated(ledger, config, 3) == last
    assert content(ledger) == before
    if policy != "majority":
        early, late = ledger.adjudications("a")
        assert (early["round"], late["round"], late["label"]) == (1, 2, 1)
        assert early["label"] != 1
        assert early["evidence"] == late["evidence"] == {("ann", 1), ("bob", 1)}


def test_without_a_round_all_are_looked_at_and_earlier_ones_stay(ledger: Ledger) -> None:
    config = MergeConfig("gold_weighted")
    adjudicated(ledger, config, 2)
    ask_again(ledger)
    assert ledger.adjudicate(config).recorded == 31
    assert trained(ledger)["a"] == (1, 1, "human")
    assert "a" not in trained(ledger, 1)
    assert ledger.queue().num_rows == 0
    # A run that is started again says the same of its rounds as the command did, and as before.
    assert ledger.adjudicate(config, 1).recorded == 0
    assert ledger.adjudicate(config, 2).recorded == 0
    # Another policy of a command is no decision of an earlier round, either.
    ledger.adjudicate(MergeConfig(agreement=0.99))
    assert "a" not in trained(ledger, 1)
    assert "a" not in trained(ledger)
    ledger.adjudicate(config, 2)
    assert trained(ledger)["a"] == (1, 1, "human")


def test_an_earlier_round_that_is_decided_anew_does_not_outlive_a_later_one(
    ledger: Ledger,
) -> None:
    adjudicated(ledger, MergeConfig("gold_weighted"), 2)
    ask_again(ledger)
    ledger.adjudicate(MergeConfig("gold_weighted"), 2)
    ledger.adjudicate(MergeConfig("majority"), 1)
    numbers = [(row["number"], row["round"]) for row in ledger.adjudications("a")]
    assert numbers == [(1, 1), (3, 1), (2, 2)]
    assert trained(ledger)["a"] == (1, 1, "human")


def test_gold_annotations_of_a_later_round_do_not_weigh_earlier_answers(ledger: Ledger) -> None:
    ledger.record_round(record(2), CHOSEN.empty_table(), labels({("a", "x"): 1}, "gold", "release"))
    assert ledger.adjudicate(MergeConfig(), 1).items == 2
    assert ledger.adjudicate(MergeConfig(), 2).items == 1


def test_no_round_is_no_decision(tmp_path: Path) -> None:
    with Ledger.open(tmp_path / "empty.sqlite") as ledger:
        assert ledger.adjudicate(MergeConfig()).items == 0
        assert ledger.adjudicate(MergeConfig(), 3).items == 0


def test_gold_labels_that_an_earlier_round_rests_on_are_refused(ledger: Ledger) -> None:
    ledger.adjudicate(MergeConfig())
    ledger.record_round(record(2), chosen("c"), None)
    ledger.import_annotations(2, answers("ann", {"c": 1}))
    before = content(ledger)
    sets = [trained(ledger, number) for number in range(2)]
    with pytest.raises(
        ValueError,
        match=r"3 of 4 new gold .* e\.g\. clip 'a', task 'x' \(round 1\), clip 'b', .*\(round 0\): "
        r"what it trained with is never changed; leave them out, and give gold labels for clips",
    ):
        ledger.add_gold(gold({"a": 1, "b": 1, "old": 0, "c": 1}))
    assert content(ledger) == before
    # What nobody trained with: the last round, other tasks, clips that nobody has answered.
    assert ledger.add_gold(gold({"c": 1, "new": 0})) == 2
    assert ledger.add_gold(gold({"a": 1}, task="y")) == 1
    assert [trained(ledger, number) for number in range(2)] == sets
    ledger.record_round(record(3), CHOSEN.empty_table(), None)
    assert ledger.add_gold(gold({"c": 1})) == 0  # it was there when its round was asked


def test_gold_labels_of_copies_and_of_pseudo_labelled_clips_are_refused(ledger: Ledger) -> None:
    carried = labels({("copy", "x"): 1}, "oracle", carried_labeller(sample_id("shown")))
    shown = labels({("shown", "x"): 1})
    ledger.import_annotations(1, carried)
    ledger.import_annotations(1, shown)
    ledger.import_annotations(1, labels({("guess", "x"): 1}, "pseudo", "model"))
    # The last round is written as a whole, carried labels included.
    for clip in ("copy", "shown"):
        with pytest.raises(ValueError, match=f"1 of 1 new gold .*clip '{clip}', task 'x'"):
            ledger.add_gold(gold({clip: 1}))
    ledger.record_round(record(2), CHOSEN.empty_table(), None)
    with pytest.raises(ValueError, match=r"clip 'guess', task 'y' \(round 1\)"):
        ledger.add_gold(gold({"guess": 1}, task="y"))


def test_what_was_left_open_for_want_of_answers_is_decided_when_fewer_are_demanded(
    ledger: Ledger,
) -> None:
    ledger.import_annotations(1, answers("ann", {"d": 1}))
    ledger.adjudicate(MergeConfig(minimum_annotators=2))
    assert "d" not in trained(ledger)
    assert ledger.adjudicate(MergeConfig()).items == 3
    assert trained(ledger)["d"] == (1, 1, "human")
    assert ledger.queue()["key"].to_pylist() == ["a"]
    before = content(ledger)
    assert ledger.adjudicate(MergeConfig()).recorded == 0
    assert content(ledger) == before


def test_labels_that_came_with_the_media_have_one_labeller(ledger: Ledger) -> None:
    ledger.import_annotations(1, answers("ann", {"d": 1}))
    config = MergeConfig(minimum_annotators=2)
    assert adjudicated(ledger, config, 2) == [
        {"old": (0, 0, "human")},
        {"old": (0, 0, "human"), "b": (1, 1, "human")},
    ]
    # Whoever is asked about such a clip is asked as others are.
    ledger.record_round(record(2), chosen("old"), answers("ann", {"old": 0}))
    assert trained(ledger, 1)["old"] == (0, 0, "human")
    ledger.adjudicate(MergeConfig(minimum_annotators=3), 2)
    assert "old" not in trained(ledger)
