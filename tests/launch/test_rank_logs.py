"""The logs of ranks as one stream."""

from __future__ import annotations

from pathlib import Path

from launch.jobs.job import RANKS, Job
from launch.jobs.rank_logs import MergedTail


def test_new_whole_lines_of_every_rank_are_said_once(tmp_path: Path) -> None:
    job = Job.create(
        tmp_path / "train-1",
        stage="train",
        kind=RANKS,
        tasks=1,
        shards=["a"],
        target=tmp_path / "stages" / "train-1",
    )
    first = job.new_attempt("local", [0], "code-1")
    job.log(first, 0, 0).write_text("shown by an earlier command\n")
    said: list[str] = []
    tail = MergedTail(job, said.append)
    second = job.new_attempt("local", [0], "code-1")
    one, two = (job.log(second, 0, rank) for rank in (0, 10))
    one.write_text("epoch 1\n\nepo")
    two.write_text("ready\n")
    tail.show()
    tail.show()
    with open(one, "a") as stream:
        stream.write("ch 2\n")
    tail.show()
    assert said == ["[0] epoch 1", "[10] ready", "[0] epoch 2"]
