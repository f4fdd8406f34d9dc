"""Tasks as jobs of a real SLURM: arrays, chains, and what goes wrong on a cluster."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from slurm_cluster import LARGEST_ARRAY, TESTS_OF_LAUNCH, Cluster, until

from launch.jobs.job import Job
from lsb.artifact import share_of

pytestmark = pytest.mark.slow

LETTERS = "abcdefgh"
COMMAND = TESTS_OF_LAUNCH / "launched_counting.py"
OPTIONS = (
    "launcher=slurm",
    "poll_seconds=0.3",
    "signal_seconds=10",
    "resources={default: {cpus: 1, memory_gb: 0.5}}",
)
THREE = ("tasks=3", *OPTIONS)


class Counting:
    """The counting stage of one folder, made by jobs of a cluster."""

    def __init__(self, cluster: Cluster, folder: Path) -> None:
        self.cluster, self.folder, self.orders = cluster, folder, folder / "orders"
        self.orders.mkdir()

    def start(self, *options: str) -> subprocess.Popen[str]:
        return self.cluster.start(sys.executable, COMMAND, self.folder, *options, cwd=self.folder)

    def run(self, *options: str) -> tuple[int, str, str]:
        return self.cluster.python(COMMAND, self.folder, *options, cwd=self.folder)

    def order(self, name: str) -> Path:
        (self.orders / name).touch()
        return self.orders / name

    def begun(self, letter: str) -> list[str]:
        """Nodes on which a letter was begun, in order."""
        file = self.orders / f"{letter}.begun"
        return [line.split()[1] for line in file.read_text().splitlines()] if file.exists() else []

    @property
    def job(self) -> Job:
        return Job.open(next((self.folder / "run" / "jobs").glob("embed-*")))

    def running(self, letter: str) -> str:
        """SLURM's id of the task that has a letter, once it waits there."""
        until(lambda: self.begun(letter), f"{letter} begins")
        task = share_of(letter, self.job.tasks)
        attempt = next(a for a in reversed(self.job.attempts()) if task in a.tasks)
        return f"{attempt.id}_{task - attempt.offset}"


@pytest.fixture
def counting(cluster: Cluster, tmp_path: Path) -> Counting:
    return Counting(cluster, tmp_path)


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=280)
    return process.returncode, out, err


def test_arrays_are_no_longer_than_the_cluster_allows(counting: Counting, tmp_path: Path) -> None:
    large = (*OPTIONS, "resources={default: {cpus: 4, memory_gb: 0.5}}")
    code, out, err = counting.run("tasks=8", *large)
    assert code == 0, err
    job = counting.job
    attempts = job.attempts()
    assert {attempt.offset for attempt in attempts} == {0, LARGEST_ARRAY}
    assert sorted(task for attempt in attempts for task in attempt.tasks) == job.busy
    assert len({node for letter in LETTERS for node in counting.begun(letter)}) > 1
    for task in job.busy:
        assert job.told("done", task)["shards"] == job.shards_of(task)
    local = tmp_path / "local"
    local.mkdir()
    code, there, err = counting.cluster.python(COMMAND, local, cwd=tmp_path)
    assert code == 0, err
    assert out.splitlines()[-1] == there.splitlines()[-1]  # the same content
    code, again, _ = counting.run("tasks=8", *large)
    assert (code, again.split()[2]) == (0, "False")
    assert job.attempts() == attempts


def test_a_chain_waits_and_its_ranks_find_each_other(cluster: Cluster, tmp_path: Path) -> None:
    code, out, err = cluster.python(
        Path(__file__).parent / "submit_chain.py", tmp_path, cwd=Path(__file__).parent
    )
    assert code == 0, err
    array, ranks = out.split()
    told = tmp_path / "stages" / "train-1" / "sum"
    until(told.exists, f"jobs {array} and {ranks} end", 100)
    assert told.read_text() == "32 letters, 4 ranks"
    job = Job.open(tmp_path / "jobs" / "train-1")
    until(lambda: job.told("done", 0), "its manifest is written")
    logs = sorted(path.name for path in (job.folder / "logs").glob("*rank*"))
    assert logs == [f"001-0-rank-{rank}.log" for rank in range(4)]
    assert cluster.fields(ranks, "NumNodes", "NumTasks") == ["2", "4"]


def test_a_killed_command_finds_its_jobs(counting: Counting) -> None:
    hold = counting.order("c.wait")
    first = counting.start(*THREE)
    counting.running("c")
    counting.cluster.kill(str(COMMAND))
    ended(first)
    second = counting.start(*THREE)
    assert second.stdout is not None
    line = second.stdout.readline()
    assert "running" in line
    hold.unlink()
    code, _, err = ended(second)
    assert code == 0, err
    assert {letter: len(counting.begun(letter)) for letter in LETTERS} == dict.fromkeys(LETTERS, 1)


def test_what_fails_is_told_in_one_line_and_retry_works(counting: Counting) -> None:
    bad = counting.order("c.fail")
    run = counting.folder / "run"
    code, _, err = counting.run(*THREE)
    assert code == 1
    assert len(err.splitlines()) == 1
    for told in ("FAILED", "c cannot be decoded", "launch.retry"):
        assert told in err
    assert len(counting.job.missing()) == 1
    code, page, _ = counting.cluster.python("-m", "launch.status", run, cwd=counting.folder)
    assert code == 0
    assert "stopped" in page
    assert "c cannot be decoded" in page
    bad.unlink()
    code, out, err = counting.cluster.python("-m", "launch.retry", run, cwd=counting.folder)
    assert code == 0, err
    assert "submitted as" in out
    until(lambda: not counting.job.missing(), "the task is done")
    code, out, err = counting.run(*THREE)
    assert code == 0, err
    assert len(counting.begun("a")) == 1


def test_a_cancelled_job_is_not_started_again(counting: Counting) -> None:
    counting.order("c.wait")
    process = counting.start(*THREE)
    counting.running("c")
    until(lambda: len(counting.job.missing()) == 1, "the others are done")
    code, out, err = counting.cluster.python(
        "-m", "launch.cancel", counting.folder / "run", cwd=counting.folder
    )
    assert code == 0, err
    assert "cancelled" in out
    code, _, err = ended(process)
    assert code == 1
    assert "was cancelled" in err


def test_a_task_that_is_told_to_stop_goes_back_into_the_queue_alone(counting: Counting) -> None:
    letters = list({share_of(letter, 3): letter for letter in LETTERS}.values())  # one of each task
    holds = [counting.order(f"{letter}.wait") for letter in letters]
    process = counting.start(*THREE)
    ids = {letter: counting.running(letter) for letter in letters}
    fields = counting.cluster.fields
    # The task that has the array's own id, by which SLURM means all of them.
    told = next(one for one in letters if len(set(fields(ids[one], "JobId", "ArrayJobId"))) == 1)
    counting.cluster.run("scancel", "--batch", "--signal=USR2", ids[told], cwd=counting.folder)
    until(lambda: fields(ids[told], "Restarts") == ["1"], "it is requeued")
    for hold in holds:
        hold.unlink()
    code, out, err = ended(process)
    assert code == 0, err
    for letter in letters:
        restarts = int(letter == told)
        assert fields(ids[letter], "Restarts") == [str(restarts)]
        assert len(counting.begun(letter)) == 1 + restarts
    assert len(counting.job.attempts()) == 1  # the same job, and no failure
    assert "again" not in out


def test_a_task_that_hangs_is_stopped_and_started_again(counting: Counting) -> None:
    counting.order("c.hang_once")
    code, out, err = counting.run(*THREE, "hang_minutes=0.5", "retries=3")
    assert code == 0, err
    node = counting.begun("c")[0]
    assert any(
        "has made no progress for" in line and f"on {node}, " in line and line.endswith(": stopped")
        for line in out.splitlines()
    )
    assert len(counting.begun("c")) > 1
    assert "cancelled" not in out


def test_a_lost_node_loses_nothing(counting: Counting) -> None:
    hold = counting.order("c.wait")
    process = counting.start(*THREE)
    counting.running("c")
    node = counting.begun("c")[0]
    try:
        counting.cluster.cut(node)
        until(lambda: len(counting.begun("c")) == 2, "it runs on another node", 200)
        hold.unlink()
        code, _, err = ended(process)
    finally:
        counting.cluster.up()
    assert code == 0, err
    assert counting.begun("c")[1] != node
    assert len(counting.job.attempts()) == 1
    assert counting.job.finished
