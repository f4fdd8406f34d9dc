"""Worker processes: imports and environment of the command, and none outlives it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from warm_python import COLD

from lsb.workers import worker_pool

COMMAND = """
import sys

import lsb.store
from lsb.workers import worker_pool
from work import imported, wait

if __name__ == "__main__":
    with worker_pool(1) as pool:
        assert pool.submit(imported, "lsb.store").result(), "a worker imports it anew"
    with worker_pool(2) as pool:
        list(pool.map(wait, sys.argv[1:]))
"""
WORK = """
import os, sys, time
from pathlib import Path

def imported(name):
    return name in sys.modules

def wait(file):
    Path(file).write_text(str(os.getpid()))
    time.sleep(600)
"""


def variable(name: str) -> str | None:
    return os.environ.get(name)


def set_variable(name: str, value: str) -> None:
    os.environ[name] = value


def test_workers_have_the_environment_of_their_pool_not_of_the_first_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("VLMAE_OF_A_POOL", "first")
    with worker_pool(1) as pool:
        assert pool.submit(variable, "VLMAE_OF_A_POOL").result() == "first"
    monkeypatch.setenv("VLMAE_OF_A_POOL", "second")
    with worker_pool(1) as pool:
        assert pool.submit(variable, "VLMAE_OF_A_POOL").result() == "second"
    monkeypatch.delenv("VLMAE_OF_A_POOL")
    with worker_pool(1) as pool:
        assert pool.submit(variable, "VLMAE_OF_A_POOL").result() is None


def test_an_initialiser_is_called_in_the_worker_not_here() -> None:
    with worker_pool(1, set_variable, "VLMAE_OF_A_WORKER", "set") as pool:
        assert pool.submit(variable, "VLMAE_OF_A_WORKER").result() == "set"
    assert "VLMAE_OF_A_WORKER" not in os.environ


def test_workers_of_all_pools_are_forked_from_one_server() -> None:
    parents = set()
    for _ in range(2):
        with worker_pool(1) as pool:
            parents.add(pool.submit(os.getppid).result())
    assert len(parents) == 1
    assert os.getpid() not in parents


def test_workers_have_the_imports_of_their_command_and_do_not_outlive_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(COLD, "1")  # nobody else is to end them
    (tmp_path / "command.py").write_text(COMMAND)
    (tmp_path / "work.py").write_text(WORK)
    files = [tmp_path / "a", tmp_path / "b"]
    command = subprocess.Popen([sys.executable, "command.py", *map(str, files)], cwd=tmp_path)
    deadline = time.monotonic() + 120
    while not all(file.exists() and file.read_text() for file in files):
        assert command.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    started = psutil.Process(command.pid).children(recursive=True)
    assert {int(file.read_text()) for file in files} <= {one.pid for one in started}
    command.kill()
    command.wait()
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive
