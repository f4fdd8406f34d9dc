"""Seeds among labelled clips: positives, unsure clips, and confidence by rank."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.special import expit, logit

from lsb.acquisition.confident_errors import confidence_rank, confident_errors
from lsb.acquisition.seeds import BroadeningConfig, choose_seeds
from lsb.ids import sample_ids, to_arrow
from lsb.labelled import Labelled

NONE = sample_ids([])
KEYS = ["sure", "missed", "near", "wrong", "easy", "nolabel"]


def gold(permutation: list[int] | None = None) -> Labelled:
    order = permutation or list(range(6))
    label = np.asarray([1, 1, 1, 0, 0, -1], np.int8)[order]
    probability = np.asarray([0.95, 0.1, 0.55, 0.97, 0.05, np.nan])[order]
    keys = [KEYS[row] for row in order]
    return Labelled(
        ids=sample_ids(keys),
        keys=keys,
        vectors=np.eye(6, dtype=np.float32)[order],
        labels={"x": label},
        probabilities={"x": probability},
        operating_thresholds={"x": 0.5},
    )


def pool() -> pa.Table:
    keys = [f"pool-{index}" for index in range(20)]
    columns = {"id": to_arrow(sample_ids(keys)), "key": keys}
    return pa.table(columns | {"probability_x": np.linspace(0, 1, 20)})


def choose(labelled: Labelled | None = None, **config: object) -> list[dict[str, object]]:
    mix = {"entropy": 0, "confident_error": 0, **config}
    return choose_seeds(
        pool(),
        labelled or gold(),
        BroadeningConfig(**mix),  # type: ignore[arg-type]
        task_weights={"x": 1.0},
        seed=0,
        round=1,
        exclude=NONE,
    ).to_pylist()


def test_positives_come_by_the_models_lowest_confidence_first() -> None:
    found = choose(positive=10)
    assert [row["key"] for row in found] == ["missed", "near", "sure"]
    assert [row["score"] for row in found] == pytest.approx([0.9, 0.45, 0.05])
    assert {row["kind"] for row in found} == {"positive"}
    assert {row["label"] for row in found} == {1}
    assert [row["key"] for row in choose(positive=1)] == ["missed"]


def test_unsure_clips_are_those_within_the_band_the_nearest_first() -> None:
    found = choose(unsure=10, unsure_band=0.45, unsure_weight=2.0)
    assert [row["key"] for row in found] == ["near", "missed", "sure", "easy"]
    assert found[0]["weight"] == pytest.approx(2 * (1 - 0.05 / 0.45))
    assert [row["key"] for row in choose(unsure=10, unsure_band=0.06)] == ["near"]
    assert choose(unsure=10, unsure_band=0.0) == []


def test_a_clip_is_a_seed_once_in_a_task_whatever_kinds_it_is_of() -> None:
    found = choose(confident_error=10, positive=10, unsure=10, entropy=2, unsure_band=0.5)
    kinds = {row["key"]: row["kind"] for row in found if row["label"] is not None}
    assert kinds == {
        "wrong": "confident_error",
        "missed": "confident_error",
        "near": "positive",
        "sure": "positive",
        "easy": "unsure",
    }
    assert len(found) == 5 + 2
    weights = [row["weight"] for row in found]
    assert weights == sorted(weights, reverse=True)


def test_row_order_does_not_matter() -> None:
    mix = {"confident_error": 3, "positive": 3, "unsure": 3, "confidence_of": "rank"}
    assert choose(gold([5, 3, 1, 0, 4, 2]), confidence=0.0, **mix) == choose(confidence=0.0, **mix)


def test_rank_is_the_share_of_others_predicted_alike_that_the_model_is_less_sure_of() -> None:
    clips = gold()
    rank = confidence_rank(clips.probabilities["x"], clips.labels["x"], 0.5)
    # Predicted positive: near .55, sure .95, wrong .97; negative: missed .1, easy .05.
    assert dict(zip(KEYS, rank.tolist(), strict=True)) == {
        "near": 0.0, "sure": 0.5, "wrong": 1.0, "missed": 0.0, "easy": 1.0, "nolabel": 0.0,
    }  # fmt: skip
    tied = confidence_rank(np.asarray([0.9, 0.9, 0.6]), np.ones(3, np.int8), 0.5)
    assert tied.tolist() == [0.5, 0.5, 0.0]


def test_seeds_by_rank_say_their_rank() -> None:
    found = choose(confident_error=5, confidence=0.9, confidence_of="rank")
    assert [(row["key"], row["score"]) for row in found] == [("wrong", 1.0)]


@given(st.integers(0, 1000), st.floats(0.2, 8.0))
def test_a_temperature_changes_no_rank(number: int, temperature: float) -> None:
    random = np.random.default_rng(number)
    z = random.normal(size=40).round(2) * 3
    label = random.integers(-1, 2, 40).astype(np.int8)
    raw, cold = expit(z), expit(z / temperature)
    # The largest logits may all become 1.0 in float64, and then they do share a rank.
    assume(len(np.unique(cold)) == len(np.unique(raw)))
    threshold = 0.4
    moved = float(expit(logit(threshold) / temperature))
    np.testing.assert_array_equal(
        confidence_rank(raw, label, threshold), confidence_rank(cold, label, moved)
    )


def test_calibrated_probabilities_starve_errors_by_probability_and_not_by_rank() -> None:
    """What docs/log.md saw in the demo, in small: a temperature of 8, as overfit models need."""
    random = np.random.default_rng(3)
    label = (random.random(400) < 0.3).astype(np.int8)
    z = 4 * (2 * label - 1) + random.normal(scale=6, size=400)

    def errors(temperature: float, of: str) -> int:
        probability = expit(z / temperature)
        return int(confident_errors(probability, label, 0.5, 0.7, of=of).sum())

    assert errors(1, "probability") > 2 * errors(8, "probability") > 0
    assert errors(1, "rank") == errors(8, "rank") > 0


def test_settings_that_are_not_used_change_no_identity() -> None:
    first = {
        "entropy", "confident_error", "random", "confidence",
        "entropy_weight", "confident_error_weight", "random_weight",
    }  # fmt: skip
    assert set(BroadeningConfig().identity()) == first
    assert set(BroadeningConfig(unsure_band=0.3, positive_weight=2).identity()) == first
    more = BroadeningConfig(positive=3, unsure=2, confidence_of="rank").identity()
    assert set(more) - first == {
        "positive", "unsure", "positive_weight", "unsure_weight", "unsure_band", "confidence_of",
    }  # fmt: skip
    assert BroadeningConfig(0, 0, positive=3).counted[3:] == ("positive",)


WRONG: dict[str, Callable[[], BroadeningConfig]] = {
    r"broadening\.positive is -2": lambda: BroadeningConfig(positive=-2),
    r"broadening\.unsure_weight is -0\.5": lambda: BroadeningConfig(unsure_weight=-0.5),
    r"broadening\.unsure_band is 2": lambda: BroadeningConfig(unsure_band=2),
    r"broadening\.confidence_of is 'logit'": lambda: BroadeningConfig(confidence_of="logit"),
}


@pytest.mark.parametrize("message", WRONG)
def test_wrong_settings_name_their_key(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WRONG[message]()


def test_labelled_kinds_need_labelled_clips() -> None:
    config = BroadeningConfig(0, 0, positive=1)
    with pytest.raises(ValueError, match=r"broadening\.positive is 1 but there are no labelled"):
        choose_seeds(pool(), None, config, task_weights={"x": 1}, seed=0, round=1, exclude=NONE)
