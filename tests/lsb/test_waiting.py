"""A lock that somebody else holds: waited for, with progress."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

from lsb import waiting
from lsb.waiting import waited_for


def test_waiting_is_progress_and_ends_when_the_other_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    other = FileLock(tmp_path / "lock", thread_local=False)
    other.acquire()

    def heard(what: str) -> None:
        said.append(what)
        other.release()

    monkeypatch.setattr(waiting, "SECONDS", 0.01)
    monkeypatch.setattr(waiting, "progressed", heard)
    with waited_for(tmp_path / "lock", "train-1"):
        assert said == ["waits for train-1"]
        taken = FileLock(tmp_path / "lock", thread_local=False)
        with pytest.raises(TimeoutError):
            taken.acquire(timeout=0)
    taken.acquire(timeout=0)
    taken.release()
