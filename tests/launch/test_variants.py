"""Comparing fusion variants, and driving the loss of a few clips to nothing."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
from tiny_run import TinyRun, run_python

from lsb.artifact import open_stage

VARIANTS = (
    "experiment=tiny",
    "name=compared",
    "variants.fusions=[late,concat]",
    "~variants.grid",  # a mapping would be merged
    "+variants.grid={optimizer.learning_rate:[1e-3,3e-3]}",
    "variants.without_audio=concat",
    "variants.labels=20",
    "variants.development=8",
    "variants.seeds=2",
    "trainer.epochs=1",
    "trainer.batch_size=8",
)


def test_variants_are_tuned_on_development_clips_and_measured_on_others(
    tiny: TinyRun, tmp_path: Path
) -> None:
    tiny.copy_of_shared_stages(tmp_path)
    done = run_python("-m", "launch.variants", *VARIANTS, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "compared" / "variants.json").read_text())
    assert list(summary["variants"]) == ["late", "concat", "without audio"]
    assert summary["grid"] == [{"optimizer.learning_rate": 1e-3}, {"optimizer.learning_rate": 3e-3}]
    for entry in summary["variants"].values():
        best = max(entry["development"].values())
        assert entry["development"][str(entry["point"])] == best
        assert entry["parameters"] > 1000
        assert entry["step_ratio"] > 0
        for task in entry["tasks"].values():
            metric = task["average_precision"]
            if metric["value"] is not None:
                assert 0 <= metric["low"] <= metric["high"] <= 1
    variants = summary["variants"]
    assert variants["late"]["step_ratio"] == 1.0
    assert variants["concat"]["parameters"] == variants["without audio"]["parameters"]
    shuffled = "average_precision, shuffled"
    assert shuffled in variants["concat"]["tasks"]["relevance"]
    assert shuffled not in variants["without audio"]["tasks"]["relevance"]

    stages = sorted((tmp_path / "runs" / "stages").glob("train-*[0-9a-f]"))
    assert len(stages) == 3 * (2 + 1), "a grid of two points, and one more seed, for three rows"
    trained = {key for s in stages for key in _keys(s / "training_set.parquet")}
    measured = {
        key
        for s in (tmp_path / "runs" / "stages").glob("evaluate-*[0-9a-f]")
        for key in _keys(s / "predictions.parquet")
    }
    assert len(trained) == 20
    assert not trained & measured

    again = run_python("-m", "launch.variants", *VARIANTS, cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    repeated = json.loads((tmp_path / "runs" / "compared" / "variants.json").read_text())
    for both in (summary, repeated):
        for entry in both["variants"].values():
            entry.pop("step_ratio"), entry.pop("step_ms")
    assert repeated == summary


def test_too_few_clips_are_one_line(tiny: TinyRun, tmp_path: Path) -> None:
    tiny.copy_of_shared_stages(tmp_path)
    done = run_python("-m", "launch.variants", *VARIANTS, "variants.labels=9999", cwd=tmp_path)
    assert done.returncode == 1
    assert "lower one of them" in done.stderr.splitlines()[-1]


def test_debug_overfit_drives_the_loss_of_eight_clips_to_near_zero(tmp_path: Path) -> None:
    few = ("data.pool=48", "data.gold=8", "data.test=8")  # whitening needs some
    done = run_python("-m", "launch.round", "experiment=tiny", "debug=overfit", *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (stage,) = (tmp_path / "runs" / "stages").glob("train-*[0-9a-f]")
    assert open_stage(stage).counts["labels"] <= 8
    with open(stage / "history.csv", newline="") as stream:
        losses = [float(row["loss"]) for row in csv.DictReader(stream)]
    assert losses[0] > 0.4
    assert losses[-1] < 0.02


def _keys(path: Path) -> list[str]:
    return [str(key) for key in pq.read_table(path, columns=["key"])["key"].to_pylist()]
