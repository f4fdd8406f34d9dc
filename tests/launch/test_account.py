"""The account and the pilot's page of the tiny run, against its ledgers and predictions."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_criteria import Page
from tiny_run import TinyRun, run_python

from launch.rounds.account import Prices, cumulative_costs
from lsb.artifact import open_stage
from lsb.ledger import Ledger
from lsb.store import Store

TASKS = ("relevance", "clickbait", "unsafe")


def test_costs_add_up_and_none_is_not_free() -> None:
    rows = [
        {"round": 0, "payee": "ann", "entry": "", "unit_price": 0.5, "count": 10},
        {"round": 0, "payee": "ann", "entry": "hours", "unit_price": 0.01, "count": 10},
        {"round": 2, "payee": "bob", "entry": "batch 1", "unit_price": 1.0, "count": 3},
        {"round": 2, "payee": "bob", "entry": "batch 1 hours", "unit_price": 0.1, "count": 3},
    ]
    first, second, third = cumulative_costs(rows, 3)
    assert first == pytest.approx({"money": 5, "hours": 0.1, "all_money": 5, "all_hours": 0.1})
    assert second == pytest.approx({"money": 0, "hours": 0, "all_money": 5, "all_hours": 0.1})
    assert third == pytest.approx({"money": 3, "hours": 0.3, "all_money": 8, "all_hours": 0.4})
    assert cumulative_costs([], 2) == [None, None]
    assumed = cumulative_costs(Prices(0.1, 36.0).costs([20, 0, 10]), 3)
    assert assumed[2] == pytest.approx({"money": 1, "hours": 0.1, "all_money": 3, "all_hours": 0.3})


@pytest.fixture(scope="module")
def folder(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tiny run with its account."""
    folder = tmp_path_factory.mktemp("account")
    shutil.copytree(tiny.runs, folder / "runs")
    with Ledger.open(folder / "runs/tiny/lsb_lt/ledger.sqlite") as ledger:
        for number, count in ((0, 48), (1, 16), (2, 16)):
            ledger.record_cost(number, "oracle", 0.25, count)
            ledger.record_cost(number, "oracle", 0.01, count, entry="hours")
    done = run_python("-m", "launch.account", "experiment=tiny", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "account of tiny, arm lsb_lt" in done.stdout
    assert "…" not in done.stdout, "a table is cut"
    return folder


def account_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "tiny" / "account.json").read_text())


@pytest.mark.slow
def test_labels_positives_and_costs_are_the_ledgers(folder: Path) -> None:
    rounds = account_of(folder)["rounds"]
    with Ledger.open(folder / "runs/tiny/lsb_lt/ledger.sqlite", create=False) as ledger:
        annotations = [row for row in ledger.annotations() if row["source"] == "oracle"]
    for entry in rounds:
        own = [row for row in annotations if row["round"] == entry["round"]]
        assert entry["answers"] == len(own)
        assert entry["asked"] == len({row["clip_id"] for row in own})
        for task in TASKS:
            labels = [row["label"] for row in own if row["task"] == task]
            assert entry["found"][task]["positives"] == sum(labels)
            assert entry["found"][task]["answers"] == len(labels)
    assert [entry["labels"] for entry in rounds] == [48, 64, 80]
    assert [entry["cost"]["all_money"] for entry in rounds] == [12, 16, 20]
    assert [entry["cost"]["all_hours"] for entry in rounds] == pytest.approx([0.48, 0.64, 0.8])


@pytest.mark.slow
def test_confident_errors_found_are_those_of_the_model_that_asked(folder: Path) -> None:
    told = account_of(folder)
    stages = folder / "runs" / "stages"
    by_content = {open_stage(p, verify=False).content: p for p in stages.glob("embed-*")}
    summary = json.loads((folder / "runs/tiny/summary.json").read_text())
    with Ledger.open(folder / "runs/tiny/lsb_lt/ledger.sqlite", create=False) as ledger:
        held = {one.round: one for one in ledger.rounds()}
        rows = [row for row in ledger.annotations() if row["source"] == "oracle"]
    total = 0
    for number in (1, 2):
        store = Store.open(by_content[held[number].store_hash])
        scores = {row["key"]: row for row in store.rows().to_pylist()}
        for task in TASKS:
            threshold = summary["rounds"][number - 1]["tasks"][task]["threshold"]
            wrong = 0
            for row in rows:
                if row["round"] == number and row["task"] == task:
                    score = float(scores[row["key"]][f"probability_{task}"])
                    says = score >= threshold
                    sure = score if says else 1 - score
                    wrong += says != bool(row["label"]) and sure >= told["confidence"]
            found = told["rounds"][number]["found"][task]
            assert found["confident_errors"] == wrong
            assert found["scored"] == found["answers"] == 16
            total += wrong
    assert told["rounds"][0]["found"]["unsafe"]["confident_errors"] is None
    assert total >= 0


@pytest.mark.slow
def test_savings_rest_on_the_random_arms_curve(folder: Path) -> None:
    told = account_of(folder)
    summary = json.loads((folder / "runs/tiny/summary.json").read_text())
    random = summary["arms"]["random"]["rounds"]
    assert told["random"]["labels"] == [entry["labels"] for entry in random]
    assert told["rounds"][0]["saved"] is None
    for entry in told["rounds"][1:]:
        for task in TASKS:
            saved = entry["saved"][task]
            if saved is None:
                continue
            assert saved["value"] == pytest.approx(entry["recall"][task]["value"])
            assert saved["labels"] == entry["labels"]
            assert saved["saved_money"] is None, "the random arm has no costs here"
            if saved["saved"] is not None:
                assert 48 - entry["labels"] <= saved["saved"] <= 80 - entry["labels"]
            else:
                best = max(one["tasks"][task]["recall_at_p80"] for one in random)
                assert saved["value"] > best - 1e-9 or saved["reached"] < 1


@pytest.mark.slow
def test_again_the_bytes_are_the_same(folder: Path) -> None:
    files = [folder / "runs" / "tiny" / name for name in ("account.json", "account.png")]
    before = [file.read_bytes() for file in files]
    done = run_python("-m", "launch.account", "experiment=tiny", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert [file.read_bytes() for file in files] == before
    assert before[1].startswith(b"\x89PNG\r\n")


PILOT = (
    "experiment=tiny", "name=small_pilot", "arms=[random,lsb_lt]", "controls=false",
    "pilot.steps={dozens:0,limited:1,scale:2}", "pilot.price=0.1", "pilot.seconds=9",
    "pilot.cost_per_positive=1.0", "pilot.gold_items=12",
)  # fmt: skip


@pytest.mark.slow
def test_a_small_pilot_goes_step_by_step_to_its_page(tiny: TinyRun, tmp_path: Path) -> None:
    shutil.copytree(tiny.runs / "stages", tmp_path / "runs" / "stages")
    place = tmp_path / "runs" / "small_pilot"
    done = run_python("-m", "launch.pilot", *PILOT, "rounds=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pilot = json.loads((place / "pilot.json").read_text())
    assert [step["name"] for step in pilot["steps"]] == ["dozens", "limited"]
    assert pilot["waiting"] == ["scale"]
    done = run_python("-m", "launch.pilot", *PILOT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    pilot = json.loads((place / "pilot.json").read_text())
    assert pilot["waiting"] == []
    last = {one["name"]: one for one in pilot["steps"][-1]["criteria"]}
    assert set(last) == {
        "lookalike precision", "label noise", "gain in R@P80 over random",
        "cost per positive",
    }  # fmt: skip
    first = {one["name"]: one["answer"] for one in pilot["steps"][0]["criteria"]}
    assert first["gain in R@P80 over random"] == "not measured"
    assert last["label noise"]["value"] == 0, "the oracle is exact"
    assert "0 of 36 answers on gold clips are wrong" in last["label noise"]["evidence"]
    assert last["label noise"]["answer"] == "no", "36 answers bound noise by 9.6 %, not by 5 %"
    assert last["label noise"]["open"]
    positives = sum(
        entry["found"][task]["positives"] for entry in pilot["account"]["rounds"] for task in TASKS
    )
    assert last["cost per positive"]["value"] == pytest.approx(80 * 3 * 0.1 / positives)
    assert f"verdict: {pilot['verdict']}" in done.stdout
    text = (place / "pilot.html").read_text()
    page = Page(text)
    words = " ".join(" ".join(page.text).split())
    for expected in (pilot["verdict"], "Step 3: scale", "SYNTHETIC", "Costs are assumed: 0.1"):
        assert expected in words
    for tag, attributes in page.tags:
        assert tag not in ("script", "link", "iframe"), "the page fetches nothing"
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert "http" not in text
    assert not np.any([row["source"] == "oracle" for row in trained_on_gold(tmp_path)])
    before = text
    done = run_python("-m", "launch.pilot", *PILOT, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (place / "pilot.html").read_text() == before
    done = run_python("-m", "launch.pilot", *PILOT, "pilot.label_noise=0.2", cwd=tmp_path)
    assert done.returncode == 1
    assert "label_noise: 0.05 -> 0.2" in done.stderr


def trained_on_gold(folder: Path) -> list[dict[str, Any]]:
    """Rows of gold clips in any training set."""
    return [
        row
        for stage in (folder / "runs" / "stages").glob("train-*")
        for row in pq.read_table(stage / "training_set.parquet").to_pylist()
        if 800_000 <= int(row["key"].rsplit("-", 1)[1]) < 900_000
    ]
