"""Pseudo-labels in a round: off by default; on they train; people and bad gold end them."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_round import driver, without_times
from tiny_run import TinyRun, run_python

from launch.stages.settings import Settings
from lsb.annotate import ANNOTATIONS
from lsb.artifact import open_stage
from lsb.ledger import Ledger
from vlmae.config import compose_config

pytestmark = pytest.mark.slow

# 24 gold clips and two epochs: what is asked of a rule is little, so that there are pseudo-labels.
ON = (
    "experiment=tiny", "name=own", "arms=[]", "controls=false", "pseudo=agreed",
    "pseudo.target=0.4", "pseudo.minimum_gold=3", "pseudo.neighbours=3", "pseudo.agreeing=1",
    "pseudo.balanced=false", "pseudo.similarity=-1",
)  # fmt: skip
KILL = """
    from sqlalchemy import Engine, event
    @event.listens_for(Engine, "after_cursor_execute")
    def killed(connection, cursor, statement, parameters, context, executemany):
        if statement.startswith("INSERT INTO annotations") and "pseudo" in str(parameters):
            os.kill(os.getpid(), signal.SIGKILL)
"""
# In round 2 gold clips say the opposite of what they said, so that the model is wrong on them.
BAD = """
    import pyarrow as pa
    import launch.labelling.pseudo as pseudo
    label = pseudo.PseudoLabelling.label
    def wrong(self, number, labelled, gold, *others):
        if number == 2:
            for name in [n for n in gold.column_names if n.startswith("label_")]:
                values = [None if v is None else 1 - v for v in gold[name].to_pylist()]
                place = gold.column_names.index(name)
                gold = gold.set_column(place, name, pa.array(values, pa.int8()))
        return label(self, number, labelled, gold, *others)
    pseudo.PseudoLabelling.label = wrong
"""


@pytest.fixture(scope="module")
def own(tiny: TinyRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run `own`, beside the tiny run without pseudo-labels."""
    folder = tmp_path_factory.mktemp("own")
    shutil.copytree(tiny.runs, folder / "runs")
    done = run_python("-m", "launch.round", *ON, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "labels by the model itself" in done.stdout
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "runs" / "own" / "summary.json").read_text())


def ledger_of(folder: Path) -> Ledger:
    return Ledger.open(folder / "runs" / "own" / "lsb_lt" / "ledger.sqlite", create=False)


def training_sets(folder: Path) -> dict[int, list[dict[str, Any]]]:
    """Round -> rows of the manifest that its model was trained on."""
    stages = folder / "runs" / "stages"
    record = json.loads((folder / "runs" / "own" / "run.json").read_text())
    found = {}
    for name in record["stages"]:
        if name.startswith("train-"):
            rows = pq.read_table(stages / name / "training_set.parquet").to_pylist()
            found[max(row["round"] or 0 for row in rows)] = rows
    return found


def pseudo_in(ledger: Ledger, number: int) -> dict[tuple[str, str], int]:
    return {
        (row["key"], row["task"]): row["label"]
        for row in ledger.annotations()
        if row["source"] == "pseudo" and row["round"] == number
    }


def test_off_by_default_it_is_no_part_of_a_runs_identity() -> None:
    plain = Settings.from_config(compose_config("round", ["experiment=tiny"]))
    assert "pseudo" not in plain.identity
    on = Settings.from_config(compose_config("round", ["experiment=tiny", "pseudo=agreed"]))
    assert on.identity["pseudo"]["mode"] == "agreed"
    assert {k: v for k, v in on.identity.items() if k != "pseudo"} == plain.identity


def test_off_nothing_is_labelled_or_embedded_besides(tiny: TinyRun) -> None:
    assert not list((tiny.runs / "stages").glob("pseudo-*"))
    assert all("pseudo_labels" not in entry for entry in tiny.summary["rounds"])
    assert all("embed labelled" not in entry["seconds"] for entry in tiny.summary["rounds"])


def test_rows_of_the_round_train_with_their_weight_and_earlier_ones_do_not(own: Path) -> None:
    sets = training_sets(own)
    entries = {entry["round"]: entry for entry in summary_of(own)["rounds"]}
    assert "pseudo_labels" not in entries[0]
    with ledger_of(own) as ledger:
        for number in (1, 2):
            given = pseudo_in(ledger, number)
            assert given, "the test needs some"
            people = set(ledger.training_set(number, ["oracle"])["key"].to_pylist())
            rows = [row for row in sets[number] if row["source"] == "pseudo"]
            trained = {
                (row["key"], name.removeprefix("label_")): row[name]
                for row in rows
                for name in row
                if name.startswith("label_") and row[name] is not None
            }
            assert trained == given
            assert all(row["weight"] == 0.5 and row["round"] is None for row in rows)
            assert not {row["key"] for row in rows} & people
            assert not any(int(row["key"].rsplit("-", 1)[1]) >= 800_000 for row in rows), "gold"
            assert len(rows) <= 0.2 * len(sets[number])
            told = entries[number]["pseudo_labels"]
            assert told["clips"] == len(rows)
            assert sum(told["labels"].values()) == len(given)
            assert entries[number]["labels"] == len(people), "only people are asked and paid"
        first, second = pseudo_in(ledger, 1), pseudo_in(ledger, 2)
        assert set(first) != set(second)
        labellers = {
            (row["round"], row["labeller"])
            for row in ledger.annotations()
            if row["source"] == "pseudo"
        }
        rounds = {held.round: held.checkpoint_hash for held in ledger.rounds()}
    assert labellers == {(n, f"pseudo:{rounds[n][:16]}") for n in (1, 2)}


def test_a_persons_later_label_replaces_it(own: Path) -> None:
    """The choice of round 2 may fall on a clip that the model labelled in round 1."""
    with ledger_of(own) as ledger:
        given = pseudo_in(ledger, 1)
        (key, task), label = next(iter(sorted(given.items())))
        assert key not in ledger.training_set(1, ["oracle"])["key"].to_pylist()
        clip = ledger.training_set(1, ["pseudo"])
        place = clip["key"].to_pylist().index(key)
        assert clip["id"][place].as_py() not in set(ledger.labelled_ids(1).tolist())
        asked = {row["key"] for row in ledger.candidacies() if row["round"] == 2}
    both = {key for key, _ in given} & asked
    rows = {row["key"]: row for row in training_sets(own)[2]}
    assert all(rows[key]["source"] == "oracle" and rows[key]["weight"] == 1 for key in both)
    # And in the ledger, whatever a person says comes first.
    copy = own / "copy.sqlite"
    with sqlite3.connect(own / "runs/own/lsb_lt/ledger.sqlite") as held:
        held.execute("VACUUM INTO ?", (str(copy),))
    with Ledger.open(copy) as ledger:
        said = ledger.annotations(key)[0]
        row = {"id": bytes.fromhex(said["clip_id"]), "key": key, "task": task}
        answer = {**row, "label": 1 - label, "source": "human", "labeller": "ann"}
        ledger.import_annotations(1, pa.Table.from_pylist([answer], schema=ANNOTATIONS))
        table = ledger.training_set(1)
        at = table["key"].to_pylist().index(key)
        assert table[f"label_{task}"][at].as_py() == 1 - label


def test_again_it_makes_nothing_and_changes_nothing(own: Path) -> None:
    before = (own / "runs" / "own" / "summary.json").read_bytes()
    with ledger_of(own) as ledger:
        held = ledger.annotations()
    done = run_python("-m", "launch.round", *ON, cwd=own)
    assert done.returncode == 0, done.stderr
    assert " 0 made, " in done.stdout
    assert (own / "runs" / "own" / "summary.json").read_bytes() == before
    with ledger_of(own) as ledger:
        assert ledger.annotations() == held


def test_killed_while_they_are_recorded_it_ends_the_same(
    own: Path, tiny: TinyRun, tmp_path: Path
) -> None:
    folder = tiny.copy_of_shared_stages(tmp_path)
    killed = run_python(str(driver(folder, KILL)), *ON, cwd=folder)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    done = run_python("-m", "launch.round", *ON, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert without_times(summary_of(folder)["rounds"]) == without_times(summary_of(own)["rounds"])
    for stage in (folder / "runs" / "stages").glob("[a-z]*-*"):
        undisturbed = own / "runs" / "stages" / stage.name
        assert open_stage(stage).content == open_stage(undisturbed).content
    with ledger_of(own) as ledger, ledger_of(folder) as other:
        for number in (1, 2):
            assert pseudo_in(other, number) == pseudo_in(ledger, number)


def test_a_model_gone_bad_on_gold_labels_nothing_and_says_why(own: Path, tmp_path: Path) -> None:
    shutil.copytree(own / "runs" / "stages", tmp_path / "runs" / "stages")
    done = run_python(str(driver(tmp_path, BAD)), *ON, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    first, second = (summary_of(tmp_path)["rounds"][n]["pseudo_labels"] for n in (1, 2))
    assert first == summary_of(own)["rounds"][1]["pseudo_labels"]
    used = {(r["task"], r["label"]): r["cut"] for r in first["rules"] if not r["off"]}
    dropped = [r for r in second["rules"] if (r["task"], r["label"]) in used]
    assert dropped
    for rule in dropped:
        assert rule["earlier_cut"] == used[rule["task"], rule["label"]]
        assert rule["earlier_right"] < 0.4 * rule["earlier_gold"]
        assert second["labels"][f"{rule['task']}={rule['label']}"] == 0
        assert "switched off, the last round's rule" in rule["off"]
        assert rule["off"] in second["off"]
        assert rule["off"].split(" (")[0] in " ".join(done.stdout.split())
