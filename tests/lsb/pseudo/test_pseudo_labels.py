"""Pseudo-labels: believed as gold clips allow, agreed on by neighbours, few, balanced, exact."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lsb.ids import IdArray, from_arrow, sample_ids
from lsb.labelled import Labelled
from lsb.pseudo import LabelledClips, PseudoConfig, PseudoLabels, choice, pseudo_label
from lsb.pseudo.agreement import neighbour_labels
from lsb.pseudo.choice import balanced_counts
from lsb.store import Store
from lsb.threshold import precision_bound

CONFIG = PseudoConfig(mode="agreed", target=0.8, minimum_gold=10, neighbours=3, agreeing=2)
Make = Callable[..., Store]


def around(labels: np.ndarray, seed: int) -> np.ndarray:
    """Unit vectors near one of two poles, by label."""
    noise = np.random.default_rng(seed).normal(size=(len(labels), 8)) * 0.15
    noise[:, 0] += np.where(labels == 1, 1.0, -1.0)
    return (noise / np.linalg.norm(noise, axis=1, keepdims=True)).astype(np.float32)


def keys(name: str, count: int) -> list[str]:
    return [f"{name}-{number:04d}" for number in range(count)]


def gold_clips(probability: np.ndarray, label: np.ndarray) -> Labelled:
    names = keys("gold", len(label))
    return Labelled(
        ids=sample_ids(names),
        keys=names,
        vectors=around((probability > 0.5).astype(int), 1),  # neighbours agree with the model
        labels={"x": label.astype(np.int8)},
        probabilities={"x": probability.astype(np.float64)},
        operating_thresholds={"x": 0.5},
    )


def people(count: int = 80, positives: float = 0.25) -> LabelledClips:
    label = (np.arange(count) < positives * count).astype(np.int8)
    return LabelledClips(sample_ids(keys("people", count)), around(label, 2), {"x": label})


def sound_gold(count: int = 120) -> Labelled:
    """Right wherever the probability is beyond 0.3 and 0.7, a coin between."""
    probability = np.linspace(0.01, 0.99, count)
    label = (probability > 0.5).astype(np.int8)
    middle = np.abs(probability - 0.5) < 0.2
    label[middle] = np.arange(int(middle.sum())) % 2
    return gold_clips(probability, label)


def pool_of(make_store: Make, count: int = 400, **options: object) -> Store:
    """Half of each label, with probabilities that fit; every 10th lies among the others."""
    label = np.arange(count) % 2
    vectors = around(np.where(np.arange(count) % 10 == 3, 1 - label, label), 3)
    spread = np.random.default_rng(4).uniform(0.0, 0.5, count)
    probability = np.where(label == 1, 1 - spread, spread).astype(np.float32)
    return make_store(vectors, keys("pool", count), {"probability_x": probability}, **options)


def run(
    store: Store, gold: Labelled, config: PseudoConfig = CONFIG, **options: object
) -> PseudoLabels:
    settings = {"lookalike_threshold": None, "exclude": sample_ids([]), "earlier": {}, **options}
    return pseudo_label(store, gold, people(), config, **settings)


def test_the_cut_is_the_smallest_whose_lower_bound_reaches_the_target(make_store: Make) -> None:
    gold = sound_gold()
    low, high = run(pool_of(make_store), gold).rules
    assert (low.task, low.label, high.label) == ("x", 0, 1)
    scores, label = gold.probabilities["x"].astype(np.float32), gold.labels["x"]
    assert high.cut is not None
    cuts = np.sort(scores[scores >= 0.5])
    bounds = {c: precision_bound(label[scores >= c] == 1, confidence=0.95) for c in cuts}
    assert high.cut == min(c for c, bound in bounds.items() if bound >= 0.8)
    assert high.bound == bounds[np.float32(high.cut)] >= 0.8
    assert (high.gold, high.right) == (
        int((scores >= high.cut).sum()), int((label[scores >= high.cut] == 1).sum()),
    )  # fmt: skip
    assert 0.5 < high.cut < 0.75, "some of the coins are made up for by what is sure"


def test_labels_are_confident_agreed_capped_and_balanced(make_store: Make) -> None:
    found = run(pool_of(make_store), sound_gold())
    rows = found.table.to_pylist()
    cut = {rule.label: rule.cut for rule in found.rules}
    assert all(row["probability"] >= cut[row["label"]] for row in rows)
    assert all(row["agreeing"] >= 2 and row["neighbours"] == 3 for row in rows)
    assert all(row["confidence"] >= 0.8 for row in rows)
    assert not any(int(row["key"][-4:]) % 10 == 3 for row in rows), "neighbours disagree"
    assert all(row["label"] == int(row["key"][-4:]) % 2 for row in rows)
    # 80 people's labels and a share of 20 % allow 20; a quarter of people's labels is positive.
    assert len(rows) == 20
    assert sum(row["label"] for row in rows) == 5
    assert found.counts["x=1 labelled"] == 5
    assert found.counts["x=1 confident"] > 100
    best = max(row["probability"] for row in rows if row["label"])
    taken = {row["key"] for row in rows}
    everything = pool_of(make_store).rows(["key", "probability_x"]).to_pylist()
    for row in everything:
        number = int(row["key"][-4:])
        if number % 2 and number % 10 != 3 and row["probability_x"] > best:
            assert row["key"] in taken, "the likeliest come first"


def test_without_agreement_or_balance_others_come(make_store: Make) -> None:
    store, gold = pool_of(make_store), sound_gold()
    alone = run(store, gold, replace(CONFIG, agreeing=0))
    assert any(int(key[-4:]) % 10 == 3 for key in alone.table["key"].to_pylist())
    assert all(row["neighbours"] == 3 for row in alone.table.to_pylist())
    free = run(store, gold, replace(CONFIG, balanced=False))
    assert sum(free.table["label"].to_pylist()) == 20
    half = run(store, gold, replace(CONFIG, positives=0.5))
    assert sum(half.table["label"].to_pylist()) == 10


def test_similarity_comes_from_the_config_else_from_the_round(make_store: Make) -> None:
    store, gold = pool_of(make_store), sound_gold()
    assert run(store, gold, lookalike_threshold=1.0).table.num_rows == 0
    wide = run(store, gold, replace(CONFIG, similarity=-1.0), lookalike_threshold=1.0)
    assert wide.table.equals(run(store, gold).table)


def test_nothing_shows_of_parts_and_order(make_store: Make) -> None:
    gold = sound_gold()
    want = run(pool_of(make_store), gold)
    for options in ({"parts": 3}, {"parts": 5, "shuffle": 1, "order": [4, 0, 3, 1, 2]}):
        found = run(pool_of(make_store, **options), gold)
        assert found.table.equals(want.table)
        assert found.rules == want.rules
        assert found.counts == want.counts


@pytest.mark.parametrize("shown", [4, 60, 400])
def test_passes_that_keep_few_clips_find_the_same(
    make_store: Make, monkeypatch: pytest.MonkeyPatch, shown: int
) -> None:
    """Neighbours disagree on the likeliest clips, so that a pass has to follow another."""
    count = np.arange(400)
    probability = np.where(count % 2 == 1, 0.9, 0.1).astype(np.float32)  # ties by id
    wrong = count < 300
    probability[wrong] = np.where(count[wrong] % 2 == 1, 0.95, 0.05)
    vectors = around(np.where(wrong, 1 - count % 2, count % 2), 3)
    columns = {"probability_x": probability}
    pool = make_store(vectors, keys("pool", 400), columns, parts=3, shuffle=2)
    want = run(pool, sound_gold())
    assert want.table.num_rows == 20
    assert set(want.table["probability"].to_numpy().round(2)) == {np.float32(0.9)}
    assert want.counts["x=1 confident"] == want.counts["x=0 confident"] == 200
    monkeypatch.setattr(choice, "CLIPS_AT_A_TIME", 2)
    monkeypatch.setattr(choice, "FIRST_CLIPS", shown, raising=False)
    monkeypatch.setattr(choice, "MOST_CLIPS", shown, raising=False)
    found = run(pool, sound_gold())
    assert found.table.equals(want.table)
    assert found.counts == want.counts


def test_memory_does_not_grow_with_the_pool(
    make_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("BLOCK_ROWS", "FIRST_CLIPS", "MOST_CLIPS"):
        monkeypatch.setattr(choice, name, 2048, raising=False)
    monkeypatch.setattr(choice, "CLIPS_AT_A_TIME", 256)
    peaks = []
    for count in (20_000, 100_000):
        pool, gold = pool_of(make_store, count), sound_gold()
        tracemalloc.start()
        found = run(pool, gold)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert found.counts["x=1 confident"] > count // 4
    assert peaks[1] < 1.3 * peaks[0], peaks


def test_excluded_gold_and_labelled_clips_get_none(make_store: Make) -> None:
    gold = sound_gold()
    first = run(pool_of(make_store), gold)
    taken: IdArray = from_arrow(first.table["id"])
    second = run(pool_of(make_store), gold, exclude=taken)
    assert second.table.num_rows == 20
    assert not set(second.table["key"].to_pylist()) & set(first.table["key"].to_pylist())
    own = LabelledClips(taken, around(np.ones(20), 5), {"x": np.ones(20, dtype=np.int8)})
    options = {"lookalike_threshold": None, "exclude": sample_ids([]), "earlier": {}}
    third = pseudo_label(pool_of(make_store), gold, own, CONFIG, **options)
    assert not set(third.table["id"].to_pylist()) & set(first.table["id"].to_pylist())


def test_a_model_gone_bad_is_switched_off_by_last_rounds_rule(make_store: Make) -> None:
    store, gold = pool_of(make_store), sound_gold()
    before = run(store, gold)
    cuts = {(rule.task, rule.label): rule.cut for rule in before.rules}
    again = run(store, gold, earlier=cuts)
    assert again.table.equals(before.table)
    assert again.lines == []
    assert again.rules[1].earlier_right == before.rules[1].right
    # The same probabilities, and now every third confident positive is wrong.
    label = gold.labels["x"].copy()
    sure = np.flatnonzero(gold.probabilities["x"] >= cuts["x", 1])
    label[sure[::3]] = 0
    bad = replace(gold, labels={"x": label}, vectors=gold.vectors)
    dropped = run(store, bad, earlier=cuts)
    low, high = dropped.rules
    assert high.off is not None
    assert high.earlier_cut == cuts["x", 1]
    assert high.earlier_right / high.earlier_gold < 0.8
    assert dropped.lines == [high.off]
    assert "x=1: switched off, the last round's rule" in high.off
    assert f"{high.earlier_right} of {high.earlier_gold} gold clips" in high.off
    assert dropped.table.num_rows == 0, "negatives alone would upset the balance"
    free = run(store, bad, replace(CONFIG, balanced=False), earlier=cuts)
    assert set(free.table["label"].to_pylist()) == {0}
    assert low.off is None


def test_even_a_new_cut_does_not_bring_a_dropped_label_back_in_the_same_round(
    make_store: Make,
) -> None:
    store, gold = pool_of(make_store), sound_gold()
    wrong = gold.labels["x"].copy()
    wrong[(gold.probabilities["x"] >= 0.5) & (gold.probabilities["x"] < 0.8)] = 0
    bad = replace(gold, labels={"x": wrong})
    high = run(store, bad, earlier={("x", 1): 0.55}).rules[1]
    assert high.cut is not None
    assert high.off is not None
    assert run(store, bad, earlier={("x", 1): high.cut}).rules[1].off is None, "it earns it anew"


def test_no_bound_is_told_with_its_evidence(make_store: Make) -> None:
    few = run(pool_of(make_store), sound_gold(20))
    assert few.table.num_rows == 0
    assert [rule.off is None for rule in few.rules] == [False, False]
    assert "gold clips are right, lower bound" in few.lines[0]
    assert "pseudo.target 0.8 (pseudo.minimum_gold 10)" in few.lines[0]


def test_calibrated_confidence_never_falls_with_probability(make_store: Make) -> None:
    rule = run(pool_of(make_store), sound_gold()).rules[1]
    assert rule.cut is not None
    probability = np.linspace(0.5, 1, 200, dtype=np.float32)
    confidence = rule.confidence(probability)
    assert (np.diff(confidence) >= 0).all()
    assert ((confidence >= CONFIG.target) == (probability >= np.float32(rule.cut))).all()


def test_neighbours_are_counted_by_task_and_never_the_clip_itself() -> None:
    label = np.array([1, 1, 0, -1], dtype=np.int8)
    vectors = np.eye(4, dtype=np.float32)
    vectors[1] = [0.8, 0.6, 0, 0]
    names = sample_ids(["a", "b", "c", "d"])
    clips = LabelledClips(names, vectors, {"x": label})
    counts = neighbour_labels(names, vectors, clips, "x", neighbours=2, similarity=None)
    assert counts[0].tolist() == [1, 1], "b and c: not a itself, not d, which has no label"
    near = neighbour_labels(names, vectors, clips, "x", neighbours=2, similarity=0.5)
    assert near.tolist() == [[0, 1], [0, 1], [0, 0], [0, 0]]
    with pytest.raises(ValueError, match="no labels of task 'y', only of"):
        clips.of_task("y")


@pytest.mark.parametrize(
    ("available", "quota", "positives", "want"),
    [
        ({0: 100, 1: 100}, 20, 0.25, {0: 15, 1: 5}),
        ({0: 100, 1: 2}, 20, 0.25, {0: 6, 1: 2}),
        ({0: 100}, 20, 0.25, {0: 0, 1: 0}),
        ({0: 100}, 20, 0.0, {0: 20, 1: 0}),
        ({0: 100, 1: 2}, 20, None, {0: 18, 1: 2}),
        ({1: 5}, 0, 0.5, {0: 0, 1: 0}),
    ],
)
def test_balance(
    available: dict[int, int], quota: int, positives: float | None, want: dict[int, int]
) -> None:
    assert balanced_counts(available, quota, positives) == want


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "all"}, "pseudo.mode is 'all': use one of none, agreed"),
        ({"target": 1.0}, r"pseudo.target is 1.0: give one in \(0, 1\)"),
        ({"agreeing": 6}, "pseudo.agreeing is 6 and pseudo.neighbours 5"),
        ({"share": 0.0}, "pseudo.share is 0.0"),
        ({"minimum_gold": 0}, "pseudo.minimum_gold is 0"),
        ({"similarity": 2.0}, "pseudo.similarity is 2.0"),
        ({"positives": 0.5, "balanced": False}, "has no effect"),
        ({"positives": 1.0}, "pseudo.positives is 1.0"),
        ({"weight": 2.0}, "pseudo.weight is 2.0"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PseudoConfig(**settings)
