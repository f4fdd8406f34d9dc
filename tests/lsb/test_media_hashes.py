"""Copies: found by hash or by cosine, collapsed to one, and labelled like it where that is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import pyarrow as pa
import pytest
from test_selection import Clips, hits, keys, seeds

from lsb.acquisition.config import AcquisitionConfig
from lsb.acquisition.seeds import SEEDS, BroadeningConfig
from lsb.annotate import annotation_table
from lsb.carried import CARRIED, carried_annotations, carried_clips
from lsb.expand import ExpandConfig, Expansion, expand
from lsb.ids import IdArray, sample_id, sample_ids, to_arrow, to_bytes
from lsb.media_hashes import MEDIA_HASHES, MediaHashes
from lsb.search.config import SearchConfig
from lsb.search.exact import HITS
from lsb.selection import Neighbours, Selection, SelectionConfig, select
from lsb.store import Store

NONE = sample_ids([])


def table(**hashes: bytes | None) -> pa.Table:
    ids = to_arrow(sample_ids(list(hashes)))
    return pa.table([ids, pa.array(list(hashes.values()), pa.binary())], schema=MEDIA_HASHES)


def media(**hashes: bytes | None) -> MediaHashes:
    return MediaHashes(table(**hashes))


def pool(count: int = 8) -> Clips:
    return Clips({f"c{row}": np.eye(count, dtype=np.float32)[row] for row in range(count)})


def run(
    same: MediaHashes | None,
    *,
    order: tuple[str, ...] = tuple(f"c{row}" for row in range(8)),
    exclude: IdArray = NONE,
    found: dict[str, list[str]] | None = None,
    rank: str = "similarity",
    **config: object,
) -> Selection:
    chosen = seeds(("gold", 1.0, 1)) if found else SEEDS.empty_table()
    vector = np.eye(8, dtype=np.float32)[7:]
    return select(
        chosen,
        hits(found) if found else HITS.empty_table(),
        sample_ids(order),
        pool(),
        SelectionConfig(rank=rank, media_hashes=same is not None, **config),  # type: ignore[arg-type]
        lookalike_threshold=None,
        exclude=exclude,
        neighbours=Neighbours(sample_ids(["gold"]), vector, np.full(9, 0.5)),
        media=same,
    )


def test_groups_are_those_of_equal_hashes_whatever_the_order_of_rows() -> None:
    one = table(a=b"1", b=b"2", c=b"1", d=None, e=b"3")
    for rows in (one, one.take([4, 2, 0, 3, 1])):
        hashes = MediaHashes(rows)
        groups = hashes.groups(sample_ids(["a", "b", "c", "d", "e", "stranger"]))
        assert groups[0] == groups[2]
        assert len(set(groups[[0, 1, 4]])) == 3
        assert groups[3] == groups[5] == -1
        assert to_bytes(hashes.members(int(groups[0]))) == sorted([sample_id("a"), sample_id("c")])
        assert not len(hashes.members(-1))
    assert MediaHashes(MEDIA_HASHES.empty_table()).groups(sample_ids(["a"])).tolist() == [-1]
    with pytest.raises(ValueError, match="media hashes have no column 'media_hash'"):
        MediaHashes(one.select(["id"]))
    with pytest.raises(ValueError, match="more than once"):
        MediaHashes(pa.concat_tables([one, one]))


@pytest.mark.parametrize("near", [None, 0.9])
@pytest.mark.parametrize("rank", ["similarity", "diversity", "expected_value"])
@pytest.mark.parametrize("found", [None, {"gold": ["c0", "c1", "c2", "c3", "c4"]}])
def test_of_equal_media_one_is_asked(
    near: float | None, rank: str, found: dict[str, list[str]] | None
) -> None:
    same = media(c0=b"1", c2=b"1", c3=b"1", c1=b"2", c5=None, c6=None)
    result = run(same, found=found, rank=rank, budget=8, near_duplicate=near)
    group = {"c0", "c2", "c3"}
    chosen = set(keys(result))
    assert len(chosen & group) == 1
    assert chosen >= {"c1", "c4", "c5", "c6"}, "a clip without a hash is nobody's copy"
    rows = result.dropped.to_pylist()
    assert {row["id"] for row in rows} == {sample_id(key) for key in group - chosen}
    assert {row["representative_id"] for row in rows} == {sample_id(key) for key in group & chosen}
    assert {row["similarity"] for row in rows} == {None}
    assert result.counts["same_media"] == result.counts["near_duplicates"] == 2


def test_a_copy_of_an_excluded_clip_is_not_asked() -> None:
    same = media(old=b"1", c0=b"1", c1=b"2")
    result = run(same, exclude=sample_ids(["old"]), budget=8)
    assert "c0" not in keys(result)
    assert result.dropped.to_pylist()[0]["representative_id"] == sample_id("old")
    with pytest.raises(ValueError, match="media_hashes is true but there are no media hashes"):
        select(
            SEEDS.empty_table(),
            HITS.empty_table(),
            NONE,
            pool(),
            SelectionConfig(media_hashes=True),
            lookalike_threshold=None,
            exclude=NONE,
        )


@pytest.fixture
def store(make_store: Callable[..., Store]) -> Store:
    """a0, a1, a2 at cosine 0.99 of each other's neighbour; b0 alone; m0, m1 far apart."""
    angle = np.deg2rad([0.0, 5.0, 10.0, 90.0, 180.0, 240.0])
    vectors = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    unsure = {"probability_x": np.asarray([0.45, 0.5, 0.45, 0.4, 0.48, 0.3])}
    names = ["a0", "a1", "a2", "b0", "m0", "m1"]
    return make_store(vectors, names, unsure, parts=2, shuffle=3)


SAME = {"m0": b"1", "m1": b"1", "test": b"1", "b0": b"2"}
CONFIG = ExpandConfig(
    acquisition=AcquisitionConfig("margin", {"x": 1.0}),
    broadening=BroadeningConfig(0, 0, 0),
    search=SearchConfig(2, 8),
    selection=SelectionConfig(budget=2, near_duplicate=0.99, media_hashes=True, carry_labels=True),
)


def grown(store: Store, **selection: object) -> Expansion:
    how = dataclasses.replace(CONFIG.selection, **selection)  # type: ignore[arg-type]
    config = dataclasses.replace(CONFIG, selection=how)
    return expand(store, None, config, round=1, exclude=NONE, media=media(**SAME))


def test_all_copies_of_the_pool_are_found_also_those_whose_turn_never_came(store: Store) -> None:
    found = grown(store)
    assert found.candidates["key"].to_pylist() == ["a1", "m0"]
    rows = {row["key"]: row for row in found.carried.to_pylist()}
    assert found.carried.schema == CARRIED
    assert set(rows) == {"a0", "a2", "m1"}, "test is in no pool"
    assert {rows["a0"]["representative_key"], rows["a2"]["representative_key"]} == {"a1"}
    assert rows["a0"]["similarity"] == pytest.approx(np.cos(np.deg2rad(5)))
    assert (rows["m1"]["representative_key"], rows["m1"]["similarity"]) == ("m0", None)
    assert found.counts["carried"] == 3
    assert found.carried["id"].to_pylist() == sorted(found.carried["id"].to_pylist())


def test_nothing_is_carried_by_default_nor_to_excluded_clips(store: Store) -> None:
    plain = grown(store, carry_labels=False)
    assert plain.carried.num_rows == 0
    assert "carried" not in plain.counts
    found = grown(store)
    only = carried_clips(
        found.candidates,
        store,
        CONFIG.selection,
        CONFIG.search,
        exclude=sample_ids(["a0", "m1"]),
        media=media(**SAME),
    )
    assert only["key"].to_pylist() == ["a2"]


def test_the_most_similar_chosen_clip_is_the_representative(store: Store) -> None:
    found = grown(store, near_duplicate=0.998, budget=5)
    # a0 and a2 (cosine .985) are both chosen now; b0 has nobody near.
    assert set(found.candidates["key"].to_pylist()) >= {"a0", "a1", "a2"}
    chosen = found.candidates.filter(
        pa.array([key in ("a0", "a2") for key in found.candidates["key"].to_pylist()])
    )
    wide = dataclasses.replace(CONFIG.selection, near_duplicate=0.9)
    copies = carried_clips(chosen, store, wide, CONFIG.search, exclude=NONE, media=None)
    row = copies.to_pylist()[0]
    assert row["key"] == "a1"
    vectors = store.vectors(sample_ids(["a0", "a1", "a2"]))
    nearer = max(
        (("a0", vectors[0] @ vectors[1]), ("a2", vectors[2] @ vectors[1])),
        key=lambda entry: entry[1],
    )
    assert row["similarity"] == pytest.approx(nearer[1], abs=1e-6)


def labels(given: dict[tuple[str, str], int], source: str, labeller: str) -> pa.Table:
    names = [key for key, _ in given]
    return annotation_table(
        [sample_id(key) for key in names],
        names,
        [task for _, task in given],
        list(given.values()),
        source=source,
        labeller=labeller,
    )


def copies(*pairs: tuple[str, str]) -> pa.Table:
    rows = [
        {
            "id": sample_id(copy),
            "key": copy,
            "representative_id": sample_id(original),
            "representative_key": original,
            "similarity": None,
        }
        for copy, original in pairs
    ]
    return pa.Table.from_pylist(rows, schema=CARRIED)


def test_a_carried_label_keeps_its_source_and_says_from_where_it_came() -> None:
    given = labels({("a", "x"): 1, ("a", "y"): 0, ("b", "x"): 0}, "human", "ann")
    found = carried_annotations(copies(("a2", "a"), ("c2", "c")), given, {})
    assert found.to_pylist() == [
        {
            "id": sample_id("a2"),
            "key": "a2",
            "task": task,
            "label": label,
            "source": "human",
            "labeller": f"carried from {sample_id('a').hex()}",
        }
        for task, label in (("x", 1), ("y", 0))
    ]


def test_gold_is_never_carried() -> None:
    known = labels({("a", "x"): 1, ("a", "y"): 1}, "gold", "release")
    assert carried_annotations(copies(("a2", "a")), known, {}).num_rows == 0
    asked = labels({("a", "x"): 1, ("a", "y"): 1}, "human", "ann")
    measured = {(sample_id("a").hex(), "x"): 1, (sample_id("a2").hex(), "y"): 0}
    assert carried_annotations(copies(("a2", "a")), asked, measured).num_rows == 0
    twice = pa.concat_tables([asked, labels({("a", "x"): 0}, "human", "bob")])
    with pytest.raises(ValueError, match="'a' has several labels of a task: merge them"):
        carried_annotations(copies(("a2", "a")), twice, {})
