"""A round with labelled positives as seeds, LT by density, ranked neighbours, carried labels."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_run import TinyRun, run_python

from lsb.annotate.carried import representative_of
from lsb.artifact import open_stage
from lsb.ledger import Ledger

pytestmark = pytest.mark.slow

ROUND = (
    "experiment=tiny", "name=copies", "arms=[]", "controls=false", "rounds=1",
    "arm=lsb_positive", "threshold=density", "selection=ranked", "selection.budget=16",
    "selection.rank=diversity", "selection.per_cluster_cap=4", "selection.clusters=4",
    "selection.media_hashes=true", "selection.carry_labels=true",
    "selection.near_duplicate=0.4",
)  # fmt: skip


def test_labels_go_on_to_copies_and_the_ledger_says_so(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tiny.copy_of_shared_stages(tmp_path)
    done = run_python("-m", "launch.round", *ROUND, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "positive" in done.stdout
    (expansion,) = (
        open_stage(path) for path in (folder / "runs" / "stages").glob("expand-*") if path.is_dir()
    )
    carried = pq.read_table(expansion.path / "carried.parquet")
    candidates = pq.read_table(expansion.path / "candidates.parquet")
    assert carried.num_rows == expansion.counts["carried"] > 0
    assert expansion.counts["seeds_positive"] > 0
    assert set(carried["representative_id"].to_pylist()) <= set(candidates["id"].to_pylist())
    assert not set(carried["id"].to_pylist()) & set(candidates["id"].to_pylist())
    limits = pq.read_table(expansion.path / "seed_thresholds.parquet")
    assert limits.num_rows == expansion.counts["seeds_positive"]

    with Ledger.open(folder / "runs" / "copies" / "lsb_positive" / "ledger.sqlite") as ledger:
        answers = [row for row in ledger.annotations() if row["round"] == 1]
        gold = {clip for clip, _ in ledger.gold()}
    own = {(r["clip_id"], r["task"]): r for r in answers if not representative_of(r["labeller"])}
    passed_on = [r for r in answers if representative_of(r["labeller"])]
    assert {r["key"] for r in passed_on} == set(carried["key"].to_pylist())
    for row in passed_on:
        origin = own[representative_of(row["labeller"]), row["task"]]  # type: ignore[index]
        assert (row["label"], row["source"]) == (origin["label"], origin["source"])
        assert row["clip_id"] not in gold
    summary = json.loads((folder / "runs" / "copies" / "summary.json").read_text())
    labels = [entry["labels"] for entry in summary["rounds"]]
    assert labels[1] - labels[0] == candidates.num_rows + carried.num_rows
