"""Carried labels in the ledger: they train, are nobody's answer, and `lsb.why` follows them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from test_ledger import NOON, chosen, labels, record
from test_media_hashes import copies

from lsb.annotate.carried import carried_labeller, representative_of
from lsb.carried import carried_annotations
from lsb.ids import sample_id
from lsb.ledger import Ledger, MergeConfig
from lsb.status import status
from lsb.why import main


def fill(location: str) -> None:
    with Ledger.open(location) as ledger:
        asked = labels({("a", "x"): 1}, "human", "ann")
        carried = carried_annotations(copies(("a2", "a")), asked, ledger.gold())
        both = pa.concat_tables([asked, carried])
        ledger.record_round(record(1), chosen("a", seed="s"), both, labelled_at=NOON)


def test_a_carried_label_trains_and_is_no_second_opinion(ledger_location: str) -> None:
    fill(ledger_location)
    with Ledger.open(ledger_location) as ledger:
        rows = {row["key"]: row for row in ledger.training_set().to_pylist()}
        assert rows["a2"]["label_x"] == rows["a"]["label_x"] == 1
        assert rows["a2"]["source"] == "human"
        assert sample_id("a2") in {bytes(i) for i in ledger.labelled_ids().tolist()}
        assert [one.labeller for one in ledger.quality()] == ["ann"]
        # Somebody looks at the copy itself and says no: that counts, and needs no adjudication.
        ledger.import_annotations(1, labels({("a2", "x"): 0}, "human", "bob"), labelled_at=NOON)
        assert ledger.adjudicate(MergeConfig(), at=NOON).items == 0
        rows = {row["key"]: row for row in ledger.training_set().to_pylist()}
        assert rows["a2"]["label_x"] == 0
        assert status(ledger).tasks[0].several == 0


def test_why_says_from_which_clip_a_label_came(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "l.sqlite"
    fill(str(path))
    assert main(["a2", "--ledger", str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = [index for index, line in enumerate(lines) if "carried from" in line]
    assert len(told) == 1
    assert sample_id("a").hex() in "".join(lines[told[0] : told[0] + 2])
    assert any("from a" in line for line in lines[told[0] + 1 :])
    assert any("lookalike of s" in line for line in lines[told[0] + 1 :])


def test_the_labeller_holds_the_id() -> None:
    assert representative_of(carried_labeller(sample_id("a"))) == sample_id("a").hex()
    assert representative_of("ann") is None
