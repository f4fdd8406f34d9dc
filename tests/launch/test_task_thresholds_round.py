"""LT of a real round within a scoring budget: what stages hold is what ledger and summary tell."""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_run import run_python

from launch.rounds.summary import print_summary
from launch.stages.settings import Settings
from launch.stages.shortlist import lookalike_files
from lsb.artifact import open_stage
from lsb.ledger import Ledger, TaskThreshold
from vlmae.config import compose_config
from vlmae.takedown import take_down

BUDGET = (
    "experiment=tiny",
    "arm=lsb_lt",
    "arms=[lsb_random]",
    "controls=false",
    "rounds=1",
    "trainer.epochs=1",
    "shortlist.share=0.4",
    "threshold.target=0.2",
    "threshold.minimum_pairs=10",
)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("budget")
    done = run_python("-m", "launch.round", *BUDGET, cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "tiny" / "summary.json").read_text())


def recorded(folder: Path) -> tuple[TaskThreshold, ...]:
    path = folder / "runs" / "tiny" / "lsb_lt" / "ledger.sqlite"
    with Ledger.open(path, create=False) as ledger:
        first, second = ledger.rounds()
    assert first.task_thresholds == ()
    assert second.threshold_value is None
    return second.task_thresholds


def only(folder: Path, pattern: str) -> Path:
    (found,) = (folder / "runs" / "stages").glob(pattern)
    return found


@pytest.mark.slow
def test_the_ledger_has_the_thresholds_of_the_shortlist(run: Path) -> None:
    views = json.loads(only(run, "shortlist-*/views.json").read_text())
    told = recorded(run)
    assert [one.task for one in told] == sorted(one["task"] for one in views)
    assert {one.mode for one in told} <= {"calibrated", "refused"}
    assert "calibrated" in {one.mode for one in told}
    by_task = {one["task"]: one for one in views}
    for one in told:
        view = by_task[one.task]
        assert (one.view, one.refusal) == ("+".join(view["view"]), view["refusal"])
        wanted = view["threshold"] or {"value": None, "precision": None, "pairs": None}
        assert {name: getattr(one, name) for name in wanted} == wanted
        assert (one.mode == "refused") == (one.refusal is not None)


@pytest.mark.slow
def test_the_summary_tells_them(run: Path) -> None:
    summary = summary_of(run)
    first, second = summary["rounds"]
    assert first["task_thresholds"] == []
    assert [TaskThreshold(**one) for one in second["task_thresholds"]] == list(recorded(run))
    (beside,) = (entry for entry in summary["arms"]["lsb_random"]["rounds"] if entry["round"])
    assert beside["task_thresholds"] == []
    assert beside["lookalike_threshold"] is not None
    console = Console(file=StringIO(), width=80)
    print_summary(summary, console)
    page = console.file.getvalue()
    table = page[page.index("LT of each task") : page.index("seconds per stage")]
    assert "…" not in table
    for one in recorded(run):
        lt = "refused" if one.value is None else f"{one.value:.3f}"
        assert any(
            all(told in line for told in (one.task, one.view, lt)) for line in table.splitlines()
        )


@pytest.mark.slow
def test_going_on_after_a_takedown_gives_them_back(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "runs", tmp_path / "runs")
    path = tmp_path / "runs" / "tiny" / "lsb_lt" / "ledger.sqlite"
    with Ledger.open(path, create=False) as ledger:
        victim = ledger.training_set(0, ["oracle"])["key"].to_pylist()[0]
    take_down(tmp_path / "runs", [victim], reason="asked by its owner")
    done = run_python("-m", "launch.round", *BUDGET, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert recorded(tmp_path) == recorded(run)
    before, after = summary_of(run), summary_of(tmp_path)
    assert after["rounds"][0]["labels"] == before["rounds"][0]["labels"] - 1
    for name in ("task_thresholds", "lookalike_threshold"):
        for arm, entry in before["arms"].items():
            new = after["arms"][arm]["rounds"]
            assert [one[name] for one in new] == [one[name] for one in entry["rounds"]], (arm, name)


@pytest.mark.slow
def test_a_shortlist_of_lookalikes_draws_its_evidence(run: Path) -> None:
    stage = only(run, "shortlist-*/threshold.json").parent
    assert (stage / "lookalikes.png").read_bytes().startswith(b"\x89PNG\r\n")
    assert "lookalikes.png" in open_stage(stage).manifest["parts"]["shortlist"]["files"]


def test_nothing_is_drawn_of_a_threshold_that_is_not_calibrated() -> None:
    drawn = {
        name: lookalike_files(
            Settings.from_config(
                compose_config(
                    "round", ["experiment=tiny", "arm=lsb_random", "arms=[]", f"threshold={name}"]
                )
            )
        )
        for name in ("calibrated", "density", "fixed", "none")
    }
    assert [name for name, files in drawn.items() if "lookalikes.png" in files] == [
        "calibrated",
        "density",
    ]
