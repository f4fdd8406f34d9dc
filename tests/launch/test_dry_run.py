"""--dry-run prints every script and makes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from launch.stages.launched_run import is_dry_run, print_scripts, read_flags
from vlmae.config import compose_config


def test_scripts_of_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["round", "launcher=slurm", "launcher.nodes=2", "--dry-run"])
    read_flags()
    config = compose_config("round", sys.argv[1:])
    assert is_dry_run(config)
    print_scripts(config)
    told = capsys.readouterr().out
    for stage in ("sources", "prepare", "cache", "embed", "neighbours", "train"):
        assert f"#SBATCH --job-name={stage}-<hash>" in told
    assert told.count("#SBATCH --array=0-15") == 5
    assert told.count("srun --cpus-per-task=") == 1
    assert "#SBATCH --nodes=2" in told
    assert not list(tmp_path.iterdir())


def test_processes_have_no_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    config = compose_config("round", ["launcher.dry_run=true"])
    print_scripts(config)
    assert "add launcher=slurm" in capsys.readouterr().out
    assert not is_dry_run(compose_config("round", []))
