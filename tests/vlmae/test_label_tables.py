"""Weights of labelled clips: whose, how they combine, and that they are part of the fingerprint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from lsb.ids import sample_ids, to_arrow
from vlmae.data.labels import WEIGHT, labels_fingerprint, with_weights

TASKS = ["relevance", "unsafe"]


def table(relevance: list[int | None], unsafe: list[int | None], **columns: list[Any]) -> pa.Table:
    keys = [f"clip-{number}" for number in range(len(relevance))]
    return pa.table(
        {
            "id": to_arrow(sample_ids(keys)),
            "key": keys,
            "source": ["human"] * len(keys),
            "label_relevance": pa.array(relevance, pa.int8()),
            "label_unsafe": pa.array(unsafe, pa.int8()),
            **columns,
        }
    )


def weights(labels: pa.Table, new_weight: float = 1.0, **positive: float) -> list[float]:
    made = with_weights(labels, TASKS, positive_weight=positive, new_weight=new_weight)
    assert made.drop_columns([WEIGHT]).equals(
        labels.drop_columns([WEIGHT]) if WEIGHT in labels.column_names else labels
    ), "nothing else changes"
    assert made.schema.field(WEIGHT).type == pa.float64()
    values: list[float] = made[WEIGHT].to_pylist()
    return values


def test_without_settings_every_clip_weighs_one() -> None:
    assert weights(table([1, 0, None], [None, 1, 0])) == [1.0, 1.0, 1.0]
    assert weights(table([], [])) == []


def test_positives_of_a_task_weigh_more_and_missing_labels_do_not() -> None:
    labels = table([1, 0, None, 1], [1, 1, 1, None])
    assert weights(labels, relevance=3.0) == [3.0, 1.0, 1.0, 3.0]
    assert weights(labels, relevance=3.0, unsafe=2.0) == [3.0, 2.0, 2.0, 3.0], "the largest counts"


def test_clips_of_the_last_round_weigh_more_but_not_those_of_the_first_alone() -> None:
    assert weights(table([0] * 4, [0] * 4, round=[0, 2, 1, 2]), new_weight=5.0) == [1, 5, 1, 5]
    assert weights(table([0] * 2, [0] * 2, round=[0, 0]), new_weight=5.0) == [1, 1]
    assert weights(table([0] * 2, [0] * 2), new_weight=5.0) == [1, 1], "no column, no rounds"
    gaps = table([0] * 3, [0] * 3, round=[None, 0, 1], weight=[None, 2.0, 1.0])
    assert weights(gaps, new_weight=5.0) == [1, 2, 5]


def test_own_weights_positives_and_rounds_multiply() -> None:
    labels = table([1, 1, 0], [0, 0, 0], round=[0, 1, 1], weight=[0.5, 2, 0])
    assert weights(labels, new_weight=3.0, relevance=4.0) == [2.0, 24.0, 0.0]
    again = with_weights(labels, TASKS, positive_weight={}, new_weight=1.0)
    assert again.column_names.count(WEIGHT) == 1


def test_weights_of_an_unknown_task_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"positive_weight names \['sport'\], the tasks are \['relevance', 'unsaf"
    ):
        weights(table([1], [1]), sport=2.0, unsafe=1.0)


def test_fingerprint_covers_weights_whatever_the_order_of_rows() -> None:
    plain = table([1, 0, 1], [0, 0, 1])
    tables = [
        plain,
        with_weights(plain, TASKS, positive_weight={}, new_weight=1.0),
        with_weights(plain, TASKS, positive_weight={"unsafe": 2.0}, new_weight=1.0),
        with_weights(plain, TASKS, positive_weight={"relevance": 2.0}, new_weight=1.0),
    ]
    prints = [labels_fingerprint(labels, TASKS) for labels in tables]
    assert len(set(prints)) == 4
    for labels, expected in zip(tables, prints, strict=True):
        for turned in ([2, 1, 0], [1, 2, 0]):
            assert labels_fingerprint(labels.take(turned), TASKS) == expected
    swapped = tables[2].set_column(
        tables[2].column_names.index(WEIGHT), WEIGHT, pa.array([2.0, 1.0, 1.0])
    )
    assert labels_fingerprint(swapped, TASKS) not in prints


def test_a_weight_belongs_to_its_clip() -> None:
    labels = table([1, 0, 0, 1], [0, 0, 1, 0], weight=[1.0, 2.0, 3.0, 4.0])
    turned = labels.take([3, 0, 2, 1])
    made = with_weights(turned, TASKS, positive_weight={"unsafe": 10.0}, new_weight=1.0)
    found = dict(zip(made["key"].to_pylist(), made[WEIGHT].to_pylist(), strict=True))
    np.testing.assert_allclose([found[f"clip-{n}"] for n in range(4)], [1, 2, 30, 4])
