"""A run that is started again after a takedown finishes, on fewer labels, with its history kept."""

from __future__ import annotations

import json
import shutil
import signal
import textwrap
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_run import TinyRun, run_python

from lsb.artifact import open_stage
from lsb.ledger import Ledger
from vlmae.takedown import take_down

pytestmark = pytest.mark.slow

ONLY_THE_ROUND = ("experiment=tiny", "arms=[]", "controls=false")
# Kills launch.round with SIGKILL while it writes the first chosen clips into the ledger.
DRIVER = """
    import os, runpy, signal
    from sqlalchemy import Engine, event
    @event.listens_for(Engine, "after_cursor_execute")
    def killed(connection, cursor, statement, parameters, context, executemany):
        if statement.startswith("INSERT INTO candidates"):
            os.kill(os.getpid(), signal.SIGKILL)
    if __name__ == "__main__":
        runpy.run_module("launch.round", run_name="__main__")
"""


def ledger(runs: Path) -> Ledger:
    return Ledger.open(runs / "tiny" / "lsb_lt" / "ledger.sqlite", create=False)


def labelled(runs: Path, through: int, source: str = "oracle") -> list[str]:
    with ledger(runs) as held:
        return held.training_set(through, [source])["key"].to_pylist()


def finish(folder: Path) -> dict[int, int]:
    """Round -> labels of the run, gone through once more."""
    done = run_python("-m", "launch.round", *ONLY_THE_ROUND, cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "runs" / "tiny" / "summary.json").read_text())
    return {entry["round"]: entry["labels"] for entry in summary["rounds"]}


def names_none(folder: Path, keys: set[str], since: set[str]) -> None:
    """No stage that was made since names one of the clips."""
    for stage in (folder / "runs" / "stages").glob("[a-z]*-*"):
        if stage.is_dir() and stage.name not in since:
            open_stage(stage)
            for file in stage.glob("*.parquet"):
                names = pq.read_schema(file).names
                if "key" in names:
                    found = pq.read_table(file, columns=["key"])["key"].to_pylist()
                    assert not keys & set(found), file


def test_a_finished_run_goes_through_again(tiny: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny.runs, tmp_path / "runs")
    runs = tmp_path / "runs"
    first, later = labelled(runs, 0), labelled(runs, 2)
    chosen = sorted(set(later) - set(first))
    gold = labelled(runs, 2, "gold")
    victims = {first[0], chosen[0], gold[0]}
    with ledger(runs) as held:
        before = held.candidacies(chosen[0])
    since = {stage.name for stage in (runs / "stages").iterdir()}
    take_down(runs, sorted(victims), reason="asked by its owner")
    labels = finish(tmp_path)
    entry = tiny.summary["arms"]["lsb_lt"]["rounds"]
    assert labels[0] == entry[0]["labels"] - 1
    assert labels[2] == entry[2]["labels"] - 2
    with ledger(runs) as held:
        assert held.candidacies(chosen[0]) == before, "what was asked stays on record"
    names_none(tmp_path, victims, since)
    summary = json.loads((runs / "tiny" / "summary.json").read_text())
    for old, new in zip(entry, summary["rounds"], strict=True):
        assert new["expansion"] == old["expansion"]
        assert new["lookalike_threshold"] == old["lookalike_threshold"]


def test_a_killed_run_goes_on(tiny: TinyRun, tmp_path: Path) -> None:
    folder = tiny.copy_of_shared_stages(tmp_path)
    (folder / "driver.py").write_text(textwrap.dedent(DRIVER))
    killed = run_python("driver.py", *ONLY_THE_ROUND, cwd=folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    runs = folder / "runs"
    stage = next(path for path in (runs / "stages").glob("expand-*") if path.suffix == "")
    # It was chosen and labelled, and the ledger does not know of it yet.
    chosen = pq.read_table(stage / "candidates.parquet")["key"].to_pylist()[0]
    first = labelled(runs, 0)
    take_down(runs, [chosen], reason="asked by its owner")
    labels = finish(folder)
    assert len(first) == labels[0]
    assert chosen not in labelled(runs, 2)
    assert labels[1] == labels[0] + 15
    since = {path.name for path in (runs / "stages").glob("*") if path.name.startswith("expand")}
    since |= {path.name for path in (runs / "stages").glob("label-*")}
    names_none(folder, {chosen}, since)
