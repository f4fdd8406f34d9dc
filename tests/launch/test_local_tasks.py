"""Tasks as processes of this machine: the same bytes, retries, cancelling, a killed command."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from counting_stage import LETTERS, counting_stage, times_begun

from launch import cancel, retry, status
from launch.jobs.job import Job

HERE = Path(__file__).parent
FOUR = ("tasks=4", "at_once=2")
OTHERS = dict.fromkeys(LETTERS, 1)


def with_tests() -> str:
    """PYTHONPATH on which tasks find what these tests have made."""
    return os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))


def start(folder: Path, *options: str, cwd: Path | None = None) -> subprocess.Popen[str]:
    """Start a command that has the counting stage made by tasks."""
    return subprocess.Popen(
        [sys.executable, str(HERE / "launched_counting.py"), str(folder), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": with_tests()},
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def until(true: Callable[[], bool], seconds: float = 100) -> None:
    """Wait for something that is bound to happen."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def order(folder: Path, name: str) -> Path:
    (folder / "orders").mkdir(parents=True, exist_ok=True)
    file = folder / "orders" / name
    file.touch()
    return file


def job_of(folder: Path) -> Job:
    return Job.open(next((folder / "run" / "jobs").glob("embed-*")))


def test_tasks_make_the_bytes_of_one_process(tmp_path: Path) -> None:
    code, out, err = ended(start(tmp_path, *FOUR))
    assert code == 0, err
    here = counting_stage(tmp_path / "here" / "stages", tmp_path / "orders")
    assert out.splitlines()[-1] == f"made {here.content} True"
    job = job_of(tmp_path)
    assert job.finished
    for task in job.busy:
        assert job.told("done", task)["shards"] == job.shards_of(task)
    assert times_begun(tmp_path / "orders") == dict.fromkeys(LETTERS, 2)  # there, then here
    code, out, err = ended(start(tmp_path, *FOUR))
    assert (code, out.splitlines()[-1]) == (0, f"made {here.content} False")
    assert len(job.attempts()) == 1


def test_tasks_run_the_code_of_the_launch_not_of_the_working_folder(tmp_path: Path) -> None:
    other = tmp_path / "clone"
    (other / "launch").mkdir(parents=True)
    (other / "launch" / "__init__.py").write_text("raise SystemExit('edited since')")
    code, out, err = ended(start(tmp_path / "run", *FOUR, cwd=other))
    assert code == 0, f"{out}\n{err}"


def test_a_task_that_fails_once_is_started_again_alone(tmp_path: Path) -> None:
    order(tmp_path, "c.fail_once")
    code, out, err = ended(start(tmp_path, *FOUR))
    assert code == 0, err
    assert "RuntimeError: c failed once: again" in out
    job = job_of(tmp_path)
    task = next(task for task in job.busy if "c" in job.shards_of(task))
    assert [attempt.tasks for attempt in job.attempts()] == [tuple(job.busy), (task,)]
    others = [letter for letter in LETTERS if letter not in job.shards_of(task)]
    assert {times_begun(tmp_path / "orders")[letter] for letter in others} == {1}


def test_what_cannot_be_made_is_one_line_and_retry_makes_it_later(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", with_tests())
    bad = order(tmp_path, "c.fail")
    code, _, err = ended(start(tmp_path, *FOUR))
    assert code == 1
    assert len(err.splitlines()) == 1
    for told in (
        "c cannot be decoded",
        "exit code 1",
        "launch.retry",
        str(job_of(tmp_path).folder),
    ):
        assert told in err
    job = job_of(tmp_path)
    task = next(task for task in job.busy if "c" in job.shards_of(task))
    assert job.missing() == [task]  # the others were finished first
    run = str(tmp_path / "run")
    assert status.main([run]) == 0
    page = capsys.readouterr().out
    assert "stopped" in page
    assert f"task {task}: GONE: c cannot be decoded" in page
    assert "launch.retry" in page
    assert retry.main([run]) == 2
    assert "c cannot be decoded" in capsys.readouterr().err
    bad.unlink()
    assert retry.main([run]) == 0
    assert not job.missing()
    code, out, _ = ended(start(tmp_path, *FOUR))
    assert (code, out.splitlines()[-1].split()[0]) == (0, "made")
    assert status.main([run]) == 0
    assert "all that was submitted is done" in capsys.readouterr().out


def test_another_number_of_tasks_is_refused(tmp_path: Path) -> None:
    order(tmp_path, "c.fail")
    assert ended(start(tmp_path, *FOUR, "retries=0"))[0] == 1
    code, _, err = ended(start(tmp_path, "tasks=3"))
    assert code == 1
    assert "was started as 4 tasks, and 3 are asked for" in err
    assert "launcher.tasks=4" in err


def test_a_killed_command_goes_on_and_two_are_refused(tmp_path: Path) -> None:
    hold = order(tmp_path, "c.wait")
    first = start(tmp_path, *FOUR)
    until(lambda: times_begun(tmp_path / "orders")["c"] == 1)
    code, _, err = ended(start(tmp_path, *FOUR))
    assert code == 1
    assert "another command is at work" in err
    first.kill()
    ended(first)
    second = start(tmp_path, *FOUR)
    until(lambda: times_begun(tmp_path / "orders")["c"] == 2)
    hold.unlink()
    code, out, err = ended(second)
    assert code == 0, err
    assert out.splitlines()[-1].startswith("made")


def test_cancelled_tasks_are_not_started_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    order(tmp_path, "c.wait")
    process = start(tmp_path, *FOUR)
    until(lambda: times_begun(tmp_path / "orders")["c"] == 1)
    until(lambda: len(job_of(tmp_path).missing()) == 1)
    run = str(tmp_path / "run")
    assert status.main([run]) == 0
    page = capsys.readouterr().out
    assert "running" in page
    assert "a command is at work on it" in page
    assert cancel.main([run]) == 0
    assert "cancelled" in capsys.readouterr().out
    code, _, err = ended(process)
    assert code == 1
    assert "was cancelled" in err
    assert cancel.main([run]) == 0
    assert "no task is under way" in capsys.readouterr().out


def test_folders_without_jobs_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (status, retry, cancel):
        assert command.main([str(tmp_path)]) == 2
        assert "has no jobs" in capsys.readouterr().err
