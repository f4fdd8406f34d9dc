"""A round whose ledger is in PostgreSQL: the same results and stages as with a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from postgres_server import PostgresServer, postgres
from tiny_run import TinyRun, run_python

from lsb.ledger import LOCATION_FILE, Ledger

__all__ = ["postgres"]  # a fixture

SMALL = ("experiment=tiny", "arms=[]", "controls=false", "rounds=1", "selection.budget=20")


def stages_of(folder: Path, name: str) -> list[str]:
    """Directory names of the stages that a run rests on; they have the hash of their inputs."""
    return sorted(json.loads((folder / "runs" / name / "run.json").read_text())["stages"])


def summary_of(folder: Path, name: str) -> dict[str, Any]:
    summary = json.loads((folder / "runs" / name / "summary.json").read_text())
    return {key: value for key, value in summary.items() if key != "experiment"}


@pytest.mark.slow
def test_a_round_by_url_is_that_of_a_file(
    tiny: TinyRun, tmp_path: Path, postgres: PostgresServer
) -> None:
    folder = tiny.copy_of_shared_stages(tmp_path)
    url = f"{postgres.new_database()}&options=-csearch_path%3D{{name}}.{{arm}}"
    there = (*SMALL, "name=there", f'ledger.location="{url}"')
    first = run_python("-m", "launch.round", *there, cwd=folder)
    assert first.returncode == 0, first.stderr
    arm = folder / "runs" / "there" / "lsb_lt"
    location = (arm / LOCATION_FILE).read_text().strip()
    assert location == url.replace("{name}", "there").replace("{arm}", "lsb_lt")
    assert not (arm / "ledger.sqlite").exists()
    assert "ledger.location" not in (folder / "runs" / "there" / "run.json").read_text()

    again = run_python("-m", "launch.round", *there, cwd=folder)
    assert again.returncode == 0, again.stderr
    assert ": 0 made, " in again.stdout

    here = run_python("-m", "launch.round", *SMALL, "name=here", cwd=folder)
    assert here.returncode == 0, here.stderr
    assert ": 0 made, " in here.stdout  # all by the same hashes
    assert stages_of(folder, "here") == stages_of(folder, "there")
    assert summary_of(folder, "here") == summary_of(folder, "there")
    with (
        Ledger.open(location, create=False) as server,
        Ledger.open(folder / "runs" / "here" / "lsb_lt" / "ledger.sqlite", create=False) as file,
    ):
        assert server.rounds() == file.rounds()
        assert server.training_set() == file.training_set()

    told = run_python("-m", "launch.annotate", "status", *there, "oracle=files", cwd=folder)
    assert (told.returncode, told.stderr) == (0, "")
    found = run_python("-m", "lsb.why", server_key(location), cwd=folder)
    assert found.returncode == 0
    assert location.split("?")[0] in found.stdout.replace("\n", "")

    forgotten = run_python("-m", "launch.round", *SMALL, "name=there", cwd=folder)
    assert forgotten.returncode == 1
    assert "keeps its ledger at" in forgotten.stderr
    other = (*SMALL, "name=other", f'ledger.location="{location}"')
    taken = run_python("-m", "launch.round", *other, cwd=folder)
    assert taken.returncode == 1
    assert "a ledger belongs to one arm of one run" in taken.stderr


def server_key(location: str) -> str:
    with Ledger.open(location, create=False) as ledger:
        return str(ledger.candidacies()[0]["key"])
