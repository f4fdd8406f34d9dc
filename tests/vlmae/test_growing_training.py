"""A training that grows, on one process: what it equals, records, refuses."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from lsb.acquisition.config import AcquisitionConfig
from lsb.acquisition.seeds import BroadeningConfig
from lsb.annotate import annotation_table
from lsb.annotate.oracle import Oracle
from lsb.annotate.simulated import SimulatedAnnotator, SimulatedAnnotators, SimulatedConfig
from lsb.artifact import Stage, file_sha256, read_json
from lsb.expand import ExpandConfig
from lsb.ids import IdArray, from_arrow, sample_ids, texts
from lsb.ledger import Ledger, Round
from lsb.search.faiss_config import FaissConfig
from lsb.selection import SelectionConfig
from lsb.threshold import ThresholdConfig
from vlmae.best import KeepBest
from vlmae.checkpoint import CHECKPOINT
from vlmae.data.loader import LoaderConfig
from vlmae.data.prefix_cache import Prefix
from vlmae.data.token_source import CachedTokens, LiveTokens
from vlmae.embedding import EmbedConfig, Scoring, embed_fused
from vlmae.growing.callback import GrowBetweenEpochs
from vlmae.growing.config import Growing, GrowingConfig
from vlmae.growing.labels import FromAnnotator, FromAnnotators, FromLedger
from vlmae.strategy import StrategyConfig
from vlmae.trainer import TrainConfig
from vlmae.validation import BEST

TrainIn = Callable[..., Stage]
LabelTable = Callable[..., pa.Table]
WEIGHTS = {"relevance": 1.0, "unsafe": 1.0}
ENTROPY = ExpandConfig(
    acquisition=AcquisitionConfig("entropy", WEIGHTS),
    broadening=BroadeningConfig(0, 0),
    threshold=ThresholdConfig("none"),
)
BROAD = dataclasses.replace(
    ENTROPY, broadening=BroadeningConfig(1, 2, confidence=0.5), threshold=ThresholdConfig("fixed")
)
EVERY = GrowingConfig(every_epochs=1, rounds=2, budget=3)
SAME = (CHECKPOINT, "history.csv", "training_set.parquet", "validation.parquet")


@pytest.fixture
def oracle(labels_of: LabelTable) -> Oracle:
    return Oracle(labels_of("pool"))


def steps(epochs: int = 4, **changes: Any) -> TrainConfig:
    return dataclasses.replace(TrainConfig(0, epochs, 8, "cpu", 1, 0.8, "both"), **changes)


def drawing(model: dict[str, Any]) -> dict[str, Any]:
    """The same model, in which every step draws random numbers."""
    return {**model, "dropout": 0.4, "modality_dropout": {"audio": 0.3}}


def candidates_of(stage: Stage, number: int) -> pa.Table:
    return pq.read_table(stage.path / f"expansion-{number}.candidates.parquet")


@pytest.mark.parametrize("strategy", ["ddp", "zero3"])
def test_an_expansion_that_adds_nothing_leaves_no_trace(
    tmp_path: Path, train_in: TrainIn, model_config: dict[str, Any], strategy: str
) -> None:
    sharded = {"bucket_size": 2000, "persist_below": 0} if strategy == "zero3" else {}
    options: dict[str, Any] = {
        "config": steps(trace=str(tmp_path / "trace"), validate_every=2),
        "model": drawing(model_config),
        "strategy": StrategyConfig(strategy, **sharded),
        "loader": LoaderConfig(workers=1),
    }
    plain = train_in(tmp_path / "plain", **options)
    clips = (tmp_path / "trace" / "rank-0.csv").read_text()
    nobody = FromLedger(str(tmp_path / "ledger.sqlite"))
    grown = train_in(tmp_path / "grown", growing=Growing(EVERY, ENTROPY, nobody), **options)
    assert grown.counts["labels added"] == 0
    assert grown.path.name != plain.path.name
    assert "growing" not in plain.manifest["config"], "finished trainings keep their names"
    for name in SAME:
        assert file_sha256(grown.path / name) == file_sha256(plain.path / name), name
    assert (tmp_path / "trace" / "rank-0.csv").read_text() == clips + clips
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        asked = [row["clip_id"] for row in ledger.candidacies()]
    assert len(asked) == len(set(asked)) == 6, "what is asked already is not asked again"


def test_passes_with_dropout_are_those_of_the_embedding_stage(
    tmp_path: Path, train_in: TrainIn, source: CachedTokens, oracle: Oracle, model_config: Any
) -> None:
    bald = AcquisitionConfig("bald", WEIGHTS, dropout_samples=3)
    growing = Growing(
        dataclasses.replace(EVERY, rounds=1),
        dataclasses.replace(ENTROPY, acquisition=bald),
        FromAnnotator(oracle, "truth"),
    )
    stage = train_in(tmp_path, config=steps(2), model=drawing(model_config), growing=growing)
    folder = tmp_path / "trained"
    folder.mkdir()
    (folder / CHECKPOINT).write_bytes((stage.path / f"expansion-1.{CHECKPOINT}").read_bytes())
    trained = Stage(folder, {"content": "of the expansion"}, 0.0, reused=True)
    store = embed_fused(tmp_path, source, trained, EmbedConfig("pool"), Scoring(dropout_samples=3))
    assert store is not None
    evidence = read_json(stage.path / "expansion-1.expansion.json")
    assert evidence["pool"] == store.content
    assert evidence["checkpoint"] == file_sha256(folder / CHECKPOINT)
    assert not list(tmp_path.glob("train-*.partial")), "vectors of the expansion are gone"


def test_the_ledger_has_the_rounds_and_gets_them_back(
    tmp_path: Path, train_in: TrainIn, oracle: Oracle
) -> None:
    place = tmp_path / "ledger.sqlite"
    growing = Growing(EVERY, ENTROPY, FromAnnotator(oracle, "truth", str(place)), arm="entropy")
    workers = LoaderConfig(workers=1)  # who are ahead with the clips of before
    stage = train_in(tmp_path, config=steps(), growing=growing, loader=workers)
    manifest = pq.read_table(stage.path / "training_set.parquet")
    assert sorted(manifest["round"].to_pylist())[-6:] == [1, 1, 1, 2, 2, 2]
    for _ in range(2):
        with Ledger.open(place, create=False) as ledger:
            rounds = ledger.rounds()
            labelled = ledger.training_set()
        evidence = [read_json(stage.path / f"expansion-{k}.expansion.json") for k in (1, 2)]
        assert [(r.round, r.arm) for r in rounds] == [(1, "entropy"), (2, "entropy")]
        assert [r.checkpoint_hash for r in rounds] == [entry["checkpoint"] for entry in evidence]
        assert [r.store_hash for r in rounds] == [entry["pool"] for entry in evidence]
        new = {
            k
            for k, r in zip(texts(manifest["key"]), manifest["round"].to_pylist(), strict=True)
            if r
        }
        assert set(texts(labelled["key"])) == new
        place.unlink()
        assert train_in(tmp_path, config=steps(), growing=growing).reused


def test_annotators_who_differ_are_merged_before_their_labels_are_trained_on(
    tmp_path: Path, train_in: TrainIn, labels_of: LabelTable
) -> None:
    usual = SimulatedAnnotator(false_positive=0.5, false_negative=0.5, seconds=20.0)
    config = SimulatedConfig({"ann": usual, "bob": usual, "zoe": usual}, answers_per_clip=2)
    place = str(tmp_path / "ledger.sqlite")
    crowd = FromAnnotators(SimulatedAnnotators(labels_of("pool"), config), "truth", place)
    stage = train_in(tmp_path, config=steps(), growing=Growing(EVERY, ENTROPY, crowd))
    with Ledger.open(place, create=False) as ledger:
        known = ledger.training_set().to_pylist()
        undecided = ledger.queue().num_rows
        asked = len(ledger.candidacies())
        costs = ledger.costs()
    assert undecided
    assert asked == 6
    assert sum(row["count"] for row in costs if row["entry"] == "judgements") == 6 * 2 * 2
    manifest = pq.read_table(stage.path / "training_set.parquet").to_pylist()
    columns = ("key", "round", "label_relevance", "label_unsafe")
    grown = [[row[name] for name in columns] for row in manifest if row["round"]]
    assert grown == [[row.get(name) for name in columns] for row in known]


def test_clips_that_are_decoded_as_they_are_needed(
    tmp_path: Path, train_in: TrainIn, oracle: Oracle, data: Stage, prefix_on: Callable[..., Prefix]
) -> None:
    """Some of the gold clips, of the pool and of the labelled ones cannot be."""
    growing = Growing(dataclasses.replace(EVERY, rounds=1), BROAD, FromAnnotator(oracle, "truth"))
    live = LiveTokens(prefix_on(data))
    stage = train_in(tmp_path, source=live, config=steps(2), growing=growing)
    bad = set(texts(pq.read_table(stage.path / "quarantine.parquet")["key"]))
    asked = set(texts(candidates_of(stage, 1)["key"]))
    assert len(asked) == 3
    assert bad
    assert not asked & bad
    evidence = read_json(stage.path / "expansion-1.expansion.json")
    assert evidence["counts"]["pool"] < 16
    manifest = pq.read_table(stage.path / "training_set.parquet")
    assert manifest["round"].to_pylist().count(1) == 3


class Late(FromLedger):
    """People who answer what the first expansion asked while the next epoch is trained."""

    def labels(
        self,
        record: Round,
        candidates: pa.Table,
        pending: IdArray,
        held: pa.Table,
        tasks: Sequence[str],
    ) -> pa.Table:
        with Ledger.open(self.ledger) as ledger:
            for row in ledger.candidacies():
                answer = ([bytes.fromhex(row["clip_id"])], [row["key"]], ["relevance"], [1])
                told = annotation_table(*answer, source="human", labeller="ann")
                ledger.import_annotations(row["round"], told)
        return super().labels(record, candidates, pending, held, tasks)


def test_answers_that_come_later_join_with_the_next_expansion(
    tmp_path: Path, train_in: TrainIn
) -> None:
    late = Late(str(tmp_path / "ledger.sqlite"))
    stage = train_in(tmp_path, config=steps(), growing=Growing(EVERY, ENTROPY, late))
    first, second = (
        pq.read_table(stage.path / f"expansion-{k}.candidates.parquet") for k in (1, 2)
    )
    assert not set(texts(first["key"])) & set(texts(second["key"]))
    labels = pq.read_table(stage.path / "expansion-2.labels.parquet")
    assert sorted(texts(labels["key"])) == sorted(texts(first["key"]))
    manifest = pq.read_table(stage.path / "training_set.parquet")
    assert sum(number == 2 for number in manifest["round"].to_pylist()) == 3
    assert "human" in set(texts(manifest["source"]))
    assert stage.counts["labels added"] == 3


class InTurn(FromLedger):
    """One person judges one task before an expansion reads, another the other before the next."""

    def labels(
        self,
        record: Round,
        candidates: pa.Table,
        pending: IdArray,
        held: pa.Table,
        tasks: Sequence[str],
    ) -> pa.Table:
        with Ledger.open(self.ledger) as ledger:
            ledger.record_round(record, candidates, None)
            for row in ledger.candidacies():
                if row["round"] == 1:
                    task = tasks[record.round - 1]
                    answer = ([bytes.fromhex(row["clip_id"])], [row["key"]], [task], [1])
                    told = annotation_table(*answer, source="human", labeller=f"of-{task}")
                    ledger.import_annotations(1, told)
        return super().labels(record, candidates, pending, held, tasks)


def test_answers_in_another_task_join_with_the_next_expansion(
    tmp_path: Path, train_in: TrainIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    growing = Growing(EVERY, ENTROPY, InTurn(str(tmp_path / "ledger.sqlite")))
    stage = train_in(tmp_path / "calm", config=steps(), growing=growing)
    asked = set(texts(candidates_of(stage, 1)["key"]))
    manifest = pq.read_table(stage.path / "training_set.parquet").to_pylist()
    joined = [row for row in manifest if row["round"] == 1]
    assert {row["key"] for row in joined} == asked
    assert all(row["label_relevance"] == row["label_unsafe"] == 1 for row in joined)
    assert stage.counts["labels added"] == 3
    # Stopped behind both expansions it lands in the same place, by their files alone.
    due = GrowBetweenEpochs._due

    def stopping(self: GrowBetweenEpochs) -> int | None:
        if self.loader.next_epoch == 3:
            raise ConnectionError("gone")
        return due(self)

    root = tmp_path / "again"
    options = {
        "config": steps(save_every_steps=1),
        "growing": Growing(EVERY, ENTROPY, InTurn(str(tmp_path / "other.sqlite"))),
    }
    with monkeypatch.context() as patch:
        patch.setattr(GrowBetweenEpochs, "_due", stopping)
        with pytest.raises(ConnectionError):
            train_in(root, **options)
    assert len(list(root.glob("train-*.partial/.scratch-*/growing/epoch-*/grow-*[0-9a-f]"))) == 2
    (tmp_path / "other.sqlite").unlink()
    again = train_in(root, **options)
    for name in SAME:
        assert file_sha256(again.path / name) == file_sha256(stage.path / name), name


class Absent(FromAnnotator):
    """Cannot be reached when the second expansion asks."""

    def labels(
        self,
        record: Round,
        candidates: pa.Table,
        pending: IdArray,
        held: pa.Table,
        tasks: Sequence[str],
    ) -> pa.Table:
        if record.round == 2:
            raise ConnectionError("nobody is there")
        return super().labels(record, candidates, pending, held, tasks)


def test_an_expansion_of_other_content_is_refused(
    tmp_path: Path, train_in: TrainIn, oracle: Oracle
) -> None:
    growing = Growing(EVERY, ENTROPY, FromAnnotator(oracle, "truth"))
    calm = train_in(tmp_path / "calm", config=steps(), growing=growing)
    absent = Growing(EVERY, ENTROPY, Absent(oracle, "truth"))
    root = tmp_path / "stages"
    with pytest.raises(ConnectionError):
        train_in(root, config=steps(), growing=absent)
    (made,) = root.glob("train-*.partial/.scratch-*/growing/epoch-0001/grow-*[0-9a-f]")
    assert not list(made.parents[1].glob("epoch-0002/grow-*[0-9a-f]")), "the second is not whole"
    whole = (made / "manifest.json").read_text()

    def tampered(change: Callable[[dict[str, Any]], None]) -> None:
        manifest = json.loads(whole)
        change(manifest)
        (made / "manifest.json").write_text(json.dumps(manifest))

    tampered(lambda manifest: manifest.update(content="0" * 32))
    with pytest.raises(ValueError, match="is not the expansion that the save rests on"):
        train_in(root, config=steps(), growing=growing)
    (made / "manifest.json").write_text(whole)
    (saves,) = root.glob("train-*.partial/.scratch-*/saves")
    kept = saves.rename(tmp_path / "saves")  # from the start: the same steps, the same weights
    tampered(lambda manifest: manifest["inputs"].update(weights="others"))
    with pytest.raises(ValueError, match="is an expansion that began with other weights"):
        train_in(root, config=steps(), growing=growing)
    assert not list(root.glob("train-*[0-9a-f]"))
    (made / "manifest.json").write_text(whole)
    for found in root.glob("train-*.partial/.scratch-*/saves"):
        shutil.rmtree(found)
    kept.rename(saves)
    again = train_in(root, config=steps(), growing=growing)
    assert again.content == calm.content


def test_clips_that_are_excluded_are_never_asked_for(
    tmp_path: Path, train_in: TrainIn, oracle: Oracle, labels_of: LabelTable
) -> None:
    out = sample_ids(texts(labels_of("pool")["key"])[:8])
    growing = Growing(EVERY, ENTROPY, FromAnnotator(oracle, "truth"), exclude=out)
    stage = train_in(tmp_path, config=steps(3), growing=growing)
    for number in (1, 2):
        asked = from_arrow(
            pq.read_table(stage.path / f"expansion-{number}.candidates.parquet")["id"]
        )
        assert not set(asked.tolist()) & set(out.tolist())


def test_the_best_epoch_is_kept_with_what_it_was_trained_on(
    tmp_path: Path, train_in: TrainIn, oracle: Oracle, monkeypatch: pytest.MonkeyPatch
) -> None:
    better = KeepBest.on_validation_end

    def second_is_best(self: KeepBest, trainer: Any, module: Any) -> None:
        trainer.callback_metrics[BEST] = torch.tensor(float(trainer.current_epoch == 1))
        better(self, trainer, module)

    monkeypatch.setattr(KeepBest, "on_validation_end", second_is_best)
    growing = Growing(EVERY, ENTROPY, FromAnnotator(oracle, "truth"))
    stage = train_in(tmp_path, config=steps(keep="best", validate_every=1), growing=growing)
    assert stage.counts["best epoch"] == 1
    assert stage.counts["labels added"] == 3, "of two expansions, the second came after it"
    assert set(pq.read_table(stage.path / "training_set.parquet")["round"].to_pylist()) == {0, 1}


def test_what_cannot_be_is_refused(tmp_path: Path, train_in: TrainIn, oracle: Oracle) -> None:
    labels = FromAnnotator(oracle, "truth")
    cases: list[tuple[str, dict[str, Any]]] = [
        ("growing.every_epochs is 4 and trainer.epochs 4", {"growing": _every(4, labels)}),
        ("no clip is in it", {"growing": _every(1, labels, split="elsewhere")}),
        ("trainer.resume_from goes on", {"config": steps(resume_from="save")}),
    ]
    for message, options in cases:
        with pytest.raises(ValueError, match=message):
            train_in(tmp_path, **{"config": steps(), "growing": _every(1, labels), **options})
    with pytest.raises(ValueError, match="use search=exact"):
        Growing(EVERY, dataclasses.replace(ENTROPY, search=FaissConfig()), labels)
    for key in ("carry_labels", "media_hashes"):
        copies = SelectionConfig(near_duplicate=0.99, **{key: True})  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"set selection.{key}=false"):
            Growing(EVERY, dataclasses.replace(ENTROPY, selection=copies), labels)
    for message, settings in [
        ("give at least 0, 1 and 1", {"every_epochs": -1}),
        ("use oracle or ledger", {"labels": "nobody"}),
        ("give the path or URL of the ledger", {"every_epochs": 1, "labels": "ledger"}),
    ]:
        with pytest.raises(ValueError, match=message):
            GrowingConfig(**settings)  # type: ignore[arg-type]
    assert not list(tmp_path.glob("train-*"))


def _every(epochs: int, labels: FromAnnotator, **changes: Any) -> Growing:
    config = dataclasses.replace(EVERY, every_epochs=epochs, **changes)
    return Growing(config, ENTROPY, labels)


def test_the_budget_is_that_of_the_group(oracle: Oracle) -> None:
    wide = dataclasses.replace(ENTROPY, selection=SelectionConfig(budget=99))
    growing = Growing(EVERY, wide, FromAnnotator(oracle, "truth"))
    assert growing.expand.selection.budget == 3
    assert EVERY.epochs(9) == (1, 2)
    assert GrowingConfig().epochs(9) == ()
    hashed = growing.hashed()
    other = dataclasses.replace(growing, config=dataclasses.replace(EVERY, ledger="elsewhere"))
    assert other.hashed() == hashed, "where rounds are recorded changes no result"
