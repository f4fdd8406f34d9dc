"""A full disk, a read-only folder, no memory: one clear line, and `launch.retry` goes on."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from counting_stage import LETTERS, times_begun

from launch import retry
from launch.jobs.job import Job

pytestmark = pytest.mark.slow

HERE = Path(__file__).parent
KILOBYTES = 1024


@pytest.fixture(autouse=True)
def path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks find what these tests have made."""
    path = [str(HERE), os.environ.get("PYTHONPATH")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small file system, for `stages` of a run to lie on."""
    folder = tmp_path / "stages"
    folder.mkdir()
    options = ["-t", "tmpfs", "-o", f"size={KILOBYTES}k", "none"]
    made = subprocess.run(["mount", *options, folder], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no tmpfs can be mounted here, run as root: {made.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


def count(folder: Path) -> tuple[int, str, str]:
    command = [sys.executable, HERE / "launched_counting.py", folder, "tasks=3", "retries=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    return done.returncode, done.stdout, done.stderr


def fill(disk: Path) -> Callable[[], None]:
    filler = disk / "filler"
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={filler}", "bs=1k", f"count={2 * KILOBYTES}"],
        capture_output=True,
        check=False,
    )
    return filler.unlink


def close(disk: Path) -> Callable[[], None]:
    def remount(mode: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{mode}", disk], check=True)

    remount("ro")
    return lambda: remount("rw")


@pytest.mark.parametrize(
    ("order", "told"),
    [
        ("killed", "killed by signal 9, as it is where memory runs out (launcher.at_once=1 takes"),
        ("memory", "memory ran out: give each task more (++launcher.resources.<stage>.memory_gb="),
    ],
)
def test_memory_that_runs_out_is_told_and_retried(tmp_path: Path, order: str, told: str) -> None:
    orders = tmp_path / "orders"
    orders.mkdir()
    (orders / f"c.{order}").touch()
    code, _, err = count(tmp_path)
    assert code == 1
    assert len(err.splitlines()) == 1, err
    job = Job.open(next((tmp_path / "run" / "jobs").glob("embed-*")))
    (task,) = job.missing()  # all others were finished first
    assert f"task {task} of 3 failed: " in err
    assert told in err
    assert "launch.retry" in err
    assert retry.main([str(tmp_path / "run")]) == 2, "there is no more than before"
    (orders / f"c.{order}").unlink()
    assert retry.main([str(tmp_path / "run")]) == 0
    assert not job.missing()
    code, _, err = count(tmp_path)
    assert code == 0, err
    begun = times_begun(orders)
    assert begun["c"] == 3
    others = [letter for letter in LETTERS if letter not in job.shards_of(task)]
    assert [begun[letter] for letter in others] == [1] * len(others)


@pytest.mark.parametrize(
    ("harm", "told"), [(fill, "No space left on device"), (close, "Read-only file system")]
)
def test_what_a_folder_refuses_is_told_and_retried(
    disk: Path, tmp_path: Path, harm: Callable[[Path], Callable[[], None]], told: str
) -> None:
    (tmp_path / "orders").mkdir()
    bad = tmp_path / "orders" / "c.fail"
    bad.touch()
    assert count(tmp_path)[0] == 1  # all but one letter's task is done
    bad.unlink()
    job = Job.open(next((tmp_path / "run" / "jobs").glob("embed-*")))
    (task,) = job.missing()
    mend = harm(disk)
    code, _, err = count(tmp_path)
    assert code == 1
    assert len(err.splitlines()) == 1, err
    assert told in err
    assert f"task {task} of 3" in err
    assert "launch.retry" in err
    mend()
    assert retry.main([str(tmp_path / "run")]) == 0
    assert not job.missing()
    code, _, err = count(tmp_path)
    assert code == 0, err
    begun = times_begun(tmp_path / "orders")
    others = [letter for letter in LETTERS if letter not in job.shards_of(task)]
    assert [begun[letter] for letter in others] == [1] * len(others)
    assert sorted(file.name for file in next(disk.glob("embed-*")).glob("*.txt")) == [
        f"{letter}.txt" for letter in LETTERS
    ]
