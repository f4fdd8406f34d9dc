from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from lsb.annotate import ANNOTATIONS, Annotator, annotation_table
from lsb.annotate.oracle import Oracle
from lsb.ids import sample_ids, to_arrow

KEYS = [f"clip-{index}" for index in range(4000)]
IDS = sample_ids(KEYS)
LABELS = np.random.default_rng(0).integers(0, 2, 4000).astype(np.int8)
TRUTH = pa.table(
    {
        "id": to_arrow(IDS),
        "label_x": LABELS,
        "label_y": pa.array([None if index == 7 else 1 for index in range(4000)], pa.int8()),
    }
)


def answers(oracle: Annotator, chosen: list[int], tasks: list[str]) -> dict[tuple[str, str], int]:
    table = oracle.annotate(IDS[chosen], [KEYS[index] for index in chosen], tasks)
    assert table.schema == ANNOTATIONS
    return {(row["key"], row["task"]): row["label"] for row in table.to_pylist()}


def test_tells_the_truth_and_skips_what_nobody_judged() -> None:
    oracle = Oracle(TRUTH)
    assert answers(oracle, [3, 7], ["y", "x"]) == {
        ("clip-3", "x"): LABELS[3],
        ("clip-3", "y"): 1,
        ("clip-7", "x"): LABELS[7],
    }
    table = oracle.annotate(IDS[:9], KEYS[:9], ["x"])
    assert set(table["labeller"].to_pylist()) == {"oracle:noise=0.0"}
    assert set(table["source"].to_pylist()) == {"oracle"}
    assert table["id"].to_pylist() == sorted(table["id"].to_pylist())
    assert oracle.annotate(IDS[:0], [], ["x"]).num_rows == 0


def test_noise_has_its_rate_and_depends_on_the_clip_alone() -> None:
    noisy = Oracle(TRUTH, noise=0.1, seed=3)
    assert noisy.name == "oracle:noise=0.1,seed=3"
    everything = answers(noisy, list(range(4000)), ["x"])
    wrong = np.asarray([everything[key, "x"] != LABELS[index] for index, key in enumerate(KEYS)])
    assert 0.08 < wrong.mean() < 0.12
    some = np.random.default_rng(1).permutation(4000)[:300].tolist()
    assert answers(noisy, some, ["x"]) == {
        (KEYS[index], "x"): everything[KEYS[index], "x"] for index in some
    }
    other = answers(Oracle(TRUTH, noise=0.1, seed=4), list(range(4000)), ["x"])
    both = wrong & np.asarray([other[key, "x"] != LABELS[i] for i, key in enumerate(KEYS)])
    assert 0.004 < both.mean() < 0.018  # about 0.1 * 0.1


def test_unknown_clips_tasks_and_settings_are_refused() -> None:
    oracle = Oracle(TRUTH)
    with pytest.raises(ValueError, match="clip 'new' is not in the oracle's truth table of 4000"):
        oracle.annotate(sample_ids(["new"]), ["new"], ["x"])
    with pytest.raises(ValueError, match="no column 'label_z'"):
        oracle.annotate(IDS[:1], KEYS[:1], ["z"])
    with pytest.raises(ValueError, match=r"oracle\.noise is 1\.0"):
        Oracle(TRUTH, noise=1.0)
    with pytest.raises(ValueError, match="source 'guess' is unknown"):
        annotation_table([], [], [], [], source="guess", labeller="me")
