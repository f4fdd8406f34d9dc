"""launch.round with a training that grows, instead of rounds of stages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_run import TinyRun, run_python

from launch.rounds import controls, growth
from launch.rounds.growing import growing_in
from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from lsb.artifact import Stage
from lsb.ids import sample_ids, to_arrow
from lsb.labelled import LABEL
from lsb.ledger import Ledger
from vlmae.config import compose_config, conf_dir
from vlmae.growing.labels import label_columns

GROWN = ("growing=every", "growing.every_epochs=1", "growing.rounds=1")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), ("launcher=local", "launcher.tasks=2")])
def test_one_training_adds_the_labels_of_a_round(
    launcher: tuple[str, ...], tiny: TinyRun, tmp_path: Path
) -> None:
    """Also where tasks embed: the pool is embedded by weights that the training alone has."""
    folder = tiny.copy_of_shared_stages(tmp_path)
    small = ("experiment=tiny", "name=grown", "rounds=0", "arms=[]", "controls=false")
    overrides = (*small, *GROWN, *launcher)
    done = run_python("-m", "launch.round", *overrides, cwd=folder)
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "runs" / "grown" / "summary.json").read_text())
    first = tiny.summary["rounds"][0]["labels"]
    assert [entry["labels"] for entry in summary["rounds"]] == [first + 16]
    (trained,) = (folder / "runs" / "stages").glob("train-*[0-9a-f]")
    candidates = pq.read_table(trained / "expansion-1.candidates.parquet")
    with Ledger.open(folder / "runs" / "grown" / "lsb_lt" / "ledger.sqlite") as ledger:
        assert [(held.round, held.arm) for held in ledger.rounds()] == [(0, "first"), (1, "lsb_lt")]
        asked = {row["key"] for row in ledger.candidacies()}
        assert asked == set(candidates["key"].to_pylist())
        assert ledger.training_set(1, ["oracle"]).num_rows == first + 16


def test_rounds_and_growing_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="set rounds=0, or growing=none"):
        Settings.from_config(compose_config("round", ["experiment=tiny", *GROWN]))


def test_a_run_that_does_not_grow_keeps_its_identity() -> None:
    settings = Settings.from_config(compose_config("round", ["experiment=tiny"]))
    assert "growing" not in settings.identity
    grown = Settings.from_config(compose_config("round", ["experiment=tiny", "rounds=0", *GROWN]))
    assert grown.identity["growing"]["every_epochs"] == 1


def settings_of(*overrides: str) -> Settings:
    return Settings.from_config(
        compose_config("round", ["experiment=tiny", "rounds=0", *GROWN, *overrides])
    )


SHORTLISTED = ("anchoral", "lsb_streams", "proxy", "proxy_streams", "seals")
"""Arms that choose from a shortlist where everything may be scored, too."""


@pytest.mark.parametrize(
    ("override", "message"),
    [
        *((f"arm={arm}", r"shortlist\.name is .*set shortlist\.name=all") for arm in SHORTLISTED),
        ("shortlist.share=0.5", r"shortlist\.share is 0\.5, .*set shortlist\.share=1"),
        ("pseudo=agreed", r"pseudo\.mode is 'agreed'.*set pseudo=none"),
        ("budgets=[8,16]", r"budgets is \[8, 16\].*leave budgets empty"),
    ],
)
def test_what_a_training_that_grows_would_not_do_is_refused(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"{message}, or grow between rounds"):
        settings_of(override)
    not_grown = ["experiment=tiny", override]
    Settings.from_config(compose_config("round", not_grown))


@pytest.mark.parametrize(
    "arm", sorted({path.stem for path in Path(conf_dir(), "arm").iterdir()} - set(SHORTLISTED))
)
def test_arms_that_score_everything_grow_as_they_are_called(arm: str) -> None:
    assert settings_of(f"arm={arm}").arm == arm


def test_an_ignored_shortlist_is_one_line_and_nothing_is_made(tmp_path: Path) -> None:
    small = ("experiment=tiny", "rounds=0", "arm=seals")
    done = run_python("-m", "launch.round", *small, *GROWN, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: shortlist.name is 'seals', and a training that grows")
    assert len(done.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def shared_of() -> Any:
    truth = {"id": to_arrow(sample_ids(["a"])), "key": ["a"]}
    labels = {LABEL + task: [1] for task in settings_of().tasks}
    return SimpleNamespace(data=SimpleNamespace(content="data"), truth=pa.table(truth | labels))


def test_who_answers_is_part_of_a_training_that_grows() -> None:
    def hashed(*overrides: str) -> dict[str, Any]:
        growing = growing_in(settings_of(*overrides), shared_of(), "ledger.sqlite")
        assert growing is not None
        return growing.hashed()["answers"]

    assert hashed() == {"annotator": "oracle:noise=0.0", "answers": "data"}
    noisy = hashed("oracle=noisy")
    for other in ("annotators.usual.skip=0.5", "seed=1", "answers_per_clip=3"):
        assert hashed("oracle=noisy", f"oracle.{other}") != noisy
    assert hashed("oracle=noisy", "ledger.agreement=0.9") != noisy
    assert hashed("oracle=noisy", "growing.ledger=other.sqlite") == noisy
    with pytest.raises(ValueError, match=r"leave growing\.ledger unset, or use ledger=majority"):
        hashed("oracle=noisy", "growing.ledger=other.sqlite", "ledger=gold_weighted")
    assert hashed("oracle=noisy", "ledger=gold_weighted") != noisy


GROWN_BY_PEOPLE = ("growing.labels=ledger", "growing.ledger=people.sqlite")


def trained_on(folder: Path, tasks: Sequence[str], **rounds: int) -> Stage:
    """A training whose manifest has clips by name, each of a round, with more columns beside."""
    ids = sample_ids(list(rounds))
    columns = {
        "shard": ["x"] * len(ids),
        "weight": [2.0] * len(ids),
        "source": ["human"] * len(ids),
    }
    labels = {LABEL + task: pa.array([1, 0, None][: len(ids)], pa.int8()) for task in tasks}
    named = {"id": to_arrow(ids), "key": list(rounds), "round": list(rounds.values())}
    folder.mkdir()
    pq.write_table(pa.table({**columns, **labels, **named}), folder / "training_set.parquet")
    return Stage(folder, {"content": "trained"}, 1.0, reused=True)


def test_what_was_grown_elsewhere_is_counted_and_controls_train_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The arm's own ledger has round 0 alone."""
    settings = settings_of(*GROWN_BY_PEOPLE, f"runs={tmp_path}")
    trained = trained_on(tmp_path / "train", settings.tasks, first=0, more=1, third=1)
    used: list[pa.Table] = []

    def train(_settings: Settings, _shared: Any, labelled: pa.Table, *_more: object) -> Stage:
        used.append(labelled)
        return trained

    for module in (growth, controls):
        monkeypatch.setattr(module, "train_stage", train)
        monkeypatch.setattr(module, "evaluate_stage", lambda *_: trained)
        monkeypatch.setattr(module, "read_metrics", lambda _: {})
    monkeypatch.setattr(growth, "read_thresholds", lambda _: {})
    monkeypatch.setattr(growth, "_record_first_labels", lambda *_: None)
    monkeypatch.setattr(growth, "with_pseudo_labels", lambda _s, _l, labelled, _n: labelled)
    folder = RunFolder(settings.folder, settings.identity)
    (last,) = growth.grow(settings, shared_of(), folder, lambda _: None)
    assert last.labels == 3
    assert last.positives == dict.fromkeys(settings.tasks, 1)
    used.clear()
    controls.measure_controls(settings, shared_of(), folder, last, lambda _: None)
    assert len(used) == len(controls.CONTROLS)
    for labelled in used:
        assert set(labelled["key"].to_pylist()) == {"first", "more", "third"}
        assert labelled["id"].to_pylist() == sorted(labelled["id"].to_pylist())
        assert labelled.column_names == label_columns(settings.tasks).names, "no weights twice"
