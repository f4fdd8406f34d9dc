"""The folder of a job: written once, refused under another count, no proof of whole shards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from counting_stage import LETTERS, counting_stage

from launch.jobs.job import COME_AGAIN, RANKS, SHARDS, Job, last_line
from lsb.artifact import share_of, stage_directory, work_on_stage, write_json
from lsb.delegation import StageCall, delegated


def job_of(folder: Path, target: Path, tasks: int = 3, shards: str = LETTERS) -> Job:
    return Job.create(
        folder / target.name,
        stage="embed",
        kind=SHARDS,
        tasks=tasks,
        shards=list(shards),
        target=target,
    )


def call_of(tmp_path: Path) -> StageCall:
    calls: list[StageCall] = []

    def take(call: StageCall) -> bool:
        calls.append(call)
        raise InterruptedError

    with delegated(take), pytest.raises(InterruptedError):
        counting_stage(tmp_path / "stages", tmp_path / "orders")
    return calls[0]


def make_share(call: StageCall, number: int, of: int) -> None:
    work_on_stage(
        call.root,
        call.stage,
        config=call.config,
        inputs=call.inputs,
        parts=call.parts,
        share=(number, of),
    )


def test_run_json_is_written_once(tmp_path: Path) -> None:
    target = tmp_path / "stages" / "embed-1"
    first = job_of(tmp_path, target)
    record = (first.folder / "run.json").read_bytes()
    again = job_of(tmp_path, target)
    assert again == first
    assert (first.folder / "run.json").read_bytes() == record
    assert sorted(path.name for path in first.folder.glob(".run.json*")) == []


def test_another_count_is_refused_with_the_remedy(tmp_path: Path) -> None:
    target = tmp_path / "stages" / "embed-1"
    job_of(tmp_path, target)
    with pytest.raises(ValueError, match=r"3 tasks, and 4 are asked.*launcher\.tasks=3.*cancel"):
        job_of(tmp_path, target, tasks=4)


def test_other_shards_are_refused(tmp_path: Path) -> None:
    target = tmp_path / "stages" / "embed-1"
    job_of(tmp_path, target)
    with pytest.raises(ValueError, match="of other shards"):
        job_of(tmp_path, target, shards="abc")


def test_another_version_is_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path / "stages" / "embed-1")
    file = job.folder / "run.json"
    write_json(file, {**json.loads(file.read_text()), "version": 2})
    with pytest.raises(ValueError, match="version 2, this release reads 1"):
        Job.open(job.folder)
    with pytest.raises(ValueError, match="holds no job"):
        Job.open(tmp_path)


def test_shards_belong_to_tasks_by_their_hash(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path / "stages" / "embed-1", tasks=16)
    assert job.busy == sorted({share_of(letter, 16) for letter in LETTERS})
    assert len(job.busy) < 16  # some have none, and are not submitted
    assert sorted(s for task in job.busy for s in job.shards_of(task)) == list(LETTERS)
    assert job.missing() == job.busy


def test_missing_are_tasks_whose_shards_are_not_whole(tmp_path: Path) -> None:
    call = call_of(tmp_path)
    job = job_of(tmp_path / "jobs", call.target)
    done = job.busy[0]
    make_share(call, done, 3)
    assert job.missing() == [task for task in job.busy if task != done]
    assert job.recorded() == set(job.shards_of(done))
    # A manifest is not believed where the shards are gone.
    job.complete(done, {})
    record = call.target.with_name(call.target.name + ".partial") / "parts"
    (record / f"{job.shards_of(done)[0]}.json").unlink()
    assert job.missing() == job.busy
    for task in range(3):
        make_share(call, task, 3)
    assert job.finished
    assert job.missing() == []
    assert job.recorded() == set(LETTERS)


def test_attempts_are_known_before_they_have_an_id(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path / "stages" / "embed-1")
    first = job.new_attempt("slurm", [0, 2], "code-1")
    second = job.submitted(job.new_attempt("slurm", [1], "code-1", offset=1), "77")
    assert first.name != second.name
    assert job.attempts() == [first, second]
    assert job.attempts()[1].id == "77"
    assert job.log(second, 1).name == "002-0.log"


def test_names_of_attempts_are_unique_to_a_folder(tmp_path: Path) -> None:
    one, two = (job_of(tmp_path / run, Path("/x/stages/embed-1")) for run in ("a", "b"))
    assert one.new_attempt("slurm", [0], "c").name != two.new_attempt("slurm", [0], "c").name


def test_why_prefers_what_the_task_said(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path / "stages" / "embed-1")
    attempt = job.new_attempt("slurm", [0], "code-1")
    assert job.why(0) == ""
    job.log(attempt, 0).write_text("reading\nslurmstepd: error: Detected 1 oom_kill event\n\n")
    assert job.why(0) == "slurmstepd: error: Detected 1 oom_kill event"
    job.fail(0, {"attempt": 1, "line": "no space left"})
    assert job.why(0) == "no space left"
    job.new_attempt("slurm", [0], "code-1")
    assert job.why(0) == ""  # the next attempt has not said anything
    job.complete(0, {})
    assert not job.told("failed", 0)


def test_of_several_ranks_the_first_says_why(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path / "stages" / "embed-1")
    job.new_attempt("slurm", [0], "code-1")
    job.fail(0, {"attempt": 1, "start": 0, "line": "Connection closed by peer [127.0.0.1]"})
    job.fail(0, {"attempt": 1, "start": 0, "line": "CUDA out of memory"})
    job.fail(0, {"attempt": 1, "start": 0, "line": "Connection reset by peer"})
    job.fail(0, {"attempt": 1, "start": 0, "line": "KeyError: 'x'"})
    assert job.why(0) == "CUDA out of memory"
    job.fail(0, {"attempt": 1, "start": 1, "line": "after SLURM had requeued it"})
    assert job.why(0) == "after SLURM had requeued it"


def test_a_task_works_in_the_folder_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(tmp_path, tmp_path / "stages" / "embed-1")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    job.put_work({"root": "runs"}, "code-1")
    monkeypatch.chdir(tmp_path)
    assert job.take_work("code-1") == {"root": "runs"}
    assert Path.cwd() == tmp_path / "here"


def test_attempts_come_by_number(tmp_path: Path) -> None:
    job = job_of(tmp_path, tmp_path / "stages" / "embed-1")
    for _ in range(3):
        job.new_attempt("slurm", [0], "code-1")
    for number in (2, 3):
        file = job.folder / "attempts" / f"{number:03d}.json"
        told = file.read_text().replace(f'"number": {number}', f'"number": {number + 998}')
        (file.with_name(f"{number + 998}.json")).write_text(told)
        file.unlink()
    assert [attempt.number for attempt in job.attempts()] == [1, 1000, 1001]


def test_last_line_of_a_long_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("x" * 20_000 + "\nthe end\n")
    assert last_line(log) == "the end"
    assert last_line(tmp_path / "none") == ""


def test_ranks_are_one_task(tmp_path: Path) -> None:
    target = tmp_path / "stages" / "train-1"
    job = Job.create(
        tmp_path / "train-1", stage="train", kind=RANKS, tasks=1, shards=["train-1"], target=target
    )
    assert job.busy == job.missing() == [0]
    target.mkdir(parents=True)
    assert job.missing() == []


def test_the_exit_code_of_a_stopped_task_is_that_of_a_training() -> None:
    from vlmae.preemption import EXIT_CODE

    assert COME_AGAIN == EXIT_CODE


def test_a_stage_has_one_folder(tmp_path: Path) -> None:
    call = call_of(tmp_path)
    same = stage_directory(
        call.root, call.stage, config=call.config, inputs=call.inputs, parts=call.parts
    )
    assert call.target == same
