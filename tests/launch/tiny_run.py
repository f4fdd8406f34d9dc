"""How commands are run in tests, and a finished run of experiment=tiny."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SHARED_STAGES = ("sources-*", "prepare-*", "cache-*", "whiten-*")


def run_python(
    *arguments: str, cwd: Path, timeout: float = 500
) -> subprocess.CompletedProcess[str]:
    """Run the interpreter in `cwd` with one thread and a fixed table width."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@dataclass(frozen=True)
class TinyRun:
    """A finished run of experiment=tiny."""

    folder: Path
    output: str

    @property
    def runs(self) -> Path:
        return self.folder / "runs"

    @property
    def summary(self) -> dict[str, Any]:
        return json.loads((self.runs / "tiny" / "summary.json").read_text())

    def copy_of_shared_stages(self, target: Path) -> Path:
        """A fresh folder of runs that already has the data and the tokens."""
        for pattern in SHARED_STAGES:
            for stage in (self.runs / "stages").glob(pattern):
                shutil.copytree(stage, target / "runs" / "stages" / stage.name)
        return target
