from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from annotated_ledger import fill as fill_annotated

from lsb.annotate import annotation_table
from lsb.ids import sample_id
from lsb.ledger import LOCATION_FILE, Ledger, Round
from lsb.selection import CHOSEN
from lsb.why import main


def candidate(key: str, seed: str | None) -> pa.Table:
    row = {
        "id": sample_id(key),
        "key": key,
        "seed_id": sample_id(seed) if seed else None,
        "seed_key": seed,
        "kind": "confident_error" if seed else None,
        "task": "policy" if seed else None,
        "similarity": 0.875 if seed else None,
        "lookalike_threshold": 0.7125 if seed else None,
        "rank": 1,
        "reason": "lookalike" if seed else "fill",
    }
    return pa.Table.from_pylist([row], schema=CHOSEN)


def fill(path: Path, links: list[tuple[str, str | None]]) -> None:
    """One round for each (clip, seed)."""
    with Ledger.open(path) as ledger:
        for number, (key, seed) in enumerate(links):
            label = annotation_table(
                [sample_id(key)],
                [key],
                ["policy"],
                [1],
                source="oracle",
                labeller="oracle:noise=0.0",
            )
            ledger.record_round(
                Round(number, "lsb_lt", f"checkpoint{number}", f"store{number}", 0.7125, 0.8, 300),
                candidate(key, seed),
                label,
                labelled_at=datetime(2026, 3, 4, 5, 6, number, tzinfo=UTC),
            )


def test_prints_the_whole_chain(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "l.sqlite"
    fill(path, [("pool/[b]1", "gold-1"), ("pool/2", "pool/[b]1")])
    assert main(["pool/2", "--ledger", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    places = [
        next(index for index, line in enumerate(lines) if expected in line)
        for expected in (
            "pool/2",
            "round 1, arm lsb_lt: lookalike of pool/[b]1 (confident_error, policy), "
            "similarity 0.8750, LT 0.7125",
            "checkpoint checkpoint1",
            "store store1",
            "policy=1: oracle by oracle:noise=0.0 in round 1 at 2026-03-04T05:06:01+00:00",
            "from pool/[b]1",
            "round 0, arm lsb_lt: lookalike of gold-1",
            "checkpoint checkpoint0",
            "from gold-1",
            "no label",
        )
    ]
    assert places == sorted(places)


def test_shows_every_annotation_and_what_was_decided(
    ledger_location: str, capsys: pytest.CaptureFixture[str]
) -> None:
    fill_annotated(ledger_location)
    policy = "majority(agreement=0.5, minimum_annotators=1, sources=human+oracle)"
    at = "2026-01-02T12:00:00+00:00"
    for clip, expected in {
        "a": [
            "x=1: human by ann in round 1", "x=1: human by bob in round 1",
            f"x=1: adjudicated by {policy}, share 1.000",
            f"from ann in round 1, bob in round 1, as of round 2 at {at}",
            "from seed", "x=1: gold by release in round 0",
        ],
        "b": ["x=1: human by ann", "x=0: human by bob", f"x=unresolved: adjudicated by {policy}"],
        "c": ["x=1: human by ann", "x=0: human by bob", "x=1: known, measures annotators"],
    }.items():  # fmt: skip
        assert main([clip, "--ledger", ledger_location]) == 0
        output = " ".join(line.strip("│├└─ ") for line in capsys.readouterr().out.splitlines())
        places = [output.index(text) for text in expected]
        assert places == sorted(places)


def test_cycles_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "l.sqlite"
    fill(path, [("a", "b"), ("b", "a"), ("c", "c")])
    assert main(["a", "--ledger", str(path)]) == 0
    assert main(["c", "--ledger", str(path)]) == 0
    assert capsys.readouterr().out.count("from ") == 1


def test_finds_ledgers_newest_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMAE_RUNS", str(tmp_path))
    for age, name in enumerate(("new", "old", "other")):
        path = tmp_path / "exp" / name / "ledger.sqlite"
        fill(path, [("elsewhere" if name == "other" else "clip", None)])
        os.utime(path, (1e9 - age, 1e9 - age))
    assert main(["clip"]) == 0
    output = capsys.readouterr().out
    assert 0 <= output.index("exp/new/ledger") < output.index("exp/old/ledger")
    assert "exp/other" not in output


def test_finds_ledgers_that_are_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMAE_RUNS", str(tmp_path / "runs"))
    place, arm = tmp_path / "growth.sqlite", tmp_path / "runs" / "exp" / "lsb"
    fill(place, [("clip", None)])
    arm.mkdir(parents=True)
    (arm / LOCATION_FILE).write_text(f"{place}\n")
    assert main(["clip"]) == 0
    assert str(place) in capsys.readouterr().out.replace("\n", "")


def test_unknown_clip_names_the_nearest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "l.sqlite"
    fill(path, [("clip-0001", None), ("clip-0002", None), ("zzz", None)])
    assert main(["clip-001", "--ledger", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert "unknown clip 'clip-001'" in captured.err
    assert "did you mean clip-0001" in captured.err
    assert main(["ωω", "--ledger", str(path)]) == 2
    assert "no key is near it" in capsys.readouterr().err


def test_no_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLMAE_RUNS", str(tmp_path / "none"))
    assert main(["a"]) == 2
    assert "run a round or give --ledger PATH" in capsys.readouterr().err
    assert main(["a", "--ledger", str(tmp_path / "absent")]) == 2
    assert "does not exist" in capsys.readouterr().err
