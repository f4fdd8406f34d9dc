"""Workers: a process for each measurement, started alone or several at one time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from benchmarks.search.timed import READY

Told = dict[str, Any]


class WorkerError(Exception):
    """A worker ended with an error; the message is the last line it wrote."""


def environment() -> dict[str, str]:
    """One thread, and kernels for newer processors than the OpenBLAS inside faiss knows."""
    return os.environ | {
        "OPENBLAS_CORETYPE": "SkylakeX",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }


def command(
    method: str, store: Path, seeds: Sequence[int], output: Path, *, clustered: bool
) -> list[str]:
    """The command line of `benchmarks.search.worker`."""
    words = [sys.executable, "-m", "benchmarks.search.worker", "--method", method]
    words += ["--store", str(store), "--output", str(output), "--seeds", *map(str, seeds)]
    return words if clustered else [*words, "--unclustered"]


def alone(words: Sequence[str]) -> list[Told]:
    """Run one worker.

    Returns:
        What it told for each number of seeds.

    Raises:
        WorkerError: it failed.
    """
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    _require_success(done.returncode, done.stderr)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def together(commands: Sequence[Sequence[str]], searches: int) -> list[list[Told]]:
    """Run several workers at a time; every search starts when all are ready for it.

    Args:
        commands: one a worker, with `--together`.
        searches: how many numbers of seeds each searches for.

    Returns:
        For each search, what each worker told.

    Raises:
        WorkerError: one failed.
    """
    workers: list[subprocess.Popen[str]] = []
    with tempfile.TemporaryFile("w+") as errors:
        try:
            for words in commands:
                workers.append(_start(words, errors))  # noqa: PERF401, all started are ended below
            found = []
            for _ in range(searches):
                for worker in workers:
                    _line(worker, READY, errors)
                for worker in workers:
                    assert worker.stdin is not None
                    worker.stdin.write("\n")
                    worker.stdin.flush()
                found.append([json.loads(_line(worker, "{", errors)) for worker in workers])
            for worker in workers:
                _require_success(worker.wait(), _text(errors))
            return found
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()


def _start(words: Sequence[str], errors: IO[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(
        words, env=environment(), stdin=pipe, stdout=pipe, stderr=errors, text=True
    )


def _line(worker: subprocess.Popen[str], start: str, errors: IO[str]) -> str:
    assert worker.stdout is not None
    for line in worker.stdout:
        if line.startswith(start):
            return line
    _require_success(worker.wait() or 1, _text(errors))
    raise AssertionError


def _text(errors: IO[str]) -> str:
    errors.seek(0)
    return errors.read()


def _require_success(code: int, errors: str) -> None:
    if code:
        said = errors.strip().splitlines() or [f"exit code {code}"]
        raise WorkerError(said[-1][:200])
