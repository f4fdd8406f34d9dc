"""What the table of a comparison says, worked from made-up predictions."""

from __future__ import annotations

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from launch.comparing.table import Measure, print_comparison, summarise_comparison
from lsb.ids import sample_ids, to_arrow, to_bytes
from vlmae.metrics import recall_at_precision

CLIPS = 400
IDS = sample_ids([f"clip-{row}" for row in range(CLIPS)])
TRUTH = np.random.default_rng(0).random(CLIPS) < 0.2
SEEN = {name: row % 3 > 0 for row, name in enumerate(to_bytes(IDS))}
MEASURE = Measure(target=0.8, resamples=100, seed=0, seen=SEEN)


def evaluated(root: Path, name: str, skill: float, seed: int) -> np.ndarray:
    """A stage with predictions that follow the truth as far as `skill` says; rows shuffled."""
    random = np.random.default_rng([seed, 1])
    score = 1 / (1 + np.exp(-(skill * (2.0 * TRUTH - 1) + random.normal(size=CLIPS))))
    order = random.permutation(CLIPS)
    (root / name).mkdir(parents=True)
    table = {
        "id": to_arrow(IDS[order]),
        "label_policy": pa.array(TRUTH[order].astype(np.int8)),
        "probability_policy": pa.array(score[order].astype(np.float32)),
    }
    pq.write_table(pa.table(table), root / name / "predictions.parquet")
    return score.astype(np.float32)


def unit(name: str, seed: int) -> dict[str, Any]:
    last: dict[str, Any] = {
        "labels": 300,
        "positives": {"policy": 40 + seed},
        "counts": {"scored": 96},
        "evaluated": name,
    }
    last["found"] = {"policy": {"confident_errors": 5 + seed}}
    first = {**last, "counts": {}, "found": {"policy": {"confident_errors": None}}}
    return {"seed": seed, "rounds": [first, last, last]}


@pytest.fixture
def summary(tmp_path: Path) -> tuple[dict[str, Any], dict[str, list[np.ndarray]]]:
    skills = {"entropy": 0.7, "lsb_lt": 1.5}
    scores: dict[str, list[np.ndarray]] = {}
    results = {}
    for arm, skill in skills.items():
        names = [f"{arm}-{seed}" for seed in (1, 2)]
        scores[arm] = [evaluated(tmp_path, n, skill, s) for s, n in enumerate(names, 1)]
        results["scoring", arm] = [unit(n, s) for s, n in enumerate(names, 1)]
    return summarise_comparison(tmp_path, results, ["policy"], MEASURE), scores


def test_cells_hold_the_mean_over_seeds_of_each_group_of_speakers(summary: Any) -> None:
    made, scores = summary
    assert made["cells"] == ["policy, seen", "policy, unseen"]
    seen = np.asarray([SEEN[name] for name in to_bytes(IDS)])
    for arm, per_seed in scores.items():
        cells = made["arms"]["scoring"][arm]["cells"]
        for cell, kept in (("policy, seen", seen), ("policy, unseen", ~seen)):
            expected = [recall_at_precision(one[kept], TRUTH[kept], 0.8) for one in per_seed]
            assert cells[cell]["recall_at_p80"]["value"] == pytest.approx(np.mean(expected))
            assert cells[cell]["positives"] == TRUTH[kept].sum()
            assert cells[cell]["clips"] == kept.sum()


def test_counts_are_means_over_seeds_and_scored_clips_sums_over_rounds(summary: Any) -> None:
    entry = summary[0]["arms"]["scoring"]["lsb_lt"]
    assert entry["labels"] == 300
    assert entry["positives"] == {"policy": 41.5}
    assert entry["scored"] == 192
    assert entry["confident_errors"] == np.mean([2 * 6, 2 * 7])


def test_what_was_found_has_intervals_over_seeds(summary: Any) -> None:
    found = summary[0]["arms"]["scoring"]["lsb_lt"]["found"]
    assert found == {
        "policy": {"value": 41.5, "low": 41.0, "high": 42.0},  # of two seeds, both or either
        "confident errors": {"value": 13.0, "low": 12.0, "high": 14.0},
    }
    row = next(line for line in printed(summary[0]).splitlines() if "13 [12,14]" in line)
    assert "42 [41,42]" in row


def test_one_seed_says_nothing_of_others(tmp_path: Path) -> None:
    evaluated(tmp_path, "one", 1.0, 1)
    made = summarise_comparison(
        tmp_path, {("labels", "random"): [unit("one", 1)]}, ["policy"], MEASURE
    )
    found = made["arms"]["labels"]["random"]["found"]
    assert found["policy"] == {"value": 41.0, "low": None, "high": None}
    assert printed(made).splitlines()[-4].split() == ["random", "41", "12"]


def test_the_winner_is_named_with_a_paired_interval(summary: Any) -> None:
    made, _ = summary
    winner = made["winners"]["scoring"]
    assert (winner["arm"], winner["next"]) == ("lsb_lt", "entropy")
    arms = made["arms"]["scoring"]
    values = [arms[arm]["cells"]["policy, seen"]["recall_at_p80"] for arm in ("lsb_lt", "entropy")]
    assert winner["ahead"]["value"] == pytest.approx(values[0]["value"] - values[1]["value"])
    assert winner["ahead"]["low"] > 0
    claims = made["claims"]
    assert claims["lsb_lt - entropy, equal scoring"] == winner["ahead"]
    assert claims["lsb_lt - proxy, equal scoring"] is None  # that arm was not run


def test_an_arm_is_no_point_ahead_of_its_equal(tmp_path: Path) -> None:
    """Equal models are resampled alike, so that their difference is exactly 0."""
    for arm in ("entropy", "margin"):
        evaluated(tmp_path, arm, 1.0, 1)
    results = {("labels", arm): [unit(arm, 1)] for arm in ("entropy", "margin")}
    made = summarise_comparison(tmp_path, results, ["policy"], MEASURE)
    assert made["winners"]["labels"]["ahead"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert "no clear win" in printed(made)


def test_seeds_on_different_clips_are_refused(tmp_path: Path) -> None:
    evaluated(tmp_path, "one", 1.0, 1)
    evaluated(tmp_path, "two", 1.0, 2)
    table = pq.read_table(tmp_path / "two" / "predictions.parquet")
    pq.write_table(table.slice(1), tmp_path / "two" / "predictions.parquet")
    results = {("labels", "entropy"): [unit("one", 1), unit("two", 2)]}
    with pytest.raises(ValueError, match="measured on different clips"):
        summarise_comparison(tmp_path, results, ["policy"], MEASURE)


def printed(summary: dict[str, Any]) -> str:
    console = Console(file=StringIO(), width=80)
    print_comparison(summary, console)
    return console.file.getvalue()


def test_the_tables_fit_eighty_characters_and_the_best_comes_first(summary: Any) -> None:
    text = printed(summary[0])
    tables = [line for line in text.splitlines() if line.startswith((" lsb_lt", " entropy"))]
    assert len(tables) == 6
    assert max(map(len, tables)) <= 80
    assert tables[0].startswith(" lsb_lt")
    assert "highest R@P80 on policy, seen: lsb_lt" in text
    assert "no clear win" not in text
