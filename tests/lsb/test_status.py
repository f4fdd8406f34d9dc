from __future__ import annotations

import sys
from pathlib import Path

import pytest
from annotated_ledger import fill

from lsb.ledger import HOURS, Ledger, Round, TaskThreshold
from lsb.selection import CHOSEN
from lsb.status import EVERY_TASK, RoundStatus, TaskStatus, main, status


def test_counts(ledger_location: str) -> None:
    fill(ledger_location)
    with Ledger.open(ledger_location, create=False) as ledger:
        found = status(ledger)
    assert found.rounds == [
        RoundStatus(0, "first", asked=0, labelled=2, annotations=3, pseudo=0, cost=0.0),
        RoundStatus(1, "lsb_lt", asked=3, labelled=3, annotations=6, pseudo=0, cost=0.75 + 1.5),
        RoundStatus(2, "lsb_lt", asked=0, labelled=0, annotations=0, pseudo=1, cost=0.0),
    ]
    assert found.tasks == [
        TaskStatus("x", items=5, several=3, disagreed=2, resolved=1, unresolved=1, gold=2),
        TaskStatus("y", items=1, several=0, disagreed=0, resolved=0, unresolved=0, gold=0),
    ]
    quality = {(one.labeller, one.task): (one.gold, one.correct) for one in found.quality}
    assert quality == {
        ("ann", "x"): (1, 1),
        ("bob", "x"): (1, 0),
        ("model", "x"): (0, 0),
        ("oracle:noise=0.0", "x"): (0, 0),
        ("oracle:noise=0.0", "y"): (0, 0),
    }


def test_hours_of_work_are_no_money(ledger_location: str) -> None:
    fill(ledger_location)
    with Ledger.open(ledger_location) as ledger:
        before = [one.cost for one in status(ledger).rounds]
        assert ledger.record_cost(1, "ann", 0.01, 300, entry=HOURS)
        after = status(ledger)
    assert [one.cost for one in after.rounds] == before
    assert HOURS in {row["entry"] for row in after.costs}


def test_page(ledger_location: str, capsys: pytest.CaptureFixture[str]) -> None:
    fill(ledger_location)
    assert main([ledger_location]) == 0
    lines = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines]
    assert ["1", "lsb_lt", "3", "3", "6", "0", "2.25"] in cells
    assert ["x", "5", "3", "2", "1", "1", "2"] in cells
    assert ["1", "bob", "batch 1", "3", "0.5", "1.50"] in cells
    assert ["ann", "x", "human", "3", "1", "1", "1.000 (0.207 to 1.000)"] in cells
    assert ["model", "x", "pseudo", "1", "0", "0", "no gold item"] in cells


def test_each_round_tells_its_threshold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refusal = "no similarity has lookalike precision >= 0.5: " + "label more clips, " * 8
    own = (
        TaskThreshold("policy", "audio+image", "refused", refusal=refusal),
        TaskThreshold("unsafe", "audio", "calibrated", 2.34567, 0.5312, 1060, 21),
    )
    path = tmp_path / "l.sqlite"
    with Ledger.open(path) as ledger:
        for held in (
            Round(0, "first", "", ""),
            Round(1, "lsb_lt", "c", "s", 0.71234, 0.81, 240),
            Round(2, "lsb_lt", "c", "s", 0.9, None, 0),
            Round(3, "lsb_lt", "c", "s", task_thresholds=own),
        ):
            ledger.record_round(held, CHOSEN.empty_table(), None)
        found = status(ledger).thresholds
    assert [(number, one.task, one.mode) for number, one in found] == [
        (1, EVERY_TASK, "calibrated"),
        (2, EVERY_TASK, "given"),
        (3, "policy", "refused"),
        (3, "unsafe", "calibrated"),
    ]
    assert main([str(path)]) == 0
    page = capsys.readouterr().out
    cells = [[cell.strip() for cell in line.split("│")[1:-1]] for line in page.splitlines()]
    assert ["1", "all", "-", "calibrated", "0.7123", "0.810", "240"] in cells
    assert ["2", "all", "-", "given", "0.9000", "-", "-"] in cells
    assert ["3", "policy", "audio+image", "refused", "-", "-", "-"] in cells
    assert ["3", "unsafe", "audio", "calibrated", "2.3457", "0.531", "1,060"] in cells
    assert f"round 3, policy: {refusal}".strip() in " ".join(page.split())


def test_an_empty_ledger_has_a_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "l.sqlite"
    Ledger.open(path).close()
    assert main([str(path)]) == 0
    page = capsys.readouterr().out
    assert "annotators" in page
    assert "lookalike thresholds" not in page


@pytest.mark.parametrize(
    ("location", "message"),
    [
        ("absent.sqlite", "absent.sqlite does not exist"),
        ("mysql://host/ledger", "not 'mysql': give a path, or postgresql"),
        ("postgresql://u:secret@/x?host=/nowhere", "cannot be read as a ledger"),
        ("postgresql://host:port/ledger", "URL cannot be read: write postgresql"),
    ],
)
def test_what_is_no_ledger_is_one_line(
    location: str,
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if location.startswith("postgresql://u"):
        pytest.importorskip("psycopg", reason="pip install 'psycopg[binary]'")
    monkeypatch.chdir(tmp_path)
    assert main([location]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert message in captured.err
    assert "secret" not in captured.err
    assert list(tmp_path.iterdir()) == []


def test_without_the_driver_the_extra_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    assert main(["postgresql://me@/growth"]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "needs the package psycopg" in error
    assert error.endswith("pip install 'vlmae[postgres]'\n")


def test_an_empty_database_is_no_ledger(
    ledger_location: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([ledger_location]) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "holds no ledger" in error or "does not exist" in error
