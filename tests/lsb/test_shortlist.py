from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lsb.acquisition.proxy import fit_proxy
from lsb.acquisition.uncertainty import binary_entropy
from lsb.ids import from_arrow, sample_ids, to_bytes
from lsb.order import descending
from lsb.shortlist.anchoral import anchoral
from lsb.shortlist.config import ShortlistConfig
from lsb.shortlist.known import Known
from lsb.shortlist.seals import seals
from lsb.shortlist.shortlist import shortlist
from lsb.store import Store

Make = Callable[..., Store]
Unit = Callable[..., np.ndarray]
KEYS = [f"clip-{row}" for row in range(240)]
WEIGHTS = {"policy": 1.0, "unsafe": 0.0}


@pytest.fixture
def known(unit: Unit) -> Known:
    """30 labelled clips: every third breaks the policy."""
    keys = [f"known-{row}" for row in range(30)]
    policy = (np.arange(30) % 3 == 0).astype(np.int8)
    return Known(
        sample_ids(keys),
        keys,
        unit(30, 8, seed=5),
        {"policy": policy, "unsafe": np.full(30, -1, np.int8)},
    )


def config(method: str, share: float = 0.1, **more: int) -> ShortlistConfig:
    return ShortlistConfig(name="all", limited=method, share=share, **more)


def test_seals_is_the_neighbours_of_all_labelled_clips(
    make_store: Make, unit: Unit, known: Known
) -> None:
    vectors = unit(240, 8)
    store = make_store(vectors, KEYS)
    table = seals(store, known, 4, 1000, exclude=sample_ids([]))
    similarity = known.vectors @ vectors.T
    expected = {
        KEYS[row] for line in similarity for row in np.argsort(-line, kind="stable")[:4].tolist()
    }
    assert set(table["key"].to_pylist()) == expected
    # Nearest neighbours of any labelled clip come before second ones.
    firsts = {KEYS[int(np.argmax(line))] for line in similarity}
    assert set(table["key"].to_pylist()[: len(firsts)]) == firsts
    fewer = seals(store, known, 4, 7, exclude=sample_ids([]))
    assert fewer == table.slice(0, 7)


def test_anchors_are_drawn_from_each_class_and_anew_each_round(
    make_store: Make, unit: Unit, known: Known
) -> None:
    vectors = unit(240, 8)
    store = make_store(vectors, KEYS)

    def made(round: int, anchors: int = 2) -> tuple[list[str], set[bytes]]:
        table = anchoral(
            store,
            known,
            ["policy"],
            anchors=anchors,
            neighbours=6,
            count=1000,
            exclude=sample_ids([]),
            seed=0,
            round=round,
        )
        return table["key"].to_pylist(), set(to_bytes(from_arrow(table["seed_id"])))

    keys, anchors = made(1)
    positive = set(to_bytes(known.ids[known.labels["policy"] == 1]))
    assert anchors & positive
    assert anchors - positive
    assert made(1) == (keys, anchors)
    assert any(made(round)[1] != anchors for round in (2, 3, 4))
    assert len(made(1, anchors=5)[0]) > len(keys)


def test_anchoral_ranks_by_the_mean_similarity_to_the_anchors_that_found_a_clip(
    make_store: Make, unit: Unit, known: Known
) -> None:
    """With every labelled clip an anchor nothing is drawn by chance."""
    vectors = unit(240, 8)
    store = make_store(vectors, KEYS)
    table = anchoral(
        store,
        known,
        ["policy"],
        anchors=30,
        neighbours=6,
        count=1000,
        exclude=sample_ids([]),
        seed=0,
        round=1,
    )
    similarity = (known.vectors @ vectors.T).astype(np.float64)
    found: dict[int, list[float]] = {}
    for line in similarity:
        for row in np.argsort(-line, kind="stable")[:6].tolist():
            found.setdefault(row, []).append(line[row])
    means = {KEYS[row]: float(np.mean(values)) for row, values in found.items()}
    keys = table["key"].to_pylist()
    assert set(keys) == set(means)
    scores = [means[key] for key in keys]
    assert scores == pytest.approx(sorted(scores, reverse=True), abs=1e-6)


def test_the_proxy_hands_over_what_it_is_least_sure_of(
    make_store: Make, unit: Unit, known: Known
) -> None:
    vectors = unit(240, 8)
    table = shortlist(
        make_store(vectors, KEYS),
        known,
        config("proxy"),
        count=24,
        task_weights=WEIGHTS,
        exclude=sample_ids([]),
        round=1,
    )
    head = fit_proxy(known.ids, known.vectors, known.labels["policy"])
    entropy = binary_entropy(head.probabilities(vectors))
    expected = descending(entropy, sample_ids(KEYS))[:24]
    assert table["key"].to_pylist() == [KEYS[row] for row in expected]
    assert set(table["reason"].to_pylist()) == {"proxy"}


@pytest.mark.parametrize("method", ["random", "seals", "anchoral", "proxy"])
def test_a_shortlist_keeps_to_its_budget_and_does_not_depend_on_parts(
    make_store: Make, unit: Unit, known: Known, method: str
) -> None:
    vectors, exclude = unit(240, 8), sample_ids(KEYS[:40])
    tables = [
        shortlist(
            make_store(vectors, KEYS, parts=parts, shuffle=shuffle),
            known,
            config(method, neighbours=2, anchors=2),
            count=100,
            task_weights=WEIGHTS,
            exclude=exclude,
            round=2,
        )
        for parts, shuffle in ((1, None), (3, 1), (7, 2))
    ]
    assert tables[0] == tables[1] == tables[2]
    keys = tables[0]["key"].to_pylist()
    assert len(keys) == len(set(keys)) == 100
    assert not set(keys) & set(KEYS[:40])
    reasons = tables[0]["reason"].to_pylist()
    assert reasons == sorted(reasons, key=lambda reason: reason == "random")  # chance comes last


@pytest.mark.parametrize("method", ["seals", "anchoral"])
def test_without_a_budget_the_pool_of_these_methods_is_not_filled_up(
    make_store: Make, unit: Unit, known: Known, method: str
) -> None:
    table = shortlist(
        make_store(unit(240, 8), KEYS),
        known,
        ShortlistConfig(name=method, limited=method, neighbours=2, anchors=2),
        count=240,
        task_weights=WEIGHTS,
        exclude=sample_ids([]),
        round=1,
    )
    assert 0 < table.num_rows < 240
    assert set(table["reason"].to_pylist()) == {method}


def test_a_proxy_without_labels_of_both_classes_is_refused(
    make_store: Make, unit: Unit, known: Known
) -> None:
    with pytest.raises(ValueError, match="labels of both classes"):
        shortlist(
            make_store(unit(240, 8), KEYS),
            known,
            config("proxy"),
            count=10,
            task_weights={"policy": 0.0, "unsafe": 1.0},
            exclude=sample_ids([]),
            round=1,
        )


def test_the_scoring_budget_in_clips() -> None:
    assert config("random", 0.02).clips(48_000, 200) == 960
    assert config("random", 0.001).clips(48_000, 200) == 200  # what is asked is scored at least
    assert ShortlistConfig(name="proxy", limited="proxy").clips(48_000, 200) == 200
    assert ShortlistConfig(name="seals", limited="seals").clips(48_000, 200) == 48_000


def test_settings_that_a_method_does_not_read_are_no_part_of_its_identity() -> None:
    everything = [ShortlistConfig(name="seals", limited="seals", seed=seed) for seed in (1, 2)]
    assert everything[0].identity() == everything[1].identity()
    for drawn in ("anchoral", "seals"):  # within a budget chance fills what seals leaves
        assert config(drawn, seed=1).identity() != config(drawn, seed=2).identity()
    assert ShortlistConfig().identity() == {"method": "all", "share": 1.0}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"name": "nearest"}, "shortlist.name is 'nearest'"),
        ({"limited": "all"}, "shortlist.limited is 'all'"),
        ({"share": 0.0}, r"shortlist.share is 0.0: .*limited=pooled"),
        ({"share": 1.2}, "shortlist.share is 1.2"),
        ({"anchors": 0}, "shortlist.anchors is 0"),
        ({"penalty": 0.0}, "shortlist.penalty is 0.0"),
    ],
)
def test_settings_out_of_range_are_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShortlistConfig(**values)
