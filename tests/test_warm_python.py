"""What stands for the interpreter in this suite behaves as one: `tests/warm_python`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import warm_python

SCRIPT = """
import os, signal, sys, time
print(os.getcwd(), sys.argv[1:], __name__, os.environ["GIVEN"], os.getppid(), flush=True)
print("torch" in sys.modules, "vlmae" in sys.modules, file=sys.stderr, flush=True)
what = sys.argv[1]
if what == "wait":
    signal.signal(signal.SIGUSR2, lambda number, frame: sys.exit(77))
    print("ready", flush=True)
    time.sleep(60)
elif what == "read":
    print(sys.stdin.read(), os.read(int(sys.argv[2]), 10))
elif what == "raise":
    raise ValueError("no good")
else:
    sys.exit(int(what))
"""


@pytest.fixture(scope="module")
def warm() -> Iterator[warm_python.WarmPython]:
    made = warm_python.start()
    until = time.monotonic() + 240
    while len(list(made.folder.glob("*.socket"))) < warm_python.SERVERS:
        assert time.monotonic() < until, "the servers do not start"
        assert all(server.poll() is None for server in made.servers)
        time.sleep(0.1)
    yield made
    made.stop()
    assert not made.folder.exists()


@pytest.fixture
def start(warm: warm_python.WarmPython, tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)

    def started(*arguments: str, **options) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [warm.executable, tmp_path / "script.py", *arguments],
            cwd=tmp_path,
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "GIVEN": "a value",
                warm_python.VARIABLE: str(warm.executable),
                **options.pop("env", {}),
            },
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )

    return started


@pytest.fixture(autouse=True)
def family_of_these(warm: warm_python.WarmPython, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(warm_python.VARIABLE, str(warm.executable))


def worker_of(client: subprocess.Popen[str]) -> psutil.Process:
    assert client.stdout is not None
    while client.stdout.readline().strip() != "ready":
        assert client.poll() is None
    (worker,) = warm_python.family(client.pid)
    return worker


def test_arguments_folder_environment_output_and_exit_are_handed_on(start, tmp_path: Path) -> None:
    process = start("3", "more")
    out, err = process.communicate(timeout=60)
    assert out == f"{tmp_path} ['3', 'more'] __main__ a value {os.getpid()}\n"
    assert err == "True False\n"  # other people's packages are there, ours are not
    assert process.returncode == 3


def test_input_and_other_open_files_are_handed_on(start) -> None:
    reading, writing = os.pipe()
    os.write(writing, b"piped")
    process = start("read", str(reading), stdin=subprocess.PIPE, pass_fds=[reading])
    out, _ = process.communicate("from stdin", timeout=60)
    assert out.splitlines()[-1] == "from stdin b'piped'"
    os.close(reading)
    os.close(writing)


def test_an_exception_is_told_with_code_1(start) -> None:
    process = start("raise")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert err.splitlines()[-1] == "ValueError: no good"


def test_signals_reach_the_process_that_works(start, tmp_path: Path) -> None:
    process = start("wait")
    worker = worker_of(process)
    assert worker.cmdline()[1:3] == [str(tmp_path / "script.py"), "wait"]
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=60)
    assert process.returncode == 77
    process = start("wait")
    worker_of(process)
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGTERM


def test_a_killed_client_takes_the_process_with_it_and_the_other_way_round(start) -> None:
    process = start("wait")
    worker = worker_of(process)
    process.kill()
    process.communicate(timeout=60)
    assert not psutil.wait_procs([worker], timeout=60)[1]
    process = start("wait")
    worker_of(process).kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "PYTHONHASHSEED", "HF_HOME"])
def test_where_imports_would_read_other_variables_it_is_the_ordinary_one(
    start, variable: str
) -> None:
    process = start("0", env={variable: "7"})
    _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "False False\n")


def test_other_people_s_programs_are_the_ordinary_one(warm: warm_python.WarmPython) -> None:
    code = "import sys; print(sys.executable)"
    done = subprocess.run([warm.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == warm_python.REAL


def test_processes_hash_strings_in_two_ways(warm: warm_python.WarmPython, tmp_path: Path) -> None:
    (tmp_path / "hashed.py").write_text("print(hash('a'))")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    found = {
        subprocess.run(
            [warm.executable, tmp_path / "hashed.py"],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for _ in range(20)
    }
    assert len(found) == warm_python.SERVERS


def test_it_is_what_commands_are_started_by_where_tests_run_side_by_side() -> None:
    assert (sys.executable != warm_python.REAL) == ("PYTEST_XDIST_WORKER" in os.environ)
