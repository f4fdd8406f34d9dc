"""The order of batches: a function of seed and epoch, every clip as often as its weight says."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmae.data.order import BatchOrder, OrderConfig

few = settings(max_examples=60, deadline=None)
sizes = st.tuples(st.integers(1, 60), st.integers(1, 7)).filter(lambda pair: pair[0] >= pair[1])


def order(clips: int, batch_size: int, *, world: int = 1, **more: Any) -> BatchOrder:
    arrays = {name: more.pop(name, None) for name in ("weights", "lengths", "places")}
    return BatchOrder(clips, world=world, config=OrderConfig(batch_size, **more), **arrays)


def epoch_of(made: BatchOrder, epoch: int = 0) -> list[list[int]]:
    return [made.batch(epoch, number).tolist() for number in range(made.micro_batches)]


def drawn_in(made: BatchOrder, epoch: int = 0) -> Counter[int]:
    return Counter(clip for batch in epoch_of(made, epoch) for clip in batch)


@few
@given(sizes, st.integers(0, 5), st.integers(0, 5), st.integers(1, 4), st.integers(1, 4))
def test_equal_seed_and_epoch_give_equal_batches(
    size: tuple[int, int], seed: int, epoch: int, run_clips: int, bucket_batches: int
) -> None:
    options = {"seed": seed, "run_clips": run_clips, "bucket_batches": bucket_batches}
    lengths = np.arange(size[0]) % 5
    first, second = (order(*size, lengths=lengths, **options) for _ in range(2))
    epoch_of(second, epoch + 1)  # what was asked before has no influence
    assert epoch_of(first, epoch) == epoch_of(second, epoch)


@pytest.mark.parametrize("options", [{}, {"run_clips": 4}, {"bucket_batches": 3}])
def test_another_seed_or_epoch_is_another_order(options: dict[str, int]) -> None:
    lengths = np.arange(64) % 9
    seen = {
        str(epoch_of(order(64, 4, seed=seed, lengths=lengths, **options), epoch))
        for seed in (0, 1, 2)
        for epoch in (0, 1, 2)
    }
    assert len(seen) == 9


@few
@given(sizes, st.integers(0, 3), st.integers(1, 4), st.integers(1, 4))
def test_without_weights_every_clip_comes_once_and_the_last_batch_is_filled_up(
    size: tuple[int, int], epoch: int, run_clips: int, bucket_batches: int
) -> None:
    clips, batch_size = size
    options = {"run_clips": run_clips, "bucket_batches": bucket_batches}
    made = order(*size, lengths=np.arange(clips)[::-1] % 4, **options)
    count = drawn_in(made, epoch)
    assert sorted(count) == list(range(clips))
    assert max(count.values()) <= 2
    assert sum(count.values()) - clips == -clips % batch_size
    assert made.draws == clips


@few
@given(sizes, st.integers(0, 3), st.integers(1, 4))
def test_dropping_leaves_out_less_than_a_batch_and_repeats_nothing(
    size: tuple[int, int], epoch: int, run_clips: int
) -> None:
    clips, batch_size = size
    made = order(*size, remainder="drop", run_clips=run_clips)
    count = drawn_in(made, epoch)
    assert set(count.values()) == {1}
    assert clips - len(count) == clips % batch_size


def test_other_clips_are_dropped_in_every_epoch() -> None:
    made = order(10, 4, remainder="drop")
    left = {frozenset(set(range(10)) - set(drawn_in(made, epoch))) for epoch in range(8)}
    assert len(left) > 3


weight = st.one_of(
    st.just(0.0), st.just(1.0), st.integers(0, 5).map(float), st.floats(0, 4, allow_nan=False)
)


@few
@given(st.lists(weight, min_size=4, max_size=30), st.integers(0, 9))
def test_a_clip_comes_floor_or_ceil_of_its_weight_times(weights: list[float], seed: int) -> None:
    table = np.array([*weights, 1.0])
    # "drop" with one clip a batch shows the draws themselves.
    made = order(len(table), 1, seed=seed, weights=table, remainder="drop")
    for epoch in range(3):
        count = drawn_in(made, epoch)
        assert sum(count.values()) == made.draws
        assert abs(made.draws - table.sum()) <= 1 + 1e-6
        for clip, expected in enumerate(table):
            assert np.floor(expected) <= count[clip] <= np.ceil(expected), (clip, expected)


def test_a_weight_is_the_mean_number_of_draws() -> None:
    weights = np.array([0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.5])
    made = order(8, 1, weights=weights)
    total: Counter[int] = Counter()
    for epoch in range(800):
        total += drawn_in(made, epoch)
    assert made.draws == 12
    np.testing.assert_allclose([total[clip] / 800 for clip in range(8)], weights, atol=0.06)


@pytest.mark.parametrize("run_clips", [1, 3])
def test_a_clip_of_weight_zero_never_comes_and_repeats_are_spread(run_clips: int) -> None:
    weights = np.where(np.arange(40) % 4 == 0, 3.0, np.where(np.arange(40) % 4 == 1, 0.0, 1.0))
    made = order(40, 5, weights=weights, run_clips=run_clips)
    for epoch in range(3):
        count = drawn_in(made, epoch)
        assert not [clip for clip in count if weights[clip] == 0]
        assert made.draws == 50
    if run_clips == 1:
        batches = epoch_of(made)
        assert sum(len(set(batch)) < 5 for batch in batches) < len(batches), "not side by side"


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_a_weight_that_is_none_is_named(bad: float) -> None:
    with pytest.raises(ValueError, match=rf"clip 2 has weight {bad}: weights are finite and not"):
        order(4, 1, weights=np.array([1.0, 1.0, bad, 1.0]))


def test_buckets_hold_clips_of_similar_length_and_the_same_clips() -> None:
    lengths = np.random.default_rng(0).uniform(1, 60, 240)

    def spread(bucket_batches: int) -> float:
        made = order(240, 8, lengths=lengths, bucket_batches=bucket_batches)
        assert drawn_in(made) == Counter(range(240))
        return float(np.mean([np.ptp(lengths[batch]) for batch in epoch_of(made)]))

    plain, sorted_5, sorted_30 = spread(1), spread(5), spread(30)
    assert sorted_5 < 0.35 * plain
    assert sorted_30 < 0.08 * plain


def test_batches_of_a_window_are_not_in_order_of_length() -> None:
    lengths = np.arange(64, dtype=float)
    made = order(64, 4, lengths=lengths, bucket_batches=16)
    means = [lengths[batch].mean() for batch in epoch_of(made)]
    assert means != sorted(means)
    assert sorted(means) == [1.5 + 4 * number for number in range(16)]


@pytest.mark.parametrize("clips", [64, 61])
def test_runs_keep_neighbours_in_storage_together(clips: int) -> None:
    places = np.random.default_rng(1).permutation(clips)

    def breaks(run_clips: int, epoch: int) -> int:
        """Where the next clip is not the next in storage."""
        made = order(clips, 8, run_clips=run_clips, places=places, remainder="drop")
        drawn = np.array(epoch_of(made, epoch)).reshape(-1)
        assert len(set(drawn.tolist())) == len(drawn) == clips // 8 * 8
        return int((np.diff(places[drawn]) != 1).sum())

    for epoch in range(4):
        assert breaks(1, epoch) > 0.8 * clips
        assert breaks(8, epoch) <= -(-clips // 8)
    assert breaks(clips, 0) <= 1


def test_runs_meet_other_clips_in_every_epoch() -> None:
    made = order(64, 8, run_clips=8)
    batches = [{frozenset(batch) for batch in epoch_of(made, epoch)} for epoch in range(4)]
    assert len(frozenset.union(*map(frozenset, batches))) > 16


@few
@given(
    sizes,
    st.integers(0, 3),
    st.sampled_from(["repeat", "drop"]),
    st.integers(1, 3),
    st.booleans(),
)
def test_micro_batches_do_not_depend_on_the_number_of_ranks(
    size: tuple[int, int], epoch: int, remainder: str, buckets: int, weighted: bool
) -> None:
    clips, batch_size = size
    options: dict[str, Any] = {"remainder": remainder, "bucket_batches": buckets}
    options["lengths"] = np.arange(clips) % 7
    options["weights"] = 1.0 + np.arange(clips) % 2 if weighted else None
    alone = order(*size, **options)
    for world in (2, 3, 4):
        if clips < batch_size * world:
            continue
        ranks = order(*size, world=world, **options)
        assert epoch_of(ranks, epoch) == epoch_of(alone, epoch)
        steps = ranks.steps()
        filled = steps * world - ranks.micro_batches
        assert filled in (range(world) if remainder == "repeat" else range(1 - world, 1))
        rows = {len(ranks.batch(epoch, number)) for number in range(steps * world)}
        assert rows == {batch_size}, "batches are equal on all ranks"
        for number in range(filled):
            again = ranks.batch(epoch, ranks.micro_batches + number)
            assert again.tolist() == alone.batch(epoch, number).tolist()


@pytest.mark.parametrize("remainder", ["repeat", "drop"])
def test_steps_left_are_never_negative(remainder: str) -> None:
    for world in (1, 2, 3, 4):
        made = order(40, 4, world=world, remainder=remainder)
        for consumed in range(14):  # of 10: another number of ranks may have filled up its step
            left = max(0, 10 - consumed)
            expected = left // world if remainder == "drop" else -(-left // world)
            assert made.steps(consumed) == expected


def test_too_few_clips_are_refused_with_the_numbers() -> None:
    with pytest.raises(
        ValueError,
        match=r"15 draws of 15 clips cannot fill one step of 4 ranks with 4 clips each.*at most 3",
    ):
        order(15, 4, world=4)
    with pytest.raises(ValueError, match=r"7 draws of 70 clips .* batch_size of at most 7"):
        order(70, 8, weights=np.full(70, 0.1))
    assert order(16, 4, world=4).steps() == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, r"loader\.batch_size is 0"),
        ({"run_clips": 0}, r"loader\.run_clips is 0"),
        ({"bucket_batches": -1}, r"loader\.bucket_batches is -1"),
        ({"remainder": "keep"}, r"loader\.remainder is 'keep': use one of repeat, drop"),
    ],
)
def test_settings_are_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OrderConfig(**{"batch_size": 1, **changes})
