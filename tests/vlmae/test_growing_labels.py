"""Labels of an expansion: from an annotator at once, from a ledger as people answer."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from lsb.annotate import annotation_table
from lsb.annotate.oracle import Oracle
from lsb.annotate.simulated import (
    FlipRates,
    SimulatedAnnotator,
    SimulatedAnnotators,
    SimulatedConfig,
)
from lsb.ids import IdArray, sample_id, sample_ids, to_arrow
from lsb.labelled import LABEL
from lsb.ledger import Ledger, MergeConfig, Round
from lsb.selection import CHOSEN
from vlmae.config import as_dict, compose_config
from vlmae.data.token_source import TokenSource
from vlmae.growing.callback import with_rows
from vlmae.growing.labels import FromAnnotator, FromAnnotators, FromLedger, label_columns
from vlmae.growing.settings import growing_of
from vlmae.ranks import Ranks
from vlmae.train import training_of

TASKS = ["relevance", "unsafe"]
NOBODY: IdArray = sample_ids([])
NONE = label_columns(TASKS).empty_table()


def candidates(*keys: str) -> pa.Table:
    rows = [
        {"id": sample_id(key), "key": key, "rank": rank, "reason": "acquisition"}
        for rank, key in enumerate(keys, 1)
    ]
    return pa.Table.from_pylist(rows, schema=CHOSEN)


def a_round(number: int, checkpoint: str = "weights") -> Round:
    return Round(number, "entropy", checkpoint, "store")


@pytest.fixture
def oracle() -> Oracle:
    keys = [f"clip-{number}" for number in range(6)]
    columns = {"id": to_arrow(sample_ids(keys)), LABEL + "relevance": [0, 1, 0, 1, 0, 1]}
    return Oracle(pa.table({**columns, LABEL + "unsafe": pa.array([1, None, 0, 0, 1, 0])}))


@pytest.mark.parametrize("kept", [True, False])
def test_an_annotator_answers_at_once(tmp_path: Path, oracle: Oracle, kept: bool) -> None:
    place = str(tmp_path / "ledger.sqlite") if kept else None
    source = FromAnnotator(oracle, "truth", place)
    asked = candidates("clip-5", "clip-1")
    for _ in range(2):  # a training that was killed asks again
        labels = source.labels(a_round(3), asked, NOBODY, NONE, TASKS)
        assert labels.schema == label_columns(TASKS)
        rows = sorted(
            (r["key"], r[LABEL + "relevance"], r[LABEL + "unsafe"]) for r in labels.to_pylist()
        )
        assert rows == [("clip-1", 1, None), ("clip-5", 1, 0)]
        assert set(labels["round"].to_pylist()) == {3}
        assert set(labels["source"].to_pylist()) == {"oracle"}
    assert labels["id"].to_pylist() == sorted(labels["id"].to_pylist())
    assert (tmp_path / "ledger.sqlite").is_file() == kept
    if kept:
        with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
            assert [held.round for held in ledger.rounds()] == [3]
            assert ledger.training_set()["key"].to_pylist() == labels["key"].to_pylist()
        with pytest.raises(ValueError, match="checkpoint_hash"):
            source.labels(a_round(3, "others"), asked, NOBODY, NONE, TASKS)


CLIPS = [f"clip-{number}" for number in range(60)]
SURE = SimulatedAnnotator(seconds=20.0, price=0.5)
CROWD = SimulatedConfig(
    {
        "ann": SURE,
        "bob": SURE,
        "zoe": SimulatedAnnotator(false_positive=1.0, false_negative=1.0, skip=0.2),
    },
    answers_per_clip=2,
)


def crowd(place: str, config: SimulatedConfig = CROWD, **merge: Any) -> FromAnnotators:
    truth = {LABEL + task: [n % 2 for n in range(len(CLIPS))] for task in TASKS}
    table = pa.table({"id": to_arrow(sample_ids(CLIPS)), **truth})
    return FromAnnotators(SimulatedAnnotators(table, config), "truth", place, MergeConfig(**merge))


def test_answers_of_several_annotators_are_merged_as_between_rounds(tmp_path: Path) -> None:
    place = str(tmp_path / "ledger.sqlite")
    asked = candidates(*CLIPS)
    for _ in range(2):  # a training that was killed asks again
        labels = crowd(place).labels(a_round(1), asked, NOBODY, NONE, TASKS)
        with Ledger.open(place) as ledger:
            answers = ledger.annotations()
            known = ledger.training_set(1, ["oracle"])
            costs = ledger.costs()
        assert labels.select(known.column_names).equals(known)
    truth = {key: number % 2 for number, key in enumerate(CLIPS)}
    wrong = {row["key"] for row in answers if row["labeller"] == "oracle:zoe"}
    agreed = {row["key"] for row in answers} - wrong
    one = {key for key in wrong if sum(row["key"] == key for row in answers) == len(TASKS)}
    assert one == set(), "nobody else skips"
    told = {key: relevance for key, relevance, _ in rows_of(labels)}
    assert {key: truth[key] for key in agreed} == told, "who disagree decide nothing"
    assert wrong
    paid = {row["payee"]: row for row in costs if row["entry"] == "judgements"}
    assert sum(row["count"] for row in paid.values()) == len(CLIPS) * 2 * len(TASKS)
    assert paid["oracle:ann"]["unit_price"] == 0.5
    (tmp_path / "ledger.sqlite").unlink()
    crowd(place).remember(a_round(1), asked, TASKS)
    with Ledger.open(place) as ledger:
        assert ledger.training_set(1, ["oracle"]).equals(known)
        assert ledger.costs() == costs


@pytest.mark.parametrize("policy", ["majority", "gold_weighted"])
def test_another_annotator_is_asked_where_two_decide_nothing(tmp_path: Path, policy: Any) -> None:
    place = str(tmp_path / "ledger.sqlite")
    asking = dataclasses.replace(CROWD, further_answers=1)
    for _ in range(2):  # a training that was killed asks again
        source = crowd(place, asking, policy=policy)
        labels = source.labels(a_round(1), candidates(*CLIPS), NOBODY, NONE, TASKS)
        with Ledger.open(place) as ledger:
            count = len(ledger.annotations())
            paid = [row["count"] for row in ledger.costs() if row["entry"] == "judgements"]
            assert ledger.undecided(MergeConfig(policy=policy), 1) == set()
    assert len({row[0] for row in rows_of(labels)}) == len(CLIPS)
    assert len(CLIPS) * 2 * len(TASKS) < sum(paid)
    assert count <= sum(paid) < len(CLIPS) * 3 * len(TASKS)


def test_what_decides_answers_is_part_of_their_identity() -> None:
    zoe = CROWD.annotators["zoe"]
    same = [
        dataclasses.replace(CROWD, hourly_wage=99.0),
        _with(ann=dataclasses.replace(SURE, seconds=1.0, price=9.0)),
    ]
    others = [
        dataclasses.replace(CROWD, seed=1),
        dataclasses.replace(CROWD, answers_per_clip=1),
        dataclasses.replace(CROWD, further_answers=1),
        _with(zoe=dataclasses.replace(zoe, skip=0.3)),
        _with(zoe=dataclasses.replace(zoe, false_positive=0.9)),
        _with(zoe=dataclasses.replace(zoe, tasks={"unsafe": FlipRates(0.5, 0.5)})),
    ]
    own = crowd("here").identity
    assert crowd("elsewhere").identity == own
    assert all(crowd("here", config).identity == own for config in same)
    assert all(crowd("here", config).identity != own for config in others)
    assert crowd("here", agreement=0.6).identity != own
    json.dumps(own)


def _with(**annotators: SimulatedAnnotator) -> SimulatedConfig:
    return dataclasses.replace(CROWD, annotators={**CROWD.annotators, **annotators})


def test_one_annotator_keeps_its_identity(oracle: Oracle) -> None:
    want = {"annotator": "oracle:noise=0.0", "answers": "truth"}
    assert FromAnnotator(oracle, "truth").identity == want


def test_several_annotators_of_a_training_alone_are_refused() -> None:
    config = compose_config("train", ["growing=every", "oracle=noisy"])
    with pytest.raises(ValueError, match=r"oracle\.kind is 'simulated'.*use oracle=exact"):
        growing_of(as_dict(config), config.task.names)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("arm=seals", r"shortlist\.name is 'seals'.*set shortlist\.name=all"),
        ("shortlist.share=0.1", r"shortlist\.share is 0\.1.*set shortlist\.share=1"),
    ],
)
def test_a_shortlist_is_refused_before_data_are_prepared(
    override: str, message: str, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("key,label_relevance\na,1\nb,0\n", "utf-8")
    tables = [f"{name}={table}" for name in ("labels", "validation")]
    task = ["task=own", "task.names=[relevance]"]
    growing = ["growing=every", f"growing.truth={table}"]

    def tokens() -> TokenSource:
        raise AssertionError("data are prepared")

    def train(*overrides: str) -> None:
        config = compose_config("train", [*tables, *task, *overrides])
        training_of(cast(dict[str, Any], as_dict(config)), Ranks(), tokens)

    with pytest.raises(ValueError, match=message):
        train(*growing, override)
    for others in ([*growing, "arm=lsb_lt"], ["arm=seals"]):
        with pytest.raises(AssertionError, match="data are prepared"):
            train(*others)


def test_excluded_keys_are_text_and_tasks_without_weights_are_alike(tmp_path: Path) -> None:
    (tmp_path / "out.csv").write_text("key\n0001\n0002\n", "utf-8")
    people = f"growing.labels=ledger growing.ledger={tmp_path}/ledger.sqlite".split()
    tasks = ["task=own", "task.names=[spam,nsfw]", "acquisition=entropy"]
    options = [*people, *tasks, "growing=every", f"growing.exclude={tmp_path}/out.csv"]
    config = compose_config("train", options)
    growing = growing_of(as_dict(config), config.task.names)
    assert growing is not None
    assert set(growing.exclude) == set(sample_ids(["0001", "0002"]))
    assert growing.expand.acquisition.task_weights == {"spam": 1.0, "nsfw": 1.0}


def test_a_round_whose_ledger_is_lost_is_remembered(tmp_path: Path, oracle: Oracle) -> None:
    place = tmp_path / "ledger.sqlite"
    source = FromAnnotator(oracle, "truth", str(place))
    asked = candidates("clip-2")
    source.labels(a_round(1), asked, NOBODY, NONE, TASKS)
    place.unlink()
    for _ in range(2):
        source.remember(a_round(1), asked, TASKS)
    with Ledger.open(place, create=False) as ledger:
        assert ledger.training_set()["key"].to_pylist() == ["clip-2"]


def test_a_ledger_gives_what_people_have_answered_by_then(tmp_path: Path) -> None:
    place = str(tmp_path / "ledger.sqlite")
    source = FromLedger(place)
    asked = candidates("clip-0", "clip-1")
    assert source.labels(a_round(1), asked, NOBODY, NONE, TASKS).num_rows == 0
    with Ledger.open(place) as ledger:
        assert {row["key"] for row in ledger.candidacies()} == {"clip-0", "clip-1"}
        for key, label in (("clip-1", 1), ("clip-9", 0)):  # the other was asked by somebody else
            answer = ([sample_id(key)], [key], ["unsafe"], [label])
            told = annotation_table(*answer, source="human", labeller="ann")
            ledger.import_annotations(1, told)
    pending = sample_ids(["clip-0", "clip-1"])
    late = source.labels(a_round(2), candidates("clip-3"), pending, NONE, TASKS)
    assert late.to_pylist() == [
        {
            "id": sample_id("clip-1"),
            "key": "clip-1",
            "round": 2,
            LABEL + "relevance": None,
            LABEL + "unsafe": 1,
            "source": "human",
        }
    ]
    (tmp_path / "ledger.sqlite").unlink()
    source.remember(a_round(1), asked, TASKS)
    with Ledger.open(place) as ledger:
        assert len(ledger.candidacies()) == 2


def told(place: str, number: int, key: str, task: str, label: int, who: str = "ann") -> None:
    with Ledger.open(place) as ledger:
        answer = ([sample_id(key)], [key], [task], [label])
        table = annotation_table(*answer, source="human", labeller=who)
        ledger.import_annotations(number, table)


def rows_of(table: pa.Table) -> list[tuple[str, int | None, int | None]]:
    return [
        (row["key"], row[LABEL + "relevance"], row[LABEL + "unsafe"]) for row in table.to_pylist()
    ]


def test_a_ledger_tells_what_has_changed_of_clips_that_have_joined(tmp_path: Path) -> None:
    place = str(tmp_path / "ledger.sqlite")
    source = FromLedger(place)
    asked = sample_ids(["clip-0", "clip-1", "clip-2"])
    source.labels(a_round(1), candidates("clip-0", "clip-1", "clip-2"), NOBODY, NONE, TASKS)
    for key in ("clip-0", "clip-1", "clip-2"):
        told(place, 1, key, "relevance", 1)
    second = candidates("clip-3")
    held = source.labels(a_round(2), second, asked, NONE, TASKS)
    assert sorted(rows_of(held)) == [(f"clip-{n}", 1, None) for n in range(3)]
    other = {"id": [sample_id("clip-9")], "key": ["clip-9"], "round": [1], "source": ["human"]}
    stranger = pa.table({**other, **{LABEL + task: [0] for task in TASKS}}).select(
        held.column_names
    )
    held = pa.concat_tables([held, stranger.cast(held.schema)])
    told(place, 1, "clip-0", "unsafe", 0)
    told(place, 1, "clip-1", "relevance", 0, "bob")  # undecided now
    third = candidates("clip-4")
    news = source.labels(a_round(3), third, NOBODY, held, TASKS)
    assert sorted(rows_of(news)) == [("clip-0", 1, 0), ("clip-1", None, None)]
    assert set(news["round"].to_pylist()) == {3}
    for _ in range(2):  # a training that was killed asks again
        assert source.labels(a_round(3), third, NOBODY, held, TASKS).equals(news)
    grown = with_rows(held, news, asked)
    assert rows_of(grown) == [row for row in [
        *((key, 1, 0 if key == "clip-0" else None) for key in held["key"].to_pylist()[:3]),
        ("clip-9", 0, 0),
    ] if row[0] != "clip-1"]  # fmt: skip
    assert grown["round"].to_pylist() == [2, 2, 1], "a clip keeps the round in which it came"
    assert source.labels(a_round(3), third, sample_ids(["clip-1"]), grown, TASKS).num_rows == 0
    told(place, 1, "clip-1", "relevance", 0, "eve")
    back = source.labels(a_round(4), candidates("clip-5"), sample_ids(["clip-1"]), grown, TASKS)
    assert rows_of(back) == [("clip-1", 0, None)]
    assert with_rows(grown, back, asked)["round"].to_pylist() == [2, 2, 1, 4]


def test_new_rows_take_the_columns_of_the_training_set() -> None:
    ids = to_arrow(sample_ids(["a", "b"]))
    base = pa.table({"id": ids, "key": ["a", "b"], LABEL + "unsafe": pa.array([1, 0], pa.int64())})
    base = base.append_column("weight", pa.array([2.0, 1.0])).append_column(
        "source", pa.array(["human"] * 2)
    )
    row = {"id": sample_id("c"), "key": "c", "round": 4, LABEL + "unsafe": 1, "source": "oracle"}
    new = pa.Table.from_pylist([row], schema=label_columns(["unsafe"]))
    joined = with_rows(base, new, NOBODY)
    assert joined["round"].to_pylist() == [0, 0, 4]
    assert joined["weight"].to_pylist() == [2.0, 1.0, None]
    assert joined[LABEL + "unsafe"].to_pylist() == [1, 0, 1]
    assert joined["source"].to_pylist() == ["human", "human", "oracle"]
    with pytest.raises(ValueError, match="'c'"):
        with_rows(joined, new, NOBODY)
    assert np.array_equal(with_rows(joined, new.slice(0, 0), NOBODY)["key"], joined["key"])
