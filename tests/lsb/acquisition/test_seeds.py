from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest

from lsb.acquisition.seeds import SEEDS, BroadeningConfig, choose_seeds, could_be_seeds, hard_seeds
from lsb.ids import sample_ids, to_arrow, to_bytes
from lsb.labelled import Labelled

NONE = sample_ids([])


def pool(count: int = 100) -> pa.Table:
    keys = [f"pool-{index}" for index in range(count)]
    return pa.table(
        {
            "id": to_arrow(sample_ids(keys)),
            "key": keys,
            "probability_x": np.linspace(0, 1, count),
            "probability_y": np.full(count, 0.01),
        }
    )


def gold() -> Labelled:
    #        x: wrong .99  wrong .9   wrong .6   right      | y: wrong .8
    keys = ["e99", "e90", "e60", "right", "y80"]
    return Labelled(
        ids=sample_ids(keys),
        keys=keys,
        vectors=np.eye(5, dtype=np.float32),
        labels={
            "x": np.asarray([0, 1, 0, 1, -1], dtype=np.int8),
            "y": np.asarray([-1, -1, 0, -1, 1], dtype=np.int8),
        },
        probabilities={
            "x": np.asarray([0.99, 0.1, 0.6, 0.9, np.nan]),
            "y": np.asarray([np.nan, 0.5, 0.1, 0.5, 0.2]),
        },
        operating_thresholds={"x": 0.5, "y": 0.5},
    )


def choose(table: pa.Table, config: BroadeningConfig, **options: object) -> pa.Table:
    settings: dict[str, object] = {
        "task_weights": {"x": 1.0, "y": 1.0}, "seed": 0, "round": 1, "exclude": NONE,
    }  # fmt: skip
    return choose_seeds(table, gold(), config, **(settings | options))  # type: ignore[arg-type]


def test_entropy_seeds_are_the_most_uncertain_and_name_the_task_that_made_them() -> None:
    seeds = choose(pool(), BroadeningConfig(entropy=4, confident_error=0))
    assert set(seeds["key"].to_pylist()) == {"pool-48", "pool-49", "pool-50", "pool-51"}
    assert set(seeds["task"].to_pylist()) == {"x"}
    assert set(seeds["kind"].to_pylist()) == {"entropy"}
    assert seeds["label"].null_count == 4
    assert seeds.schema == SEEDS


@pytest.mark.parametrize("pieces", [1, 3, 20])
def test_a_pool_in_pieces_has_the_seeds_of_the_whole(pieces: int) -> None:
    random = np.random.default_rng(pieces)
    table = pool(100)
    for name in ("probability_x", "probability_y"):  # many ties
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(random.integers(0, 8, 100) / 8))
    exclude = sample_ids([f"pool-{row}" for row in range(0, 100, 7)])
    config = BroadeningConfig(entropy=9, confident_error=2, random=11, positive=1)
    bounds = np.linspace(0, 100, pieces + 1).astype(int)
    best = pa.concat_tables(
        could_be_seeds(
            table.slice(low, high - low),
            config,
            task_weights={"x": 2.0, "y": 1.0},
            seed=3,
            round=2,
            exclude=exclude,
        )
        for low, high in pairwise(bounds)
    )
    given = {"task_weights": {"x": 2.0, "y": 1.0}, "seed": 3, "round": 2, "exclude": exclude}
    assert choose(best, config, **given).equals(choose(table, config, **given))
    assert best.num_rows <= min(pieces * 20, 100 - len(exclude))


def test_excluded_clips_are_not_seeds() -> None:
    exclude = sample_ids(["pool-47", "pool-48", "pool-49", "pool-50"])
    seeds = choose(pool(), BroadeningConfig(entropy=2, confident_error=0), exclude=exclude)
    assert set(seeds["key"].to_pylist()) == {"pool-51", "pool-52"}


def test_confident_errors_and_their_labels() -> None:
    config = BroadeningConfig(entropy=0, confident_error=10, confidence=0.8)
    seeds = choose(pool(), config).to_pylist()
    found = {(row["key"], row["task"]): (row["label"], row["score"]) for row in seeds}
    assert found == {
        ("e99", "x"): (0, 0.99),
        ("e90", "x"): (1, 0.9),
        ("y80", "y"): (1, 0.8),
    }
    assert [row["key"] for row in seeds] == ["e99", "e90", "y80"]


def test_confident_errors_are_shared_between_tasks() -> None:
    config = BroadeningConfig(entropy=0, confident_error=2, confidence=0.5)
    assert [(r["key"], r["task"]) for r in choose(pool(), config).to_pylist()] == [
        ("e99", "x"), ("y80", "y"),
    ]  # fmt: skip
    heavy = choose(pool(), config, task_weights={"x": 5.0, "y": 1.0})
    assert heavy["key"].to_pylist() == ["e99", "e90"]
    alone = choose(pool(), config, task_weights={"y": 1.0})
    assert alone["key"].to_pylist() == ["y80"]


def test_mix_weights_and_uniqueness() -> None:
    config = BroadeningConfig(
        entropy=5, confident_error=3, random=20, confident_error_weight=10, random_weight=0.01
    )
    seeds = choose(pool(), config)
    kinds = seeds["kind"].to_pylist()
    assert Counter(kinds) == {"entropy": 5, "confident_error": 3, "random": 20}
    assert kinds == ["confident_error"] * 3 + ["entropy"] * 5 + ["random"] * 20
    assert len(set(seeds["id"].to_pylist())) == 28
    weights = seeds["weight"].to_pylist()
    assert weights == sorted(weights, reverse=True)


def test_does_not_depend_on_the_order_of_rows() -> None:
    config = BroadeningConfig(entropy=10, confident_error=3, random=10)
    tied = pool().set_column(2, "probability_x", pa.array(np.full(100, 0.5)))
    for table in (pool(), tied):
        order = np.random.default_rng(1).permutation(100)
        assert choose(table.take(order), config).equals(choose(table, config))


def test_ties_go_to_the_smaller_id_and_a_small_pool_gives_what_it_has() -> None:
    tied = pool().set_column(2, "probability_x", pa.array(np.full(100, 0.5)))
    seeds = choose(tied, BroadeningConfig(entropy=3, confident_error=0))
    assert seeds["id"].to_pylist() == sorted(tied["id"].to_pylist())[:3]
    seeds = choose(pool(4), BroadeningConfig(entropy=9, confident_error=0, random=9))
    assert seeds.num_rows == 4


def test_random_seeds_need_no_probabilities_and_change_with_the_round() -> None:
    bare = pool().select(["id", "key"])
    config = BroadeningConfig(entropy=0, confident_error=0, random=10)
    one, two = (set(choose(bare, config, round=r)["key"].to_pylist()) for r in (1, 2))
    assert one != two
    with pytest.raises(ValueError, match="no column 'probability_x', only"):
        choose(bare, BroadeningConfig(entropy=1, confident_error=0))


def test_hard_seeds_are_wrong_or_unsure() -> None:
    seeds = hard_seeds(gold(), {"x": 1.0, "y": 1.0}, band=0.0)
    found = [(row["task"], row["key"]) for row in seeds.to_pylist()]
    assert sorted(found) == [("x", "e60"), ("x", "e90"), ("x", "e99"), ("y", "y80")]
    assert hard_seeds(gold(), {"x": 1.0}, band=0.41).num_rows == 4


def test_wrong_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"broadening\.random is -1"):
        BroadeningConfig(random=-1)
    with pytest.raises(ValueError, match=r"broadening\.confidence is 1\.5"):
        BroadeningConfig(confidence=1.5)
    with pytest.raises(ValueError, match="no labelled clips with out-of-sample predictions"):
        choose_seeds(
            pool(), None, BroadeningConfig(), task_weights={"x": 1}, seed=0, round=0, exclude=NONE
        )
    with pytest.raises(ValueError, match="task 'z' has a weight but no labelled clips"):
        choose(pool(), BroadeningConfig(entropy=0), task_weights={"z": 1})


def test_labelled_checks_its_arrays() -> None:
    fields = dict(vars(gold()))
    with pytest.raises(ValueError, match="task 'y' has label 7"):
        Labelled(**(fields | {"labels": fields["labels"] | {"y": np.full(5, 7, np.int8)}}))
    with pytest.raises(ValueError, match=r"2 labelled clips have no probability .* first 'e60'"):
        Labelled(
            **(fields | {"probabilities": fields["probabilities"] | {"y": np.full(5, np.nan)}})
        )
    with pytest.raises(ValueError, match="5 labelled ids but 4 vectors"):
        Labelled(**(fields | {"vectors": fields["vectors"][:4]}))
    with pytest.raises(ValueError, match="give all three for the same tasks"):
        Labelled(**(fields | {"operating_thresholds": {"x": 0.5}}))


def test_labelled_from_table() -> None:
    table = pa.table(
        {
            "id": to_arrow(sample_ids(["a", "b"])),
            "key": ["a", "b"],
            "label_x": pa.array([1, None], pa.int8()),
            "probability_x": np.asarray([0.5, 0.1], dtype=np.float32),
        }
    )
    made = Labelled.from_table(table, np.eye(2, dtype=np.float32), {"x": 0.5})
    assert made.labels["x"].tolist() == [1, -1]
    assert to_bytes(made.ids) == to_bytes(sample_ids(["a", "b"]))
    with pytest.raises(ValueError, match="no column 'label_y'"):
        Labelled.from_table(table, np.eye(2, dtype=np.float32), {"y": 0.5})
