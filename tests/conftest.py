"""The list of tests that may not be skipped where the whole suite is expected to run.

`.ci/run` sets VLMAE_MUST_RUN to the path of a file with one test a line (a node id without its
parameters). The session fails if a test named there did not pass, naming it and the reason.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

PASSED: set[str] = set()
SKIPPED: dict[str, str] = {}


def bare(node: str) -> str:
    """A node id without parameters and without xdist's group."""
    return node.split("[")[0].split("@")[0]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        PASSED.add(bare(report.nodeid))
    if report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        SKIPPED[bare(report.nodeid)] = reason


def not_run(listed: list[str], passed: set[str], skipped: dict[str, str]) -> list[str]:
    """Lines that say which listed tests did not pass, and why."""
    return [
        f"{name}: {skipped.get(name, 'failed, or no such test')}"
        for name in listed
        if name not in passed or name in skipped
    ]


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    path = os.environ.get("VLMAE_MUST_RUN")
    if not path or hasattr(session.config, "workerinput"):
        return
    lines = Path(path).read_text().splitlines()
    listed = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    missed = not_run(listed, PASSED, SKIPPED)
    if missed:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        print("\ntests of", path, "that must run and did not pass:", *missed, sep="\n  ")
