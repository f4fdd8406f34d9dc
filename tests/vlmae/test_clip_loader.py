"""The loader goes on from any step, with any number of workers, to the very batches it owed."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
import pytest

from vlmae.data.loader import ClipLoader, LoaderConfig
from vlmae.data.order import BatchOrder, Indices, OrderConfig

CLIPS, SIZE, EPOCHS = 41, 3, 3
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@dataclass(frozen=True)
class Drawn:
    """What a loader asked for: hashable, and left alone by torch."""

    clips: tuple[int, ...]
    seed: int


class Numbers:
    """A source whose batches are the clip numbers themselves."""

    def __init__(self, bad: int | None = None) -> None:
        self.bad = bad

    def batch(self, rows: Indices, seed: int) -> Drawn:
        if self.bad is not None and self.bad in rows:
            raise OSError(f"clip {self.bad} cannot be read")
        return Drawn(tuple(rows.tolist()), seed)


def loader(
    *,
    world: int = 1,
    rank: int = 0,
    workers: int = 0,
    prefetch: int = 2,
    data: str = "a",
    clips: int = CLIPS,
    weighted: bool = False,
    bad: int | None = None,
    **order: Any,
) -> ClipLoader:
    config = OrderConfig(**{"batch_size": SIZE, "seed": 5, "bucket_batches": 2, **order})
    weights = 0.5 + np.arange(clips) % 3 if weighted else None
    lengths = np.arange(clips) % 11
    made = BatchOrder(clips, world=world, config=config, weights=weights, lengths=lengths)
    source = Numbers(bad)
    return ClipLoader(source, made, rank=rank, workers=workers, prefetch=prefetch, data=data)


def epochs_of(made: ClipLoader, epochs: int = EPOCHS) -> list[list[Drawn]]:
    """The rest of this epoch and the next ones."""
    drawn = [list(made) for _ in range(epochs)]
    made.close()
    return drawn


@cache
def undisturbed() -> list[list[Drawn]]:
    return epochs_of(loader(), EPOCHS + 1)


def states_of(made: ClipLoader) -> list[dict[str, Any]]:
    """State before the first step and after each of the first epoch."""
    states = [made.state_dict()]
    states += [made.state_dict() for _ in made]
    made.close()
    return states


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 4])
def test_resumed_at_every_step_with_any_workers_it_gives_what_was_left(workers: int) -> None:
    options: dict[str, Any] = {"batch_size": 6, "weighted": True}
    expected = states_of(loader(world=2, **options))
    assert len(expected) == 6
    rank = workers % 2
    whole = epochs_of(loader(world=2, rank=rank, **options), EPOCHS + 1)
    states = states_of(loader(world=2, rank=rank, workers=workers, **options))
    assert states == expected, "whatever rank and workers"
    for step, state in enumerate(states):
        owed = [whole[0][step:], *whole[1:]] if step < len(whole[0]) else whole[1:]
        # Over all cases of this test every step meets every number of workers.
        for other in {0, *(w for w in (1, 2, 3, 4) if (w + step) % 5 == workers)}:
            again = loader(world=2, rank=rank, workers=other, prefetch=3, **options)
            again.load_state_dict(state)
            assert epochs_of(again) == owed[:EPOCHS]


def test_resumed_in_a_later_epoch_it_gives_what_was_left() -> None:
    first, second = loader(workers=2), loader(workers=1)
    whole = undisturbed()
    assert list(first) == whole[0]
    assert list(islice(first, 4)) == whole[1][:4]
    state = first.state_dict()
    first.close()
    assert (state["epoch"], state["consumed"], state["steps"]) == (1, 4, 4)
    second.load_state_dict(state)
    assert epochs_of(second) == [whole[1][4:], whole[2], whole[3]]


@pytest.mark.parametrize("workers", [0, 2])
def test_what_was_not_iterated_comes_next_and_closing_loses_nothing(workers: int) -> None:
    made, whole = loader(workers=workers), undisturbed()
    drawn = []
    for batch in made:
        drawn.append(batch)
        if len(drawn) == 5:
            break
    drawn += islice(made, 3)
    made.close()
    drawn += made
    assert drawn == whole[0]
    assert epochs_of(made, 2) == whole[1:3]


def test_prefetching_does_not_move_the_cursor() -> None:
    made = loader(workers=2, prefetch=4, world=2)
    list(islice(made, 2))
    state = made.state_dict()
    made.close()
    assert (state["epoch"], state["consumed"], state["steps"]) == (0, 4, 2)


def test_ranks_together_give_the_epoch_of_one() -> None:
    alone = [batch for epoch in undisturbed()[:2] for batch in epoch]
    for world in (2, 3):
        ranks = [epochs_of(loader(world=world, rank=rank), 2) for rank in range(world)]
        for epoch in range(2):
            dealt = [b for step in zip(*(r[epoch] for r in ranks), strict=True) for b in step]
            expected = alone[14 * epoch : 14 * (epoch + 1)]
            assert dealt == [*expected, *expected][: len(dealt)]
            assert len(dealt) - 14 < world


@pytest.mark.parametrize("before", [1, 2, 3, 4])
@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_another_number_of_ranks_loses_nothing_and_repeats_what_fills_up(
    before: int, after: int
) -> None:
    every = Counter(undisturbed()[0])
    following = undisturbed()[1]
    for stop, state in enumerate(states_of(loader(world=before))):
        seen = Counter[Drawn]()
        for rank in range(before):
            seen += Counter(islice(loader(world=before, rank=rank), stop))
        resumed = [loader(world=after, rank=rank) for rank in range(after)]
        finished = state["consumed"] >= sum(every.values())
        for one in resumed:
            one.load_state_dict(state)
            assert one.state_dict() == state
            assert len(one) == one.order.steps(state["consumed"]) + stop
            seen += Counter() if finished else Counter(one)
        filled = sum(seen.values()) - sum(every.values())
        assert all(seen[batch] >= times for batch, times in every.items()), "none is lost"
        assert filled < max(before, after)
        # Then comes the next epoch, whole.
        first = [next(iter(one)) for one in resumed]
        assert first == following[:after]


def test_length_is_that_of_the_epoch_all_along() -> None:
    made = loader(world=4, rank=3)
    assert len(made) == 4
    assert [len(made) for _ in made] == [4, 4, 4, 4]
    assert len(made) == 4
    list(islice(made, 3))
    resumed = loader(world=4)
    resumed.load_state_dict(made.state_dict())
    assert len(resumed) == 4
    assert len(list(resumed)) == 1


def test_seed_differs_by_epoch_and_is_equal_within_one() -> None:
    ranks = [epochs_of(loader(world=2, rank=rank)) for rank in (0, 1)]
    seeds = [{batch.seed for rank in ranks for batch in rank[epoch]} for epoch in range(EPOCHS)]
    assert [len(epoch) for epoch in seeds] == [1, 1, 1]
    assert len(set.union(*seeds)) == EPOCHS
    other = next(iter(loader(seed=6)))
    assert other.seed not in set.union(*seeds)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data": "b"}, r"data: a -> b"),
        ({"batch_size": 4}, r"batch_size: 3 -> 4"),
        ({"seed": 6}, r"seed: 5 -> 6"),
        ({"clips": CLIPS + 1}, r"draws: 41 -> 42"),
        ({"weighted": True}, r"draws: 41 -> 60"),
        ({"run_clips": 2}, r"settings: "),
        ({"bucket_batches": 1}, r"settings: "),
        ({"remainder": "drop"}, r"settings: "),
    ],
)
def test_state_of_another_order_is_refused(changes: dict[str, Any], named: str) -> None:
    made, other = loader(), loader(**changes)
    list(islice(made, 3))
    with pytest.raises(ValueError, match=rf"another order of clips \(.*{named}.*start the train"):
        other.load_state_dict(made.state_dict())
    assert other.state_dict()["consumed"] == 0, "a refused state changes nothing"


@pytest.mark.parametrize("version", [None, 0, 2])
def test_state_of_another_version_is_refused(version: int | None) -> None:
    state = {**loader().state_dict(), "version": version}
    with pytest.raises(ValueError, match=rf"version {version}, this release reads 1: start"):
        loader().load_state_dict(state)


def test_workers_end_when_the_loader_is_closed_or_forgotten() -> None:
    before = set(multiprocessing.active_children())
    made = loader(workers=3)
    next(iter(made))
    assert len(set(multiprocessing.active_children()) - before) == 3
    made.close()
    made.close()
    assert set(multiprocessing.active_children()) <= before
    next(iter(made))
    del made
    assert set(multiprocessing.active_children()) <= before


def test_workers_live_through_all_epochs() -> None:
    made = loader(workers=2)
    pids = set()
    for _ in range(3):
        for _ in made:
            pids |= {child.pid for child in multiprocessing.active_children()}
    made.close()
    assert len(pids) == 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_failed_is_not_stepped_over(workers: int) -> None:
    whole = undisturbed()[0]
    step = 5
    bad = next(clip for clip in whole[step].clips if all(clip not in b.clips for b in whole[:step]))
    made = loader(workers=workers, bad=bad)
    drawn = []
    before = set(multiprocessing.active_children())
    for _ in range(2):
        with pytest.raises(OSError, match=f"clip {bad} cannot be read"):
            drawn += made
        assert made.state_dict()["consumed"] == step
        children = set(multiprocessing.active_children())
        assert children <= before, "they end though the error still refers to them"
    made.source = Numbers()
    drawn += made
    assert drawn == whole


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="rank 2 of 2: give one from 0 to 1"):
        loader(world=2, rank=2)
    for workers, prefetch in ((-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"workers {workers}, prefetch {prefetch}"):
            LoaderConfig(workers=workers, prefetch=prefetch)
    for weight in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match=f"new_weight is {weight}: give a number above 0"):
            LoaderConfig(new_weight=weight)
        with pytest.raises(ValueError, match=f"unsafe is {weight}: give a number above 0"):
            LoaderConfig(positive_weight={"unsafe": weight})
    with pytest.raises(ValueError, match=r"loader\.run_clips is 0"):
        LoaderConfig(run_clips=0)
    hashed = LoaderConfig(workers=3, prefetch=7).hashed()
    assert hashed == LoaderConfig().hashed()
    assert hashed.keys().isdisjoint({"workers", "prefetch"})
