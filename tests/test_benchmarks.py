"""The benchmarks run and report; what they measure is judged by people, not by tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.data.__main__ import main
from benchmarks.measure import Row, Table, Timing, interleave, rates
from benchmarks.report import machine, save, write_document

ROOT = Path(__file__).parents[1]


def benchmark(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command in the checkout."""
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.data", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_quick_run_prints_tables_of_80_columns_and_keeps_every_row(tmp_path: Path) -> None:
    ended = benchmark("decode", "loader", "--quick", "--runs", tmp_path)
    assert ended.returncode == 0, ended.stderr
    lines = [line for line in ended.stdout.splitlines() if str(tmp_path) not in line]
    assert not [line for line in lines if len(line) > 80], "wider than 80 columns"
    report = json.loads((tmp_path / "bench/data-quick.json").read_text())
    assert {row["benchmark"] for row in report["rows"]} == {"decode", "loader", "tokens"}
    compared = [row for row in report["rows"] if row["ratio"] is not None]
    for row in compared:
        peers = [r for r in compared if r["case"] == row["case"] and r["what"] == row["peer"]]
        assert [peer["ratio"] for peer in peers] == [1.0], f"{row} has no one peer in its case"
    decoders = {row["what"] for row in report["rows"] if row["benchmark"] == "decode"}
    assert {"ours (auto)", "ours (pyav)", "PyAV, all frames"} <= decoders
    assert report["machine"]["cores"] >= 1
    assert not list((tmp_path / "bench").glob("work-*")), "scratch is left behind"


def test_paths_take_turns_and_a_ratio_is_of_speeds_within_a_turn() -> None:
    calls: list[str] = []

    def path(name: str) -> int:
        calls.append(name)
        return 3

    interleave({"a": lambda: path("a"), "b": lambda: path("b")}, 2)
    assert "".join(calls) == "ab" + "abab"
    turns = {
        "peer": [Timing(2.0, 1.0, 10), Timing(4.0, 1.0, 10), Timing(6.0, 1.0, 10)],
        "ours": [Timing(1.0, 1.0, 10), Timing(1.0, 1.0, 10), Timing(6.0, 1.0, 10)],
    }
    peer, ours = rates("loader", "", turns, "peer", "clips/s")
    assert (peer.value, peer.ratio) == (2.5, 1.0)
    assert (ours.value, ours.low, ours.high, ours.ratio) == (10.0, 10 / 6, 10.0, 2.0)


def test_paths_that_do_different_amounts_of_work_are_refused() -> None:
    with pytest.raises(ValueError, match=r"different amounts of work: \{'a': 1, 'b': 2\}"):
        interleave({"a": lambda: 1, "b": lambda: 2}, 1)


def table(benchmark: str, what: str) -> Table:
    row = Row(benchmark, "a case", what, 3.0, 2.0, 4.0, "clips/s", "peer", 1.5, 3, 1.0, 0.5)
    return Table(benchmark, f"title of {benchmark}", "data", "peer 1.0", "speed", [row], ["a note"])


def test_tables_go_between_the_marks_of_a_document_and_nowhere_else(tmp_path: Path) -> None:
    document = tmp_path / "doc.md"
    marks = "<!-- benchmarks.data: begin -->\nold\n<!-- benchmarks.data: end -->"
    document.write_text(f"before\n{marks}\nafter\n")
    report = save(tmp_path / "data.json", machine(["numpy"]), [table("loader", "ours")])
    write_document(document, "data", report)
    once = document.read_text()
    assert once.startswith("before\n<!-- benchmarks.data: begin -->")
    assert once.endswith("<!-- benchmarks.data: end -->\nafter\n")
    assert "| ours | 3 clips/s | 2-4 | 1 | 0.5 | 1.5x | 3 |" in once
    assert "old" not in once
    write_document(document, "data", report)
    assert document.read_text() == once
    document.write_text("no marks")
    with pytest.raises(ValueError, match="once each"):
        write_document(document, "data", report)


def test_a_benchmark_run_alone_replaces_its_own_table_and_keeps_the_others(tmp_path: Path) -> None:
    kept, found = tmp_path / "data.json", machine([])
    save(kept, found, [table("loader", "old"), table("decode", "decoder")])
    report = save(kept, found, [table("loader", "new")])
    assert sorted(row["what"] for row in report["rows"]) == ["decoder", "new"]
    assert sorted(about["benchmark"] for about in report["tables"]) == ["decode", "loader"]
    other = {**found, "cores": 1000}
    report = save(kept, other, [table("embed", "elsewhere")])
    assert [row["what"] for row in report["rows"]] == ["elsewhere"], "two machines in one report"


def test_the_document_has_its_marks(tmp_path: Path) -> None:
    copy = tmp_path / "performance.md"
    copy.write_text((ROOT / "docs/performance.md").read_text("utf-8"), "utf-8")
    report = save(tmp_path / "data.json", machine([]), [table("loader", "ours")])
    write_document(copy, "data", report)
    assert "| ours | 3 clips/s |" in copy.read_text("utf-8")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["speed"], "no benchmark 'speed'"),
        (["decode", "--repeats", "0"], "--repeats is 0"),
        (["--write-docs"], "run python -m benchmarks.data first"),
    ],
)
def test_a_mistake_on_the_command_line_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], problem: str
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--runs", str(tmp_path)])
    assert ended.value.code == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
