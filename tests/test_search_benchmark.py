"""The benchmark of threshold search against all peers runs, goes on, and reports."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.search import full, venvs
from benchmarks.search.found import Found
from benchmarks.search.full_report import PLOT, sentences
from benchmarks.search.peers import Peer

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_a_quick_run_is_kept_goes_on_and_is_put_into_the_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> list[dict[str, Any]]:
        assert full.main(["--quick", "--runs", str(tmp_path), *arguments]) == 0
        return json.loads((tmp_path / "bench/search-full-quick.json").read_text("utf-8"))

    one = ["--cases", "clustered-64-20000", "--methods", "exact", "HNSW32"]
    rows = run(*one)
    assert [row["method"] for row in rows[::2]] == ["faiss.knn", "exact", "HNSW32"]
    assert [row["Q"] for row in rows] == [100, 300] * 3
    for row in rows:
        assert row["recall"] >= 0.98
        assert row["differences"] == 0 or row["method"] == "HNSW32"
    assert rows[1]["ratio_total"] == 1.0
    # What builds nothing may still be told a millisecond, of the thread that watches memory.
    assert rows[1]["build_s"] < rows[4]["build_s"], "building of an index is counted"

    def absent(name: str) -> str:
        raise venvs.MissingError("not installed: no wheel of scann")

    def never(*_: object) -> None:
        raise AssertionError("what is kept was measured again")

    with monkeypatch.context() as patched:
        patched.setattr(full, "alone", never)
        assert run(*one) == rows
        patched.setattr(full, "python_of", absent)
        told = run("--cases", "clustered-64-20000", "--methods", "ScaNN")[-1]
        assert told["error"] == "not installed: no wheel of scann"
    two = run("--cases", "clustered-64-20000-2p", "--methods", "exact")[-1]
    assert (two["processes"], two["differences"]) == (2, 0), "halves do not merge to the whole"
    assert "ScaNN: not installed: no wheel of scann" in " ".join(capsys.readouterr().out.split())

    document = tmp_path / "performance.md"
    shutil.copy(ROOT / "docs/performance.md", document)
    run("--write-docs", "--docs", str(document))
    text = document.read_text("utf-8")
    assert "| 300 | exact |" in text
    assert "| 300 | ScaNN: not installed: no wheel of scann |" in text
    assert (tmp_path / PLOT).stat().st_size > 10_000
    assert [path.name for path in (tmp_path / "bench").iterdir() if path.name[0] == "t"] == []


def test_a_budget_that_is_used_up_starts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert full.main(["--quick", "--budget-minutes", "-1", "--runs", str(tmp_path)]) == 0
    assert "next: clustered-64-20000, faiss.knn" in capsys.readouterr().out
    assert not list((tmp_path / "bench").glob("*.json"))


def test_numbers_of_a_quick_run_do_not_reach_our_document(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        full.main(["--quick", "--write-docs", "--runs", str(tmp_path)])
    assert "mean nothing: give another document" in capsys.readouterr().err


def test_tuning_takes_the_least_effort_that_reaches_recall_or_the_best() -> None:
    truth = Found(np.arange(100)[None], np.ones((1, 100), np.float32))

    class Stub(Peer):
        def __init__(self, *efforts: int):
            self.efforts = efforts

        def search(self, seeds_QD: np.ndarray) -> Found:
            return Found(np.arange(self.effort)[None], np.ones((1, self.effort), np.float32))

    for efforts, chosen in (((50, 99, 100), 99), ((50, 90, 80), 90)):
        peer = Stub(*efforts)
        peer.tune(np.zeros((1, 2), np.float32), truth)
        assert peer.effort == chosen


def test_a_peer_that_is_better_is_named() -> None:
    def row(method: str, build: float, search: float, recall: float = 1.0) -> dict[str, Any]:
        where = {"d": 256, "Q": 1000, "N": 10, "dtype": "float32", "data": "clustered"}
        return {
            **where,
            "method": method,
            "build_s": build,
            "search_s": search,
            "recall": recall,
        }

    ours, slow = row("exact", 0.0, 1.0), row("faiss.knn", 0.0, 3.0)
    (said,) = sentences([ours, slow, row("quick", 5.0, 0.5), row("blind", 0.1, 0.1, 0.5)])
    assert "exact (1 s) needs less than all, next is faiss.knn (3 s)" in said
    assert "quick (0.5 s, pays from search 11)" in said
    assert "below recall 0.985: blind (0.500)" in said
    (said,) = sentences([ours, slow, row("better", 0.2, 0.3)])
    assert "better (0.5 s) needs less than exact (1 s)" in said


def test_a_peer_that_is_not_installed_says_how_to_install_it(tmp_path: Path) -> None:
    with pytest.raises(venvs.MissingError, match=r"run python -m benchmarks\.search\.venvs scann"):
        venvs.python_of("scann", tmp_path)
    (tmp_path / "scann").mkdir()
    (tmp_path / "scann/.ready").write_text("scann==0.0.0\n")
    with pytest.raises(venvs.MissingError, match="not installed"):
        venvs.python_of("scann", tmp_path)
    for name in venvs.NAMES:
        pinned = [x for x in venvs.requirements(name).read_text().splitlines() if x[:1] != "#"]
        assert all("==" in line for line in pinned)
