"""LSB-LT in pooled space: what is scored where not everything may be."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
from growth_world import CONFIG, WORLD, Make

from lsb.acquisition.seeds import BroadeningConfig
from lsb.expand import Expansion
from lsb.ids import from_arrow, sample_ids, to_bytes
from lsb.shortlist.config import ShortlistConfig
from lsb.shortlist.known import Known
from lsb.shortlist.lookalikes import in_pooled_space, lookalikes, training_positives
from lsb.threshold import ThresholdConfig

POOLED = ShortlistConfig(name="all", limited="lookalikes", share=0.2, per_seed=10)
KEYS = [f"trained-{row}" for row in range(12)]
# Two training clips a cluster; those of clusters 2 and 3 are positive.
CLUSTER = np.arange(12) % 6
KNOWN = Known(
    sample_ids(KEYS),
    KEYS,
    WORLD.centres[CLUSTER].astype(np.float32)
    / np.linalg.norm(WORLD.centres[CLUSTER], axis=1, keepdims=True).astype(np.float32),
    {"policy": np.isin(CLUSTER, (2, 3)).astype(np.int8)},
)


def made(make_store: Make, mix: BroadeningConfig, **options: object) -> tuple[object, Expansion]:
    store = make_store(WORLD.vectors, WORLD.keys, kind="pooled", **options)
    arm = replace(CONFIG, broadening=mix)
    return lookalikes(
        store, WORLD.labelled, KNOWN, arm, POOLED, count=60, exclude=sample_ids([]), round=1
    )


def test_clips_around_the_confident_errors_are_scored_without_any_score(make_store: Make) -> None:
    mix = BroadeningConfig(entropy=0, confident_error=5, confidence=0.9)
    table, expansion = made(make_store, mix)
    assert table.num_rows == 60
    assert expansion.threshold is not None
    assert expansion.threshold.mode == "calibrated"
    reasons = Counter(table["reason"].to_pylist())
    assert reasons["lookalike"] == expansion.counts["lookalike"] > 20
    for row in table.to_pylist():
        if row["reason"] == "lookalike":
            assert WORLD.cluster[WORLD.keys.index(row["key"])] == 0
            assert row["similarity"] >= row["lookalike_threshold"] == expansion.threshold.value
            assert row["kind"] == "confident_error"
            assert row["seed_key"].startswith("gold-")
        else:
            assert (row["reason"], row["seed_id"]) == ("random", None)


def test_unsure_gold_clips_take_the_places_of_unsure_pool_clips() -> None:
    mix = in_pooled_space(BroadeningConfig(entropy=7, confident_error=5, unsure=2))
    assert (mix.entropy, mix.unsure, mix.confident_error) == (0, 9, 5)


def test_positives_of_the_training_set_are_seeds_and_are_not_found(make_store: Make) -> None:
    mix = BroadeningConfig(entropy=0, confident_error=0, training_positive=4)
    beside = training_positives(KNOWN, mix, {"policy": 1.0}, seed=0, round=1)
    assert beside is not None
    positive = KNOWN.ids[KNOWN.labels["policy"] == 1]
    assert to_bytes(beside.ids) == to_bytes(np.sort(positive))
    fewer = replace(mix, training_positive=2)
    drawn = [
        tuple(to_bytes(training_positives(KNOWN, fewer, {"policy": 1.0}, seed=0, round=r).ids))
        for r in range(1, 7)
    ]
    assert len(set(drawn)) > 1, "another round draws others"
    fixed = replace(CONFIG, threshold=ThresholdConfig(mode="fixed", value=0.8))
    store = make_store(WORLD.vectors, WORLD.keys, kind="pooled")
    table, expansion = lookalikes(
        store,
        WORLD.labelled,
        KNOWN,
        replace(fixed, broadening=mix),
        POOLED,
        count=60,
        exclude=sample_ids([]),
        round=1,
    )
    assert expansion.counts["seeds_training_positive"] == 4
    brought = [row for row in table.to_pylist() if row["reason"] == "lookalike"]
    assert {WORLD.cluster[WORLD.keys.index(row["key"])] for row in brought} == {2, 3}
    assert not set(to_bytes(from_arrow(table["id"]))) & set(to_bytes(KNOWN.ids))


def test_no_positive_is_no_seed() -> None:
    mix = BroadeningConfig(training_positive=4)
    nobody = replace(KNOWN, labels={"policy": np.zeros(12, np.int8)})
    assert training_positives(nobody, mix, {"policy": 1.0}, seed=0, round=1) is None


def test_the_shortlist_does_not_depend_on_parts(make_store: Make) -> None:
    mix = BroadeningConfig(
        entropy=3, confident_error=5, confidence=0.9, training_positive=2, decorrelate=0.1
    )
    tables = [
        made(make_store, mix, parts=parts, shuffle=shuffle)[0]
        for parts, shuffle in ((1, None), (3, 1), (7, 2))
    ]
    assert tables[0] == tables[1] == tables[2]


def test_new_settings_of_broadening_are_no_part_of_the_identity_of_arms_without_them() -> None:
    plain = BroadeningConfig().identity()
    assert "training_positive" not in plain
    assert "decorrelate" not in plain
    assert BroadeningConfig(decorrelate=0.1).identity()["decorrelate"] == 0.1
