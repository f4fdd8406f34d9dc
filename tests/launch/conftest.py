"""One undisturbed tiny run that several tests compare with."""

from __future__ import annotations

import pytest
from tiny_run import TinyRun, run_python


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """`python -m launch.round experiment=tiny`, with all arms and controls."""
    folder = tmp_path_factory.mktemp("tiny")
    done = run_python("-m", "launch.round", "experiment=tiny", cwd=folder)
    assert done.returncode == 0, done.stderr
    return TinyRun(folder, done.stdout)
