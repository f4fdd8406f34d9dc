"""A run whose annotators are people, for tests: its round, its commands, its ledger."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tiny_run import TinyRun, run_python

from launch import annotate
from launch.stages.settings import Settings
from lsb.ledger import Ledger
from vlmae.config import compose_config

BUDGET = 20


@dataclass(frozen=True)
class PeopleRun:
    """experiment=tiny with one round by people, in a folder of its own."""

    folder: Path
    overrides: tuple[str, ...]

    @classmethod
    def start(cls, tiny: TinyRun, folder: Path, *overrides: str) -> PeopleRun:
        """Run until it waits for people."""
        small = (
            "experiment=tiny",
            "arms=[]",
            "controls=false",
            "rounds=1",
            f"selection.budget={BUDGET}",
            "name=people",
        )
        run = cls(tiny.copy_of_shared_stages(folder), (*small, *overrides))
        done = run.round()
        assert done.returncode == 75, done.stderr
        return run

    def round(self) -> subprocess.CompletedProcess[str]:
        """`python -m launch.round`."""
        return run_python("-m", "launch.round", *self.overrides, cwd=self.folder)

    @property
    def ledger(self) -> Path:
        return self.folder / "runs" / "people" / "lsb_lt" / "ledger.sqlite"

    @property
    def handoff(self) -> Path:
        return self.folder / "runs" / "people" / "lsb_lt" / "handoff" / "round-001"

    def act(self, action: str, monkeypatch: pytest.MonkeyPatch, *more: str) -> list[str]:
        """What `python -m launch.annotate <action>` says, in this process."""
        monkeypatch.chdir(self.folder)
        settings = Settings.from_config(compose_config("round", [*self.overrides, *more]))
        said: list[str] = []
        annotate.ACTIONS[action](settings, said.append)
        return said

    def annotations(self, number: int = 1) -> list[dict[str, Any]]:
        """Of a round, as the ledger has them."""
        with Ledger.open(self.ledger, create=False) as ledger:
            return [row for row in ledger.annotations() if row["round"] == number]
