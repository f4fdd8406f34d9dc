from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from lsb.artifact import Part, Stage, StageError, open_stage, run_stage

DRIVER = """
import functools, os, signal, sys, time
from pathlib import Path
from lsb.artifact import Part, run_stage

def make(folder, name, seconds, log):
    with open(log, "a") as stream:
        stream.write(f"{name} {os.getpid()}\\n")
    time.sleep(seconds)
    (folder / f"{name}.txt").write_text(name)
    return {"rows": 1}

if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit(75))
    root, log, processes, slow = sys.argv[1:]
    parts = [
        Part(n, (f"{n}.txt",), functools.partial(make, name=n, log=log,
             seconds=float(slow) if n > "b" else 0))
        for n in "abcd"
    ]
    print(run_stage(Path(root), "s", config={}, inputs={}, parts=parts,
                    processes=int(processes)).path)
"""


def stage(root: Path, made: list[str], names: str = "abc", **options: object) -> Stage:
    def part(name: str) -> Part:
        def make(folder: Path) -> dict[str, int]:
            made.append(name)
            if options.get("fail") == name:
                raise RuntimeError("decoder gave up")
            (folder / f"{name}.txt").write_text(str(options.get("text", name)))
            return {"rows": 2}

        return Part(name, (f"{name}.txt",), make)

    config = options.get("config", {"k": 1})
    parts = [part(name) for name in names]
    return run_stage(root, "s", config=config, inputs={"in": "x"}, parts=parts)


def test_runs_once_then_is_reused(tmp_path: Path) -> None:
    made: list[str] = []
    first = stage(tmp_path, made)
    again = stage(tmp_path, made)
    assert made == ["a", "b", "c"]
    assert (first.reused, again.reused) == (False, True)
    assert again.counts == {"rows": 6}
    assert again.content == first.content
    assert again.files == ["a.txt", "b.txt", "c.txt"]
    assert sorted(path.name for path in first.path.iterdir()) == [
        "a.txt", "b.txt", "c.txt", "manifest.json", "timing.json",
    ]  # fmt: skip


def test_failing_part_leaves_earlier_ones_and_resume_makes_the_rest(tmp_path: Path) -> None:
    made: list[str] = []
    with pytest.raises(RuntimeError, match="decoder gave up"):
        stage(tmp_path, made, fail="b")
    assert not [path for path in tmp_path.glob("s-*") if not path.name.endswith(".partial")]
    finished = stage(tmp_path, made)
    assert made == ["a", "b", "b", "c"]
    elsewhere = stage(tmp_path / "elsewhere", [])
    assert finished.manifest == elsewhere.manifest
    assert (finished.path / "manifest.json").read_bytes() == (
        elsewhere.path / "manifest.json"
    ).read_bytes()


def test_absent_part_alone_is_made_again(tmp_path: Path) -> None:
    made: list[str] = []
    first = stage(tmp_path, made)
    (first.path / "b.txt").unlink()
    again = stage(tmp_path, made)
    assert made == ["a", "b", "c", "b"]
    assert not again.reused
    assert (again.path / "b.txt").read_text() == "b"


def test_part_remade_with_other_bytes_is_refused(tmp_path: Path) -> None:
    first = stage(tmp_path, [])
    (first.path / "b.txt").unlink()
    with pytest.raises(StageError, match=r"b\.txt was remade with other bytes.*delete"):
        stage(tmp_path, [], text="other")


def test_altered_file_is_refused_by_name(tmp_path: Path) -> None:
    first = stage(tmp_path, [])
    (first.path / "c.txt").write_text("x")
    with pytest.raises(StageError, match=r"c\.txt is damaged.*delete this file and run again"):
        stage(tmp_path, [])
    assert open_stage(first.path, verify=False).content == first.content


def test_wrong_version_and_broken_manifest_are_refused(tmp_path: Path) -> None:
    first = stage(tmp_path, [])
    manifest = first.path / "manifest.json"
    manifest.write_text(json.dumps({**first.manifest, "version": 99}))
    with pytest.raises(StageError, match="version 99, this release reads"):
        open_stage(first.path)
    manifest.write_text("{")
    with pytest.raises(StageError, match="not valid JSON"):
        open_stage(first.path)
    with pytest.raises(StageError, match="not a finished stage"):
        open_stage(tmp_path)


def test_changed_config_is_another_directory(tmp_path: Path) -> None:
    first = stage(tmp_path, [])
    other = stage(tmp_path, [], config={"k": 2})
    assert first.path != other.path
    assert first.manifest["hash"] != other.manifest["hash"]
    # A mapping's order is not a difference.
    one = stage(tmp_path, [], config={"a": 1, "b": 2})
    assert stage(tmp_path, [], config={"b": 2, "a": 1}).path == one.path


def test_concurrent_run_is_refused(tmp_path: Path) -> None:
    target = stage(tmp_path, []).path
    lock = FileLock(tmp_path / f".{target.name}.lock")
    with lock, pytest.raises(StageError, match="another process is making"):
        stage(tmp_path, [])


def test_part_must_write_what_it_names(tmp_path: Path) -> None:
    part = Part("a", ("a.txt",), lambda folder: {})
    with pytest.raises(ValueError, match=r"part a wrote \[\], expected \['a\.txt'\]"):
        run_stage(tmp_path, "s", config={}, inputs={}, parts=[part])
    with pytest.raises(ValueError, match="part names must be unique"):
        run_stage(tmp_path, "s", config={}, inputs={}, parts=[part, part])


def start(tmp_path: Path, processes: int, slow: float) -> subprocess.Popen[str]:
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    repository = Path(__file__).parents[2]
    return subprocess.Popen(
        [sys.executable, driver, tmp_path / "runs", tmp_path / "log", str(processes), str(slow)],
        env={**os.environ, "PYTHONPATH": str(repository)},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def wait_for(condition: object, seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "condition was not met in time"
        time.sleep(0.05)


def test_kill_leaves_no_orphans_and_the_next_run_gives_the_same_bytes(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(tmp_path, processes=2, slow=60)
    # a and b are done at once; both workers are then asleep in c and d.
    wait_for(lambda: log.is_file() and len(log.read_text().splitlines()) == 4)
    workers = [int(line.split()[1]) for line in log.read_text().splitlines() if line[0] in "cd"]
    assert len(set(workers)) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for(lambda: not any(alive(worker) for worker in workers))
    log.unlink()

    again = start(tmp_path, processes=1, slow=0)
    output, _ = again.communicate(timeout=60)
    assert again.returncode == 0
    assert {line[0] for line in log.read_text().splitlines()} == {"c", "d"}
    path = Path(output.strip())
    assert "".join((path / f"{name}.txt").read_text() for name in "abcd") == "abcd"
    recorded = open_stage(path).manifest["parts"]["c"]["files"]["c.txt"]["sha256"]
    assert recorded == hashlib.sha256(b"c").hexdigest()


def test_told_to_stop_it_waits_for_no_part(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = start(tmp_path, processes=2, slow=60)
    wait_for(lambda: log.is_file() and len(log.read_text().splitlines()) == 4)
    workers = [int(line.split()[1]) for line in log.read_text().splitlines()]
    process.send_signal(signal.SIGUSR2)
    process.communicate(timeout=30)
    assert process.returncode == 75
    assert not any(alive(worker) for worker in workers)
    (partial,) = (tmp_path / "runs").glob("s-*.partial")
    assert sorted(file.stem for file in (partial / "parts").glob("*.json")) == ["a", "b"]


def test_killed_at_the_rename_nothing_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    rename = os.replace

    def killed(source: Path, target: Path) -> None:
        if Path(source).name.endswith(".partial"):
            raise KeyboardInterrupt
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            stage(tmp_path, made)
    assert len(made) == 3
    finished = stage(tmp_path, made)
    assert len(made) == 3
    assert sorted(path.name for path in finished.path.iterdir()) == sorted(
        [*finished.files, "manifest.json", "timing.json"]
    )


def test_damaged_part_of_a_killed_stage_is_made_again(tmp_path: Path) -> None:
    made: list[str] = []
    undisturbed = stage(tmp_path / "one", [])
    with pytest.raises(RuntimeError):
        stage(tmp_path / "two", made, fail="c")
    partial = next((tmp_path / "two").glob("*.partial"))
    whole = next(partial.glob("a*"))
    whole.write_bytes(bytes(len(whole.read_bytes())))
    assert stage(tmp_path / "two", made).content == undisturbed.content
    assert made.count("a") == 2
