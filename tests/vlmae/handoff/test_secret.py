"""The secret of a folder of stages: made once, whole, for its owner."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from vlmae.handoff.secret import BYTES, FILE, read_secret


def test_it_is_made_once_however_many_come_for_it(tmp_path: Path) -> None:
    root = tmp_path / "runs" / "stages"
    with ThreadPoolExecutor(8) as pool:
        told = set(pool.map(read_secret, [root] * 16))
    assert told == {read_secret(root)}
    assert len(told.pop()) == BYTES
    assert (root / FILE).stat().st_mode & 0o777 == 0o600
    assert read_secret(tmp_path / "others") != read_secret(root)


@pytest.mark.parametrize("content", ["", "xyz", "ab" * (BYTES - 1)])
def test_what_is_no_secret_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / FILE).write_text(content)
    with pytest.raises(ValueError, match="is not a secret of 64 hexadecimal digits: bring it back"):
        read_secret(tmp_path)
    assert (tmp_path / FILE).read_text() == content


def test_it_is_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read_secret(tmp_path)

    def denied(*arguments: object, **options: object) -> str:
        raise PermissionError(13, os.strerror(13))

    monkeypatch.setattr(Path, "read_text", denied)
    with pytest.raises(ValueError, match="can be read by its owner alone"):
        read_secret(tmp_path)


def test_one_that_was_killed_leaves_nothing_in_the_way(tmp_path: Path) -> None:
    (tmp_path / f".{FILE}.tmp").write_text("ab")
    assert len(read_secret(tmp_path)) == BYTES
