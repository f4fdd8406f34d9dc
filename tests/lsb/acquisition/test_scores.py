from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.distance import jensenshannon
from scipy.stats import entropy

from lsb.acquisition.scores import (
    disagreement,
    least_confidence,
    margin,
    multiclass_entropy,
    multiclass_least_confidence,
    multiclass_margin,
    multilabel,
    require_probabilities,
    top_score,
)
from lsb.acquisition.uncertainty import binary_entropy
from lsb.ids import sample_ids

BINARY = (least_confidence, margin, binary_entropy)
MULTICLASS = (multiclass_least_confidence, multiclass_margin, multiclass_entropy)
ROWS = np.asarray([[0.5, 0.3, 0.2], [1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0], [0.4, 0.4, 0.2]])
PROBABILITY = arrays(np.float64, st.integers(1, 30), elements=st.floats(0, 1))


def test_binary_scores_worked_by_hand() -> None:
    p = np.asarray([0.0, 0.25, 0.5, 0.625, 1.0])
    assert least_confidence(p).tolist() == [0.0, 0.25, 0.5, 0.375, 0.0]
    assert margin(p).tolist() == [0.0, 0.5, 1.0, 0.75, 0.0]
    assert top_score(p).tolist() == p.tolist()
    assert margin(p.astype(np.float32)).dtype == np.float64


def test_multiclass_scores_worked_by_hand() -> None:
    assert multiclass_least_confidence(ROWS) == pytest.approx([0.5, 2 / 3, 0.0, 0.6])
    assert multiclass_margin(ROWS) == pytest.approx([0.8, 1.0, 0.0, 1.0])
    nats = [1.02965301, 1.09861229, 0.0, 1.05492017]
    assert multiclass_entropy(ROWS) * np.log(2) == pytest.approx(nats, abs=1e-8)


@given(PROBABILITY)
def test_of_two_classes_both_forms_agree(p: np.ndarray) -> None:
    both = np.stack([p, 1 - p], axis=1)
    for binary, multiclass in zip(BINARY, MULTICLASS, strict=True):
        assert multiclass(both) == pytest.approx(binary(p), abs=1e-12)
    assert multiclass_entropy(both) == pytest.approx(entropy(both, base=2, axis=1), abs=1e-12)


@given(PROBABILITY)
def test_binary_scores_order_one_task_alike(p: np.ndarray) -> None:
    order = np.argsort(np.abs(p - 0.5), kind="stable")
    for score in BINARY:
        assert (np.diff(score(p)[order]) <= 1e-12).all()


def test_multilabel_is_a_weighted_mean() -> None:
    scores = np.asarray([[1.0, 0.0], [0.5, 0.25]])
    assert multilabel(scores, np.asarray([3.0, 1.0])).tolist() == [0.75, 0.4375]
    for weights in ([1.0], [0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0]):
        with pytest.raises(ValueError, match="weights"):
            multilabel(scores, np.asarray(weights))


def test_disagreement_is_the_jensen_shannon_divergence() -> None:
    assert disagreement(np.asarray([0.0, 0.5, 1.0]), np.asarray([1.0, 0.5, 1.0])).tolist() == [
        1.0,
        0.0,
        0.0,
    ]
    vl, audio = np.random.default_rng(0).random((2, 50))
    pairs = [np.stack([p, 1 - p]) for p in (vl, audio)]
    reference = jensenshannon(*pairs, base=2, axis=0) ** 2
    assert disagreement(vl, audio) == pytest.approx(reference, abs=1e-12)
    assert (disagreement(vl, audio) == disagreement(audio, vl)).all()
    with pytest.raises(ValueError, match=r"shape \(50,\), of audio alone \(49,\)"):
        disagreement(vl, audio[1:])


@pytest.mark.parametrize("score", [least_confidence, margin, top_score])
@pytest.mark.parametrize("bad", [np.nan, -0.01, 1.01, np.inf])
def test_values_that_are_no_probabilities_are_refused(score: object, bad: float) -> None:
    with pytest.raises(ValueError, match=r"1 of 3 values .* the first of row 1"):
        score(np.asarray([0.5, bad, 0.5]))  # type: ignore[operator]


def test_the_refusal_names_the_clip() -> None:
    ids = sample_ids(["a", "b", "c"])
    values = np.asarray([[0.1, 0.2], [0.3, 0.4], [0.5, np.nan]])
    with pytest.raises(ValueError, match=rf"of x are NaN .* first of clip {ids[2].hex()}"):
        require_probabilities(values, "x", ids)


@pytest.mark.parametrize("score", MULTICLASS)
def test_rows_that_are_no_distributions_are_refused(score: object) -> None:
    for bad, message in (
        (np.asarray([[0.5, 0.5], [0.5, 0.6]]), r"1 of 2 rows .* the first to 1\.1"),
        (np.asarray([0.5, 0.5]), r"shape \(2,\): give \(N, C\)"),
        (np.ones((3, 1)), r"shape \(3, 1\)"),
        (np.asarray([[np.nan, 1.0]]), "1 of 2 values"),
    ):
        with pytest.raises(ValueError, match=message):
            score(bad)  # type: ignore[operator]


@given(arrays(np.float64, (9, 3), elements=st.floats(0.01, 1)))
def test_a_clip_has_the_same_bits_whatever_stands_beside_it(values: np.ndarray) -> None:
    rows = values / values.sum(axis=1, keepdims=True)
    for score in MULTICLASS:
        alone = np.concatenate([score(rows[index : index + 1]) for index in range(len(rows))])
        assert alone.tobytes() == score(rows).tobytes()
