"""What a sweep goes over, by which metric, and its table; no training."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from launch import sweep
from launch.jobs.executor import ENDED, PENDING, RUNNING, TaskState
from launch.jobs.job import TRAININGS, Job
from launch.sweeping.config import SweepConfig
from launch.sweeping.metric import SweepMetric
from launch.sweeping.space import read_space
from launch.sweeping.table import Outcome, SweepRecord, sweep_page
from lsb.console import console
from vlmae.metrics import average_precision, calibration_error


def test_points_come_in_hydras_order() -> None:
    space = read_space(
        ["trainer.epochs=3", "fusion=late,film", "~logger", "+trainer.x=range(2)", "labels='a b'"]
    )
    points = [space.point(choice) for choice in space.grid()]
    assert [(point[1], point[3]) for point in points] == [
        ("fusion=late", "+trainer.x=0"),
        ("fusion=late", "+trainer.x=1"),
        ("fusion=film", "+trainer.x=0"),
        ("fusion=film", "+trainer.x=1"),
    ]
    assert points[0][0::2] == ["trainer.epochs=3", "~logger", "labels='a b'"]  # as they were
    assert space.first == points[0]


def test_the_whole_grammar() -> None:
    space = read_space(
        [
            "fusion=glob(*,exclude=[d*,c*])",
            "a=1,null,true",
            "b=sort(3,1,2)",
            "c={x:1},{x:2}",
            "d='p q',r",
            "e=range(0.5,2)",
            "f=tag(log,interval(1e-4,1e-2))",
            "g=int(interval(2,8))",
        ]
    )
    assert [one.values for one in space.swept] == [
        ("bottleneck", "film", "gated", "late", "self_attention"),
        ("1", "null", "True"),
        ("1", "2", "3"),
        ("{x:1}", "{x:2}"),
        ("'p q'", "r"),
        ("0.5", "1.5"),
        (),
        (),
    ]
    log, whole = space.swept[-2:]
    assert (log.low, log.high, log.log, log.integer) == (1e-4, 1e-2, True, False)
    assert (whole.low, whole.high, whole.log, whole.integer) == (2, 8, False, True)
    with pytest.raises(ValueError, match=r"f is an interval.*sampler=optuna"):
        next(space.grid())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["trainer.epochs=3"], "nothing is swept over.*launch.train"),
        (["name=a,b"], "name=a,b: name is one for all points"),
        (["launcher.ranks=1,2"], "launcher.ranks is one for all points"),
        (["fusion=late,film", "fusion=late"], "fusion is given more than once"),
        (["fusion=late,late"], "gives late more than once"),
        (["fusion=glob(z*)"], "gives no value"),
        (["fusion=shuffle(late,film)"], "leave shuffle out"),
        (["a=tag(exp,interval(1,2))"], "has the tag 'exp': use log"),
        (["a=tag(log,interval(0,2))"], "above 0"),
        (["a=interval(2,1)"], "in order"),
    ],
)
def test_what_makes_no_sweep_is_refused(arguments: list[str], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        read_space(arguments)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"sweep.direction is 'up': use maximize or minimize"):
        SweepConfig(direction="up")
    with pytest.raises(ValueError, match=r"sweep.trials is 0: give at least 1"):
        SweepConfig(trials=0)
    assert list(SweepConfig(trials=3, seed=1).without_effect) == ["sweep.trials", "sweep.seed"]
    assert list(SweepConfig(sampler="optuna", trials=3).without_effect) == []
    for name in ("val/loss", "ap", "val/recall_at_p", "val/recall_at_p0", "val/recall_at_p101"):
        with pytest.raises(ValueError, match="use val/ap"):
            SweepMetric.parse(name)
    with pytest.raises(ValueError, match="the tasks are a, b"):
        SweepMetric.parse("val/ap/c").require_known(["a", "b"])


def write_predictions(stage: Path, shift: float) -> None:
    stage.mkdir(parents=True)
    scores = np.array([0.9, 0.8, 0.3, 0.1], np.float32)
    table = {
        "label_a": pa.array([1, 0, 1, None], pa.int8()),
        "label_b": pa.array([0, 0, 0, 0], pa.int8()),
        "probability_a": np.roll(scores, round(shift)),
        "probability_b": scores,
    }
    pq.write_table(pa.table(table), stage / "validation.parquet")


def test_metrics_are_those_of_the_validation_clips(tmp_path: Path) -> None:
    write_predictions(tmp_path / "s", 0)
    scores, truth = np.array([0.9, 0.8, 0.3], np.float32), np.array([True, False, True])
    ap = average_precision(scores.astype(float), truth)
    assert SweepMetric.parse("val/ap").of(tmp_path / "s") == ap  # b has no positive
    assert SweepMetric.parse("val/ap/a").of(tmp_path / "s") == ap
    assert SweepMetric.parse("val/ap/b").of(tmp_path / "s") is None
    assert SweepMetric.parse("val/recall_at_p100/a").of(tmp_path / "s") == 0.5
    assert SweepMetric.parse("val/recall_at_p60/a").of(tmp_path / "s") == 1.0
    found = SweepMetric.parse("val/calibration_error/a").of(tmp_path / "s")
    assert found == calibration_error(scores.astype(float), truth)


def test_the_table_tells_how_every_point_stands(tmp_path: Path) -> None:
    stages = tmp_path / "stages"
    names = [f"train-{letter}" for letter in "abcdef"]
    write_predictions(stages / names[0], 1)
    write_predictions(stages / names[1], 0)
    job = Job.create(
        tmp_path / "jobs" / "sweep-1",
        stage="train",
        kind=TRAININGS,
        tasks=6,
        shards=names,
        target=stages,
    )
    assert (job.busy, job.missing(), job.shards_of(4)) == (
        list(range(6)),
        [2, 3, 4, 5],
        ["train-e"],
    )
    job.new_attempt("local", [2, 3, 4], "code-1")
    job.fail(4, {"attempt": 1, "line": "it cannot be"})
    states = {2: TaskState(RUNNING), 3: TaskState(PENDING), 4: TaskState(ENDED, "exit code 1")}
    points = [Outcome(n, {"fusion": name[-1]}, name) for n, name in enumerate(names)]
    record = SweepRecord("val/ap", "maximize", "grid", points).looked_at(stages, [(job, states)])
    assert [one.state for one in record.points] == [
        "finished",
        "finished",
        "running",
        "waiting",
        "failed",
        "waiting",
    ]
    assert record.points[4].error == "exit code 1: it cannot be"
    assert record.best is not None
    assert record.best.number == 1
    least = SweepRecord("val/ap", "minimize", "grid", record.points)
    assert least.best is not None
    assert least.best.number == 0
    record.write(tmp_path)
    assert SweepRecord.read(tmp_path) == record
    out = console()
    with out.capture() as told:
        out.print(sweep_page(record), soft_wrap=True)
    page = told.get()
    assert "point 4: exit code 1: it cannot be" in page
    assert "6 points: 2 finished, 1 running, 2 waiting, 1 failed; best: point 1, fusion=b" in page
    (tmp_path / "sweep.json").write_text('{"format": "vlmae-sweep", "version": 9}')
    with pytest.raises(ValueError, match="version 9, this release reads"):
        SweepRecord.read(tmp_path)


def test_a_dry_run_prints_the_points_and_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "_GIVEN", [])
    given = ["fusion=late,film", "model.dropout=0.1,0.2", "launcher=slurm", "--dry-run", "-m"]
    monkeypatch.setattr(sys, "argv", ["sweep", *given])
    sweep.main()
    told = capsys.readouterr().out
    assert "4 points: 0 finished, 0 running, 4 waiting, 0 failed" in told
    assert "#SBATCH --job-name=sweep-<hash>" in told
    assert "#SBATCH --array=0-3" in told
    assert "--task $((SLURM_ARRAY_TASK_ID)) &" in told
    assert not list(tmp_path.iterdir())
