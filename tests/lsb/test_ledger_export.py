from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from annotated_ledger import fill

import lsb.export
from lsb.export import LABELS, main
from lsb.ids import sample_id


def test_every_label_has_its_provenance(
    ledger_location: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(ledger_location)
    output = tmp_path / "labels.parquet"
    output.write_text("of yesterday")
    assert main([ledger_location, str(output)]) == 0
    assert capsys.readouterr().out == f"{output}: 7 labels\n"
    table = pq.read_table(output)
    assert table.schema.equals(LABELS)
    assert table.schema.metadata[b"format"] == b"lsb labels"
    rows = {(row["key"], row["task"]): row for row in table.to_pylist()}
    places = [(row["id"], row["task"]) for row in table.to_pylist()]
    assert places == sorted(places)
    assert {place: row["label"] for place, row in rows.items()} == {
        ("seed", "x"): 1, ("old", "x"): 0, ("old", "y"): 1, ("a", "x"): 1,
        ("b", "x"): None, ("c", "x"): None, ("p", "x"): 1,
    }  # fmt: skip
    agreed = rows["a", "x"]
    at = "2026-01-02T12:00:00+00:00"
    assert agreed == {
        "id": sample_id("a"), "key": "a", "task": "x", "label": 1, "source": "human", "round": 1,
        "at": at, "labeller": None,
        "policy": "majority(agreement=0.5, minimum_annotators=1, sources=human+oracle)",
        "confidence": 1.0, "gold_label": None,
        "annotations": [
            {"labeller": who, "source": "human", "label": 1, "round": 1, "labelled_at": at}
            for who in ("ann", "bob")
        ],
        "asked_in_round": 1, "arm": "lsb_lt", "reason": "lookalike", "seed_key": "seed",
        "seed_kind": "confident_error", "similarity": float(np.float32(0.875)),
        "lookalike_threshold": 0.7, "checkpoint_hash": "c" * 32, "store_hash": "s" * 32,
    }  # fmt: skip
    assert (rows["b", "x"]["confidence"], len(rows["b", "x"]["annotations"])) == (0.5, 2)
    measured = rows["c", "x"]
    assert (measured["gold_label"], measured["source"], measured["policy"]) == (1, None, None)
    assert [answer["label"] for answer in measured["annotations"]] == [1, 0]
    unasked = rows["old", "y"]
    assert (unasked["labeller"], unasked["asked_in_round"]) == ("oracle:noise=0.0", None)
    assert (rows["p", "x"]["source"], rows["seed", "x"]["gold_label"]) == ("pseudo", 1)


def test_a_file_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path, output = str(tmp_path / "l.sqlite"), tmp_path / "labels.parquet"
    fill(path)
    output.write_text("of yesterday")

    def full(table: object, where: Path) -> None:
        where.write_bytes(b"PAR1")
        raise OSError("no space left on device")

    monkeypatch.setattr(lsb.export.pq, "write_table", full)
    assert main([path, str(output)]) == 2
    assert capsys.readouterr().err == "no space left on device\n"
    assert output.read_text() == "of yesterday"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["l.sqlite", "labels.parquet"]


def test_errors_of_use_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = str(tmp_path / "l.sqlite")
    assert main([path, str(tmp_path / "labels.parquet")]) == 2
    assert re.fullmatch(r".*l\.sqlite does not exist: .*\n", capsys.readouterr().err)
    fill(path)
    assert main([path, str(tmp_path / "none" / "labels.parquet")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'none'} is no folder: make it first\n"
