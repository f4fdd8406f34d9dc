"""Arms over seeds and protocols, side by side: one table, resumable, whatever was killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from tiny_run import run_python
from warm_python import COLD

from launch.compare import CompareConfig, listed_choices, units_of
from launch.comparing.units import Unit, unit_settings
from launch.stages.settings import Settings
from vlmae.config import compose_config

COMPARED = (
    "experiment=tiny",
    "arm=random,entropy,proxy",
    "seed=1,2",
    "rounds=1",
    "clips.first=40",
    "trainer.epochs=1",
    "compare.protocols=[labels,scoring]",
    "compare.scoring_share=0.4",
    "compare.processes=2",
    "compare.resamples=20",
)


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    done = run_python("-m", "launch.compare", *COMPARED, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "equal labels and equal scoring budget; 56 labels, 2 seeds" in done.stdout
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "tiny_compare" / "compare.json").read_text())


def unit_of(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "runs" / "tiny_compare" / "units" / name / "unit.json").read_text())


@pytest.mark.slow
def test_every_arm_stands_in_both_protocols_with_intervals(compared: Path) -> None:
    summary = summary_of(compared)
    assert list(summary["arms"]) == ["labels", "scoring"]
    for arms in summary["arms"].values():
        assert sorted(arms) == ["entropy", "proxy", "random"]
        for entry in arms.values():
            assert entry["seeds"] == [1, 2]
            assert entry["labels"] == 56
            relevance = entry["cells"]["relevance"]["average_precision"]
            assert relevance["low"] <= relevance["value"] <= relevance["high"]
    assert summary["winners"]["labels"]["arm"] in summary["arms"]["labels"]


@pytest.mark.slow
def test_the_scoring_budget_is_kept(compared: Path) -> None:
    arms = summary_of(compared)["arms"]
    pool = arms["labels"]["entropy"]["scored"]  # clips that can be decoded
    assert 90 <= pool <= 96
    assert arms["labels"]["proxy"]["scored"] == 16  # it chooses alone
    for arm in ("entropy", "proxy"):
        assert arms["scoring"][arm]["scored"] == round(0.4 * pool)
    assert arms["scoring"]["random"]["scored"] == 0


@pytest.mark.slow
def test_every_answer_is_scored_by_the_model_that_asked(compared: Path) -> None:
    for name in ("labels.entropy.1", "scoring.proxy.1", "scoring.random.2"):
        assert [bool(entry["evaluated"]) for entry in unit_of(compared, name)["rounds"]] == [
            False,
            True,
        ]
        first, last = (entry["found"] for entry in unit_of(compared, name)["rounds"])
        assert {task["confident_errors"] for task in first.values()} == {None}
        for task in last.values():
            assert task["scored"] == task["answers"] == 16
            assert 0 <= task["confident_errors"] <= 16


@pytest.mark.slow
def test_a_seed_draws_other_first_labels_and_arms_of_a_seed_share_them(compared: Path) -> None:
    first = {
        name: unit_of(compared, name)["rounds"][0]["trained"]
        for name in ("labels.entropy.1", "scoring.proxy.1", "labels.entropy.2")
    }
    assert first["labels.entropy.1"] == first["scoring.proxy.1"]
    assert first["labels.entropy.1"] != first["labels.entropy.2"]


@pytest.mark.slow
def test_started_again_it_reads_what_is_finished(compared: Path) -> None:
    before = summary_of(compared)
    stages = {path.name for path in (compared / "runs" / "stages").iterdir()}
    again = run_python("-m", "launch.compare", *COMPARED, cwd=compared)
    assert again.returncode == 0, again.stderr
    assert summary_of(compared) == before
    assert {path.name for path in (compared / "runs" / "stages").iterdir()} == stages
    one_process = [one for one in COMPARED if "processes" not in one]
    alone = run_python("-m", "launch.compare", *one_process, "compare.processes=1", cwd=compared)
    assert alone.returncode == 0, alone.stderr
    assert summary_of(compared) == before


@pytest.mark.slow
def test_killed_in_the_middle_it_ends_with_the_same_table(compared: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs" / "tiny_compare" / "units"
    started = subprocess.Popen(
        [sys.executable, "-m", "launch.compare", *COMPARED],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 400
    while not list(runs.glob("*/unit.json")) and started.poll() is None:
        assert time.monotonic() < deadline, "no unit was finished: run the command by hand"
        time.sleep(0.2)
    os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    assert not (tmp_path / "runs" / "tiny_compare" / "compare.json").exists()
    done = run_python("-m", "launch.compare", *COMPARED, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert summary_of(tmp_path) == summary_of(compared)


@pytest.mark.slow
def test_workers_end_with_the_command_that_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COLD, "1")  # nobody else is to end them
    started = subprocess.Popen(
        [sys.executable, "-m", "launch.compare", *COMPARED],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 400
    command = psutil.Process(started.pid)
    while not (tmp_path / "runs" / "tiny_compare" / "units").is_dir() and started.poll() is None:
        assert time.monotonic() < deadline, "no unit was started: run the command by hand"
        time.sleep(0.2)
    workers = command.children(recursive=True)
    assert workers
    started.kill()
    started.wait()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive


def test_lists_of_arms_and_seeds_are_taken_from_the_command_line() -> None:
    choices, others = listed_choices(["experiment=tiny", "arm=random,entropy", "seed=1,2"])
    assert choices == {"arm": ["random", "entropy"], "seed": ["1", "2"]}
    assert others == ["experiment=tiny"]
    every = listed_choices(["arm=all"])[0]["arm"]
    assert {"random", "entropy", "seals", "anchoral", "proxy", "lsb_lt"} <= set(every)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["arm=entrpy"], "arm 'entrpy' is none of .*entropy"),
        (["seed=1,x"], "seed 'x' is not a number"),
        (["seed=1,1"], "seed=1,1 names one twice"),
    ],
)
def test_bad_lists_are_refused(arguments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        listed_choices(arguments)


def test_units_of_a_seed_come_before_the_next_seed() -> None:
    settings = Settings.from_config(compose_config("round", ["experiment=tiny"]))
    config = CompareConfig(["labels", "scoring"], 0.02, 0.7, 2, 100)
    units = units_of({"arm": ["random", "proxy"], "seed": ["3", "4"]}, settings, config)
    assert [unit.seed for unit in units] == [3] * 4 + [4] * 4
    assert len(set(units)) == 8
    default = units_of({}, settings, config)
    assert {unit.arm for unit in default} == {"random", "entropy", "lsb_lt"}
    assert {unit.seed for unit in default} == {0}


def test_a_unit_changes_its_seed_arm_and_scoring_budget_alone() -> None:
    base = Settings.from_config(compose_config("round", ["experiment=avt_policy", "arm=seals"]))
    unit = unit_settings(Unit("scoring", "seals", 7), ["experiment=avt_policy"], 0.02)
    assert unit.train.seed == unit.expand.acquisition.seed == unit.shortlist.seed == 7
    assert (unit.shortlist.method, unit.shortlist.share) == ("seals", 0.02)
    assert unit.data == base.data
    assert unit.expand.selection == base.expand.selection
    assert unit.expand.acquisition.task_weights == {"policy": 1.0, "unsafe": 1.0}


@pytest.mark.parametrize("override", ["acquisition=margin", "shortlist=random", "threshold=none"])
def test_an_override_that_would_make_all_arms_alike_is_one_line(
    override: str, tmp_path: Path
) -> None:
    done = run_python("-m", "launch.compare", "experiment=tiny", override, cwd=tmp_path)
    assert done.returncode != 0
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "runs").exists()
