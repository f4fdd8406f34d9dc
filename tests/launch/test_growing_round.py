"""launch.round with a training that grows, instead of rounds of stages."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_run import TinyRun, run_python

from launch.stages.settings import Settings
from lsb.ledger import Ledger
from vlmae.config import compose_config

GROWN = ("growing=every", "growing.every_epochs=1", "growing.rounds=1")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), ("launcher=local", "launcher.tasks=2")])
def test_one_training_adds_the_labels_of_a_round(
    launcher: tuple[str, ...], tiny: TinyRun, tmp_path: Path
) -> None:
    """Also where tasks embed: the pool is embedded by weights that the training alone has."""
    folder = tiny.copy_of_shared_stages(tmp_path)
    small = ("experiment=tiny", "name=grown", "rounds=0", "arms=[]", "controls=false")
    overrides = (*small, *GROWN, *launcher)
    done = run_python("-m", "launch.round", *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "runs" / "grown" / "summary.json").read_text())
    first = tiny.summary["rounds"][0]["labels"]
    assert [entry["labels"] for entry in summary["rounds"]] == [first + 16]
    (trained,) = (folder / "runs" / "stages").glob("train-*[0-9a-f]")
    candidates = pq.read_table(trained / "expansion-1.candidates.parquet")
    with Ledger.open(folder / "runs" / "grown" / "lsb_lt" / "ledger.sqlite") as ledger:
        assert [(held.round, held.arm) for held in ledger.rounds()] == [(0, "first"), (1, "lsb_lt")]
        asked = {row["key"] for row in ledger.candidacies()}
        assert asked == set(candidates["key"].to_pylist())
        assert ledger.training_set(1, ["oracle"]).num_rows == first + 16


def test_rounds_and_growing_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="set rounds=0, or growing=none"):
        Settings.from_config(compose_config("round", ["experiment=tiny", *GROWN]))


def test_a_run_that_does_not_grow_keeps_its_identity() -> None:
    settings = Settings.from_config(compose_config("round", ["experiment=tiny"]))
    assert "growing" not in settings.identity
    assert settings.last_round == settings.rounds == 2
    grown = Settings.from_config(compose_config("round", ["experiment=tiny", "rounds=0", *GROWN]))
    assert grown.identity["growing"]["every_epochs"] == 1
    assert grown.last_round == 1
