from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from lsb.acquisition.config import (
    ACQUISITIONS,
    DIVERSE,
    SCORED,
    STOCHASTIC,
    AcquisitionConfig,
)
from lsb.acquisition.pool_order import PoolOrder, columns_of, pool_order, pool_score
from lsb.acquisition.random import random_order
from lsb.acquisition.ranking import PoolBlock
from lsb.acquisition.scores import (
    disagreement,
    least_confidence,
    margin,
    multiclass_entropy,
    multiclass_least_confidence,
    multiclass_margin,
    multilabel,
)
from lsb.acquisition.stochastic import (
    bald,
    dropout_variance,
    multiclass_bald,
    multiclass_variance,
)
from lsb.acquisition.uncertainty import combined_entropy
from lsb.ids import sample_ids, to_hex
from lsb.order import descending
from lsb.store import Store

Make = Callable[..., Store]
COUNT, PASSES = 150, 3
WEIGHTS = {"a": 1.0, "b": 3.0, "unused": 0.0}
KEYS = [f"clip-{row}" for row in range(COUNT)]
IDS = sample_ids(KEYS)
EXCLUDE = IDS[[3, 77, 120]]


def columns() -> dict[str, np.ndarray]:
    """All that a fused store holds, in float32, with ties."""
    random = np.random.default_rng(0)
    values = {}
    for task in ("a", "b"):
        for head in ("", "vl_", "audio_"):
            values[f"{head}probability_{task}"] = random.integers(0, 41, COUNT) / 40
        for number in range(PASSES):
            values[f"dropout_logit_{task}_{number}"] = random.integers(-6, 7, COUNT) / 2
    return {name: column.astype(np.float32) for name, column in values.items()}


COLUMNS = columns()


@pytest.fixture
def vectors(unit: Callable[..., np.ndarray]) -> np.ndarray:
    return np.concatenate([unit(COUNT - 30, 8), unit(COUNT - 30, 8)[:30]])


def config_of(name: str, **options: object) -> AcquisitionConfig:
    passes = PASSES if name in STOCHASTIC else 0
    settings: dict[str, object] = {"candidates": 60, "dropout_samples": passes, "seed": 5}
    return AcquisitionConfig(name, WEIGHTS, **(settings | options))  # type: ignore[arg-type]


def order_of(store: Store, config: AcquisitionConfig, count: int = 40) -> PoolOrder:
    return pool_order(store, config, count, budget=12, round=2, exclude=EXCLUDE)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_order_does_not_depend_on_how_the_pool_is_cut(
    make_store: Make, vectors: np.ndarray, name: str
) -> None:
    whole = order_of(make_store(vectors, KEYS, COLUMNS), config_of(name))
    assert len(whole.ids) == len(set(whole.ids.tolist())) == 40
    assert (whole.excluded, whole.complete) == (3, False)
    assert not set(whole.ids.tolist()) & set(EXCLUDE.tolist())
    for parts, listed in ((2, [1, 0]), (3, None), (7, [3, 1, 0, 2, 6, 5, 4])):
        store = make_store(vectors, KEYS, COLUMNS, parts=parts, order=listed, shuffle=parts)
        assert to_hex(order_of(store, config_of(name)).ids) == to_hex(whole.ids)


@pytest.mark.parametrize("name", ACQUISITIONS)
def test_a_longer_order_begins_with_a_shorter_one(
    make_store: Make, vectors: np.ndarray, name: str
) -> None:
    store = make_store(vectors, KEYS, COLUMNS, parts=3)
    longest = order_of(store, config_of(name), 500)
    assert longest.complete
    assert sorted(longest.ids.tolist()) == sorted(set(IDS.tolist()) - set(EXCLUDE.tolist()))
    for count in (1, 40, 100, COUNT - 3):
        shorter = order_of(store, config_of(name), count)
        assert (shorter.ids == longest.ids[:count]).all()
        assert shorter.complete == (count == COUNT - 3)


@pytest.mark.parametrize("name", [*SCORED, *STOCHASTIC])
def test_scores_are_the_weighted_mean_over_tasks(
    make_store: Make, vectors: np.ndarray, name: str
) -> None:
    def passes(task: str) -> np.ndarray:
        logits = [COLUMNS[f"dropout_logit_{task}_{number}"] for number in range(PASSES)]
        return 1 / (1 + np.exp(-np.asarray(logits, dtype=np.float64)))

    formula = {
        "entropy": lambda task: combined_entropy(
            {task: COLUMNS[f"probability_{task}"]}, {task: 1.0}, IDS
        )[0],
        "least_confidence": lambda task: least_confidence(COLUMNS[f"probability_{task}"]),
        "margin": lambda task: margin(COLUMNS[f"probability_{task}"]),
        "top_score": lambda task: COLUMNS[f"probability_{task}"].astype(np.float64),
        "disagreement": lambda task: disagreement(
            COLUMNS[f"vl_probability_{task}"], COLUMNS[f"audio_probability_{task}"]
        ),
        "bald": lambda task: bald(passes(task)),
        "dropout_variance": lambda task: dropout_variance(passes(task)),
    }[name]
    both = np.stack([formula(task) for task in ("a", "b")], axis=1)
    score = dict(zip(IDS.tolist(), multilabel(both, np.asarray([0.25, 0.75])), strict=True))
    order = order_of(make_store(vectors, KEYS, COLUMNS), config_of(name), 500)
    found = [score[clip] for clip in order.ids.tolist()]
    assert found == pytest.approx(sorted(found, reverse=True), abs=1e-12)
    assert len(found) == COUNT - 3


@pytest.mark.parametrize("name", [*SCORED, *STOCHASTIC])
def test_tasks_that_exclude_each_other_are_the_classes_of_one_question(
    make_store: Make, vectors: np.ndarray, name: str
) -> None:
    logits = np.random.default_rng(1).normal(size=(PASSES + 1, COUNT, 3)).astype(np.float32)
    probability = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    values = dict(COLUMNS)
    for place, task in enumerate("xyz"):
        for head in ("", "vl_", "audio_"):
            values[f"{head}probability_{task}"] = probability[0, :, place]
        for number in range(PASSES):
            values[f"dropout_logit_{task}_{number}"] = logits[number + 1, :, place]
    weights = {"x": 1.0, "y": 1.0, "a": 2.0}
    asked = config_of(name, groups={"topic": ("x", "y", "z")})
    config = dataclasses.replace(asked, task_weights=weights)
    passes, alone = probability[1:].astype(float), config_of(name)
    together = {
        "entropy": lambda: multiclass_entropy(probability[0]),
        "least_confidence": lambda: multiclass_least_confidence(probability[0]),
        "margin": lambda: multiclass_margin(probability[0]),
        "bald": lambda: multiclass_bald(passes),
        "dropout_variance": lambda: multiclass_variance(passes),
    }
    store = make_store(vectors, KEYS, values, parts=3)
    found = order_of(store, config, 500).ids
    if name not in together:  # each by itself
        ungrouped = dataclasses.replace(alone, task_weights=weights)
        assert (found == order_of(store, ungrouped, 500).ids).all()
        return
    read = {key: column.astype(np.float64) for key, column in values.items()}
    block = PoolBlock(IDS, read, store.parts[0], 0)
    binary = pool_score(block, dataclasses.replace(alone, task_weights={"a": 1.0}), 2)
    score = dict(zip(IDS.tolist(), 0.5 * together[name]() + 0.5 * binary, strict=True))
    values_in_order = [score[clip] for clip in found.tolist()]
    assert values_in_order == pytest.approx(sorted(values_in_order, reverse=True), abs=1e-6)
    assert len(found) == COUNT - 3


def test_groups_that_cannot_be_are_refused_and_change_no_identity_where_nothing_reads_them() -> (
    None
):
    with pytest.raises(ValueError, match=r"acquisition.groups.topic has 1 tasks"):
        config_of("entropy", groups={"topic": ("x",)})
    with pytest.raises(ValueError, match=r"badge, whose gradients .* tasks of topic exclude"):
        config_of("badge", groups={"topic": ("x", "y")})
    grouped = config_of("top_score", groups={"topic": ("x", "y")})
    assert grouped.identity() == config_of("top_score").identity()
    assert "groups" not in config_of("entropy").identity()
    assert "groups" in config_of("entropy", groups={"topic": ("x", "y")}).identity()


def test_entropy_and_random_keep_the_order_they_had(make_store: Make, vectors: np.ndarray) -> None:
    store = make_store(vectors, KEYS, COLUMNS, parts=4)
    probabilities = {task: COLUMNS[f"probability_{task}"].astype(float) for task in ("a", "b")}
    entropy, _, _ = combined_entropy(probabilities, WEIGHTS, IDS)
    for name, expected in (
        ("entropy", IDS[descending(entropy, IDS)]),
        ("random", random_order(IDS, 5, 2)),
    ):
        free = [clip for clip in expected.tolist() if clip not in EXCLUDE.tolist()]
        assert order_of(store, config_of(name), 500).ids.tolist() == free


def test_diversity_is_among_candidates(make_store: Make, vectors: np.ndarray) -> None:
    store = make_store(vectors, KEYS, COLUMNS)
    for name in DIVERSE:
        few = order_of(store, config_of(name, candidates=20), 500).ids.tolist()
        more = order_of(store, config_of(name, candidates=21), 500).ids.tolist()
        assert len(set(more[:21]) - set(few[:20])) == 1
        assert few[21:] == more[21:]


def test_core_set_stays_away_from_labelled_clips(make_store: Make, vectors: np.ndarray) -> None:
    """Copies of a labelled clip are asked for last."""
    store = make_store(vectors, KEYS, COLUMNS)
    labelled = IDS[COUNT - 30 :]
    config = config_of("core_set", candidates=COUNT)
    order = pool_order(store, config, 500, budget=12, round=2, exclude=labelled)
    assert set(order.ids[-30:].tolist()) == set(IDS[:30].tolist())


def test_chance_follows_seed_and_round(make_store: Make, vectors: np.ndarray) -> None:
    store = make_store(vectors, KEYS, COLUMNS)
    for name in ("random", *DIVERSE):
        orders = {
            tuple(
                pool_order(
                    store, config_of(name, seed=seed), 40, budget=12, round=round, exclude=EXCLUDE
                ).ids.tolist()
            )
            for seed, round in ((0, 1), (1, 1), (0, 2))
        }
        assert len(orders) == 3


@pytest.mark.parametrize("name", [name for name in ACQUISITIONS if columns_of(config_of(name))])
def test_nan_is_refused_with_the_clip(make_store: Make, vectors: np.ndarray, name: str) -> None:
    spoiled = columns_of(config_of(name))[-1]
    values = COLUMNS[spoiled].copy()
    values[9] = np.nan
    store = make_store(vectors, KEYS, COLUMNS | {spoiled: values}, parts=2)
    with pytest.raises(ValueError, match=rf"NaN or outside.* the first of clip {IDS[9].hex()}"):
        order_of(store, config_of(name))


def test_what_the_store_does_not_hold_is_named_with_the_remedy(
    make_store: Make, vectors: np.ndarray
) -> None:
    bare = make_store(vectors, KEYS, kind="pooled")
    for name in ("random", "core_set", "typiclust"):
        assert len(order_of(bare, config_of(name)).ids) == 40
    with pytest.raises(ValueError, match=r"'vl_probability_a', .*'disagreement'.*kind 'fused'"):
        order_of(bare, config_of("disagreement"))
    store = make_store(vectors, KEYS, COLUMNS)
    with pytest.raises(ValueError, match=r"'dropout_logit_a_3'.*scoring\.dropout_samples=4"):
        order_of(store, config_of("bald", dropout_samples=4))
