"""`launch.account`, `launch.pilot` and `launch.compare`: where stages are made, what is refused."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest
from tiny_run import run_python

from launch.stages.settings import Settings
from vlmae.config import compose_config

GROWN = ("experiment=tiny", "rounds=0", "growing=every", "growing.every_epochs=1")
# Says, instead of running the arms, whether tasks would make the stages.
DRIVER = """
    import sys
    from launch import {module}
    from launch.jobs.launcher import made_by_tasks
    def run_arms(config, say):
        raise ValueError(f"by tasks: {{made_by_tasks('embed')}}")
    {module}.run_arms = run_arms
    {module}.main()
"""


@pytest.mark.parametrize("module", ["account", "pilot"])
def test_stages_are_made_where_the_launcher_says(module: str, tmp_path: Path) -> None:
    (tmp_path / "driver.py").write_text(textwrap.dedent(DRIVER.format(module=module)))
    tasks = ("launcher=local", "launcher.tasks=2")
    done = run_python("driver.py", "experiment=tiny", *tasks, cwd=tmp_path)
    assert done.stderr == "error: by tasks: True\n"


@pytest.mark.parametrize("module", ["account", "pilot"])
def test_a_dry_run_makes_nothing(module: str, tmp_path: Path) -> None:
    given = ("experiment=tiny", "launcher=slurm", "--dry-run")
    done = run_python("-m", f"launch.{module}", *given, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "#SBATCH --job-name=train-<hash>" in done.stdout
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("module", ["account", "pilot", "compare"])
def test_a_training_that_grows_is_refused_before_anything_is_made(
    module: str, tmp_path: Path
) -> None:
    done = run_python("-m", f"launch.{module}", *GROWN, cwd=tmp_path)
    assert done.returncode == 1
    assert f"and launch.{module} counts by rounds; set growing=none and rounds=" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_refusal_says_where_to_look() -> None:
    settings = Settings.from_config(compose_config("round", [*GROWN, "name=grown"]))
    with pytest.raises(ValueError, match=r"lsb\.status runs/grown/lsb_lt/ledger\.sqlite"):
        settings.require_rounds("launch.account")
    Settings.from_config(compose_config("round", ["experiment=tiny"])).require_rounds("x")
