"""What the whole suite is held to, and what it tells at its end.

`.ci/run` sets VLMAE_MUST_RUN to the path of a file with one test a line (a node id without its
parameters). The session fails if a test named there did not pass, naming it and the reason.

What a test tells by `record_property("table", text)` is printed at the end, and how long each of
the files that took longest was under way.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
from pathlib import Path

import pytest
import warm_python

PASSED: set[str] = set()
SKIPPED: dict[str, str] = {}
TABLES: list[str] = []
SECONDS: dict[str, float] = {}
LONGEST = 15
"""Files that are told."""
FIRST = (
    "cluster/test_chaos_on_slurm.py",
    "distributed/test_resume.py",
    "launch/test_sweep.py",
    "distributed/test_growing.py",
    "cluster/test_sweep_on_slurm.py",
    "launch/test_annotation.py",
    "launch/test_compare.py",
    "launch/test_compare_avt.py",
    "launch/test_label_studio_round.py",
    "cluster/test_slurm_tasks.py",
    "launch/test_compare_by_tasks.py",
    "launch/test_variants.py",
    "launch/test_round.py",
    "cluster/test_train_on_slurm.py",
    "cluster/test_compare_on_slurm.py",
    "cluster/test_doctor_on_slurm.py",
    "distributed/",
    "launch/",
)
"""Files that take long start first, so that none of them is left to one process at the end."""


def bare(node: str) -> str:
    """A node id without parameters and without xdist's group."""
    return node.split("[")[0].split("@")[0]


def pytest_configure(config: pytest.Config) -> None:
    """Where several processes run tests, start commands from an interpreter that is warm."""
    if hasattr(config, "workerinput"):
        sys.executable = os.environ.get(warm_python.VARIABLE, sys.executable)
        multiprocessing.set_executable(sys.executable)
    elif config.getoption("numprocesses", None):
        warm = warm_python.start()
        os.environ[warm_python.VARIABLE] = str(warm.executable)
        config.add_cleanup(warm.stop)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.nodeid.removeprefix("tests/")
        return next((i for i, name in enumerate(FIRST) if file.startswith(name)), len(FIRST))

    items.sort(key=place)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    file = report.nodeid.split("::")[0]
    SECONDS[file] = SECONDS.get(file, 0.0) + report.duration
    if report.when == "teardown":
        TABLES.extend(str(text) for name, text in report.user_properties if name == "table")
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


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for table in TABLES:
        terminalreporter.section("a table")
        terminalreporter.write_line(table)
    if len(SECONDS) > LONGEST:
        terminalreporter.section("files by the seconds that their tests took")
        for file in sorted(SECONDS, key=lambda one: -SECONDS[one])[:LONGEST]:
            terminalreporter.write_line(f"{SECONDS[file]:7.0f}  {file}")
