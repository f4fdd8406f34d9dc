"""Rendered batch scripts: as they are in golden/, and clean by shellcheck.

After a wanted change: VLMAE_GOLDEN=write pytest tests/launch/test_slurm_scripts.py, then look at
the difference.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from launch import retry
from launch.jobs.executor import JobUntriedError
from launch.jobs.job import RANKS, SHARDS, Job
from launch.jobs.launch_record import Asked, record_launch
from launch.jobs.launcher_config import SlurmConfig
from launch.slurm import SlurmExecutor, render_script
from launch.slurm.commands import run_slurm
from launch.slurm.script import array_of

GOLDEN = Path(__file__).parent / "golden"
FOLDER = Path("/data/my runs/demo/jobs")

CASES: dict[str, dict[str, Any]] = {
    "array.sh": {
        "config": {"resources": {"default": {"time": "04:00:00", "cpus": 2, "memory_gb": 8}}},
        "script": {"stage": "embed", "kind": "shards", "tasks": [0, 1, 2, 3, 5]},
    },
    "array_second_block.sh": {
        "config": {"at_once": 4, "requeues": 0},
        "script": {
            "stage": "cache",
            "kind": "shards",
            "tasks": [1000, 1001, 1004],
            "offset": 1000,
            "attempt": 2,
            "after": ["17", "18"],
        },
    },
    "trainings.sh": {
        "config": {
            "at_once": 4,
            "ranks": 1,
            "resources": {
                "default": {"time": "04:00:00", "cpus": 2, "memory_gb": 8},
                "train": {"cpus": 4, "gpus": 1},
            },
        },
        "script": {"stage": "train", "kind": "trainings", "tasks": range(8)},
    },
    "ranks.sh": {
        "config": {
            "nodes": 2,
            "ranks": 4,
            "modules": ("cuda/12.8", "gcc"),
            "setup": ("export NCCL_SOCKET_IFNAME=ib0",),
            "container": "apptainer exec --nv /images/vlmae.sif",
            "options": ("--mail-type=FAIL", '--comment="night run"'),
            "signal_seconds": 300,
            "resources": {
                "default": {"partition": "gpu", "account": "lab", "qos": "high"},
                "train": {
                    "constraint": "h100&ib",
                    "time": "1-00:00:00",
                    "cpus": 8,
                    "memory_gb": 64.5,
                    "gpus": 1,
                    "gpu_type": "h100",
                },
            },
        },
        "script": {"stage": "train", "kind": "ranks", "tasks": [0]},
    },
    "nodes.sh": {
        "config": {
            "nodes": 2,
            "options": ("--nodelist=node1,node2", "--no-requeue"),
            "resources": {"train": {"cpus": 1, "memory_gb": 2, "time": "4", "gpus": 8}},
        },
        "script": {"stage": "train", "kind": "nodes", "tasks": [0]},
    },
}


def rendered(case: str) -> str:
    given = CASES[case]
    config = SlurmConfig(name="slurm", tasks=8, python="/opt/my env/bin/python", **given["config"])
    stage = given["script"]["stage"]
    options: dict[str, Any] = {
        "name": f"{stage}-3f2a.0b1c2d3e.001",
        "folder": FOLDER / f"{stage}-3f2a",
        "code": FOLDER / "code-77aa",
        "cwd": FOLDER.parent.parent.parent,
        "attempt": 1,
    }
    return render_script(config, **{**options, **given["script"]})


@pytest.mark.parametrize("case", CASES)
def test_scripts_are_those_in_golden(case: str) -> None:
    file = GOLDEN / case
    if os.environ.get("VLMAE_GOLDEN") == "write":
        file.write_text(rendered(case))
    assert rendered(case) == file.read_text(), "see the head of this file"


@pytest.mark.parametrize("case", CASES)
def test_scripts_are_clean(case: str, tmp_path: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    file = tmp_path / case
    file.write_text(rendered(case))
    done = subprocess.run([shellcheck, file], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_scripts_of_the_cluster_of_tests_are_clean() -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("no shellcheck: apt-get install shellcheck")
    folder = GOLDEN.parent.parent / "cluster" / "slurm"
    files = sorted(folder.glob("*.sh"))
    assert files
    command = [shellcheck, "-x", *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_a_path_that_slurm_would_expand_is_refused() -> None:
    config = SlurmConfig(name="slurm")
    with pytest.raises(ValueError, match=r"/runs/50%/x has a character.*another folder"):
        render_script(
            config,
            name="n",
            stage="embed",
            kind="shards",
            folder=Path("/runs/50%/x"),
            code=Path("/c"),
            cwd=Path("/"),
            attempt=1,
            tasks=[0],
        )


def test_numbers_are_written_as_ranges() -> None:
    assert array_of([5, 0, 1, 2, 7, 8]) == "0-2,5,7-8"
    assert array_of([3]) == "3"


def test_a_script_passes_signals_on_and_requeues_only_who_was_stopped(tmp_path: Path) -> None:
    """The script itself is run, with a task and a scontrol that write down what happens.

    The controller answers at the second time.
    """
    python = tmp_path / "python"
    python.write_text(
        '#!/bin/bash\ntrap \'echo told >>"$SEEN"; exit "$CODE"\' USR2\n'
        'echo ready >>"$SEEN"\n[ "$CODE" = 0 ] && exit 0\nwhile :; do sleep 0.05; done\n'
    )
    scontrol = tmp_path / "scontrol"
    scontrol.write_text('#!/bin/bash\necho "$@" >>"$SEEN"\n[ "$(grep -c requeue "$SEEN")" = 2 ]\n')
    sleep = tmp_path / "sleep"
    sleep.write_text("#!/bin/bash\n")
    for file in (python, scontrol, sleep):
        file.chmod(0o755)
    config = SlurmConfig(name="slurm", python=str(python), requeues=1)
    script = tmp_path / "script.sh"
    script.write_text(
        render_script(
            config,
            name="n",
            stage="embed",
            kind="shards",
            folder=tmp_path,
            code=tmp_path,
            cwd=tmp_path,
            attempt=1,
            tasks=[0],
        )
    )

    def run(code: int, restarts: int, signal: bool) -> tuple[int, list[str]]:
        seen = tmp_path / "seen"
        seen.write_text("")
        environment = {
            **os.environ,
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "SEEN": str(seen),
            "CODE": str(code),
            "SLURM_ARRAY_JOB_ID": "9",
            "SLURM_ARRAY_TASK_ID": "0",
            "SLURM_JOB_ID": "9",  # as the array's: "requeue 9" would be of all its tasks
            "SLURM_RESTART_COUNT": str(restarts),
        }
        process = subprocess.Popen(["bash", str(script)], env=environment)
        try:
            deadline = time.monotonic() + 60
            while signal and "ready" not in seen.read_text() and time.monotonic() < deadline:
                time.sleep(0.01)
            if signal:
                process.send_signal(12)
            return process.wait(timeout=60), seen.read_text().splitlines()
        finally:
            process.kill()

    assert run(0, 0, signal=False) == (0, ["ready"])
    assert run(75, 0, signal=True) == (75, ["ready", "told", "requeue 9_0", "requeue 9_0"])
    assert run(75, 1, signal=True) == (75, ["ready", "told"])
    assert run(3, 0, signal=True) == (3, ["ready", "told"])


def test_variables_of_the_job_around_are_not_handed_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\nenv\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    for name in ("SLURM_CPU_BIND", "SLURM_MEM_PER_CPU", "SRUN_CPUS_PER_TASK", "SLURM_CONF"):
        monkeypatch.setenv(name, "x")
    told = run_slurm("sbatch").stdout.splitlines()
    assert "SLURM_CPU_BIND=x" in told  # of the user, for the job's own srun
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    told = run_slurm("sbatch").stdout.splitlines()
    assert [line for line in told if line.startswith(("SLURM_", "SRUN_"))] == ["SLURM_CONF=x"]


def test_a_refused_job_says_nothing_about_its_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sbatch = tmp_path / "sbatch"
    sbatch.write_text("#!/bin/sh\necho 'QOSMaxSubmitJobPerUserLimit' >&2\nexit 1\n")
    sbatch.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    target = tmp_path / "train-1"
    job = Job.create(
        tmp_path / "jobs" / "a", stage="train", kind=RANKS, tasks=1, shards=["a"], target=target
    )
    with pytest.raises(JobUntriedError, match=r"sbatch refused .*QOSMaxSubmitJobPerUserLimit"):
        SlurmExecutor(SlurmConfig(name="slurm")).submit(job, [0], "code-1")


def test_a_controller_that_is_down_is_told_in_its_own_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "slurm_load_jobs error: Unable to contact slurm controller"
    squeue = tmp_path / "squeue"
    squeue.write_text(f"#!/bin/sh\necho '{words}' >&2\nexit 1\n")
    squeue.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    folder = tmp_path / "jobs" / "embed-1"
    job = Job.create(
        folder, stage="embed", kind=SHARDS, tasks=1, shards=["a"], target=tmp_path / "embed-1"
    )
    executor = SlurmExecutor(SlurmConfig(name="slurm"))
    attempt = job.new_attempt("slurm", [0], "code-1")
    assert executor.states(job, [attempt]) is None
    assert executor.trouble == words
    squeue.write_text(f"#!/bin/sh\necho '{attempt.name}|7|0|RUNNING|node1'\n")
    assert executor.states(job, [attempt]) is not None
    assert executor.trouble == ""


@pytest.fixture
def held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    """A job of two tasks, of which a cluster holds the second; what is asked goes to `asked`."""
    jobs = tmp_path / "run" / "jobs"
    record_launch(jobs, "code-1", Asked({"launcher": {"name": "slurm"}}))
    job = Job.create(
        jobs / "embed-1",
        stage="embed",
        kind=SHARDS,
        tasks=2,
        shards=["a"],
        target=tmp_path / "embed-1",
    )
    attempt = job.new_attempt("slurm", [0, 1], "code-1")
    queue = {
        "squeue": f"echo '{attempt.name}|7|1|PENDING|(launch failed requeued held)'\n"
        f"echo '{attempt.name}|7|0|PENDING|(Resources)'",
        "scontrol": f'echo "$@" >> {tmp_path}/asked',
    }
    for name, script in queue.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{script}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return job


def test_a_job_that_could_not_be_launched_is_told_as_held_and_released_when_asked(
    tmp_path: Path, held: Job
) -> None:
    executor = SlurmExecutor(SlurmConfig(name="slurm"))
    states = executor.states(held, held.attempts())
    assert states is not None
    assert {one.state for one in states.values()} == {"pending"}
    assert {task: one.held for task, one in states.items()} == {0: False, 1: True}
    assert not (tmp_path / "asked").exists()  # looking changes nothing
    executor.release(states[1])
    assert (tmp_path / "asked").read_text() == "release 7_1\n"


def test_retry_releases_what_is_held_and_submits_nothing_twice(
    tmp_path: Path, held: Job, capsys: pytest.CaptureFixture[str]
) -> None:
    assert retry.main([str(tmp_path / "run")]) == 0
    assert "embed-1: task 1 is held, launch failed requeued held: released" in " ".join(
        capsys.readouterr().out.split()
    )
    assert (tmp_path / "asked").read_text() == "release 7_1\n"
    assert len(held.attempts()) == 1
