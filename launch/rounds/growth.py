"""One arm from first labels to last: train, evaluate, embed, expand, label, and again.

Every step is a stage (`lsb.artifact`) named by the hash of its inputs, so arms share what is equal
(the data, the tokens, the first model), and a killed run goes on where it stopped. Labels go into
the arm's ledger, one transaction a round.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyarrow as pa

from launch.labelling.annotation import (
    LABELLING,
    given_annotations,
    label_round,
    record_first_labels,
)
from launch.labelling.pseudo import PseudoLabelling, PseudoModel, with_pseudo_labels
from launch.rounds.growing import growing_in, grown_labels
from launch.stages.clips import first_clips, gold_clips
from launch.stages.copies import excluded_clips, media_of
from launch.stages.expansion import expand_stage, read_threshold
from launch.stages.ledgers import ArmLedger
from launch.stages.recorded import expansion_of, recorded_round
from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from launch.stages.shared import Say, Shared, evaluate_stage, train_stage
from launch.stages.shortlist import broadened_of, choice, expand_of
from lsb.artifact import Stage
from lsb.labelled import LABEL
from lsb.ledger import Ledger, Round, TaskThreshold
from lsb.search.faiss_config import FaissConfig
from lsb.search.faiss_index import build_index, train_index
from lsb.shortlist.config import UNSCORED
from lsb.store import Store
from vlmae.checkpoint import CHECKPOINT, load_checkpoint, read_thresholds
from vlmae.data.tombstones import without_tombstones
from vlmae.evaluation import read_metrics

FIRST_ROUND = 0


@dataclass(frozen=True)
class GrowthRound:
    """One round of one arm, after its training.

    Attributes:
        round: 0 for the first labels.
        labels: labelled clips trained on.
        positives: task -> positive labels among them.
        thresholds: task -> operating threshold of the model.
        metrics: task -> see `vlmae.evaluation.read_metrics`; empty where it was not measured.
        counts: of the expansion that brought this round's labels; empty for round 0.
        threshold: LT of that expansion, or None; None, too, where tasks have their own.
        seconds: stage -> seconds it cost when it was made.
        evaluated: directory name of the stage with the predictions of the measured clips; None
            where it was not measured.
        pseudo: what the model labelled itself, see `PseudoLabelling.label`; None where it may not.
        stages: name -> stages that this round's model was made and used by.
        task_thresholds: LT of each task, where the shortlist that brought this round's labels was
            made stream by stream; else empty.
    """

    round: int
    labels: int
    positives: dict[str, int]
    thresholds: dict[str, float]
    metrics: dict[str, dict[str, Any]]
    counts: dict[str, int]
    threshold: dict[str, Any] | None
    seconds: dict[str, float]
    evaluated: str | None
    pseudo: dict[str, Any] | None = None
    stages: dict[str, list[Stage]] = field(default_factory=dict)
    task_thresholds: tuple[TaskThreshold, ...] = ()


def grow(
    settings: Settings,
    shared: Shared,
    folder: RunFolder,
    say: Say,
    ledger_of: ArmLedger | None = None,
    *,
    measure_all: bool = True,
) -> list[GrowthRound]:
    """Run or resume all rounds of `settings.arm`.

    Args:
        settings: of this arm.
        shared: data and tokens.
        folder: of the run.
        say: called with what begins.
        ledger_of: where the labels are; None for the arm's of the run.
        measure_all: measure the model of every round on the measured clips, or that of the last
            round alone; nothing else depends on it.
    """
    place = ledger_of or settings.ledger
    rounds: list[GrowthRound] = []
    with place.open() as ledger:
        _record_first_labels(settings, shared, ledger)
        gold = _gold(settings, ledger)
        pseudo = PseudoLabelling(settings, shared, ledger)
        brought: _Brought | None = None
        for number in range(settings.rounds + 1):
            clock = _Clock(folder, say, f"{settings.arm}, round {number}")
            if brought is not None:
                record = brought.record(settings.arm, number)
                label_round(
                    settings, shared, ledger, brought.stage, brought.shortlist, record, clock.run
                )
            ledger.adjudicate(settings.merge, number)
            labelled = _labelled(settings, ledger, number)
            model = brought.model if brought else None
            own = pseudo.label(number, labelled, gold, model, clock.run, say)
            used = with_pseudo_labels(settings, ledger, labelled, number)
            growing = growing_in(settings, shared, place.location)
            train = partial(train_stage, settings, shared, used, gold, growing)
            trained = clock.run("train", train)
            if growing is not None:
                labelled = grown_labels(settings, trained)
            measured = None
            if measure_all or number == settings.rounds:
                measured = clock.run("evaluate", partial(evaluate_stage, settings, shared, trained))
            rounds.append(
                GrowthRound(
                    number,
                    labelled.num_rows,
                    _positives(labelled, settings.tasks),
                    read_thresholds(trained.path / CHECKPOINT),
                    read_metrics(measured) if measured else {},
                    brought.counts if brought else {},
                    brought.threshold if brought else None,
                    clock.seconds,
                    measured.path.name if measured else None,
                    own,
                    clock.stages,
                    brought.task_thresholds if brought else (),
                )
            )
            if number < settings.rounds:
                asking = settings.in_round(number + 1)
                brought = _recorded(asking, ledger, number + 1)
                if brought is None:
                    brought = _expand(asking, shared, ledger, trained, number + 1, clock)
    return rounds


def final_labels(settings: Settings, last: GrowthRound) -> tuple[pa.Table, pa.Table]:
    """The training set of the last round and the gold labels.

    Args:
        settings: of the arm.
        last: the last round.
    """
    with settings.ledger.open(create=False) as ledger:
        gold = _gold(settings, ledger)
        if settings.growing.on:
            return grown_labels(settings, last.stages["train"][-1]), gold
        labelled = _labelled(settings, ledger, settings.rounds)
        return with_pseudo_labels(settings, ledger, labelled, settings.rounds), gold


@dataclass(frozen=True)
class _Brought:
    """What an expansion brought to the round after it.

    Its stage and its model are None where the round is in the ledger already, see
    `launch.stages.recorded`.
    """

    stage: Stage | None
    checkpoint: str
    store: str
    threshold: dict[str, Any] | None
    counts: dict[str, int]
    shortlist: Stage | None = None
    model: PseudoModel | None = None
    task_thresholds: tuple[TaskThreshold, ...] = ()

    def record(self, arm: str, number: int) -> Round:
        """Of the round, for the ledger."""
        threshold = self.threshold or {}
        return Round(
            number,
            arm,
            self.checkpoint,
            self.store,
            threshold.get("value"),
            threshold.get("precision"),
            threshold.get("pairs"),
            self.task_thresholds,
        )


class _Clock:
    """Runs stages of one round, keeps their seconds and says what begins."""

    def __init__(self, folder: RunFolder, say: Say, title: str) -> None:
        self.folder, self.say, self.title = folder, say, title
        self.seconds: dict[str, float] = {}
        self.stages: dict[str, list[Stage]] = {}

    def run(self, name: str, make: Callable[[], Stage]) -> Stage:
        self.say(f"{self.title}: {name}")
        stage = self.folder.use(make())
        self.seconds[name] = self.seconds.get(name, 0.0) + stage.seconds
        self.stages.setdefault(name, []).append(stage)
        return stage


def _record_first_labels(settings: Settings, shared: Shared, ledger: Ledger) -> None:
    """Round 0: the first labels by the annotator, and gold labels that no training sees."""
    first, gold = first_clips(settings, shared.truth), gold_clips(settings, shared.truth)
    trusted = given_annotations(gold, settings.tasks, source="gold", labeller="gold")
    if not trusted.num_rows:
        raise ValueError("no gold clip can be decoded: give data.gold at least a few clips")
    record_first_labels(settings, shared, ledger, first, trusted)


def _labelled(settings: Settings, ledger: Ledger, number: int) -> pa.Table:
    return without_tombstones(settings.stages, ledger.training_set(number, LABELLING))


def _gold(settings: Settings, ledger: Ledger) -> pa.Table:
    return without_tombstones(settings.stages, ledger.training_set(FIRST_ROUND, ["gold"]))


def _recorded(settings: Settings, ledger: Ledger, number: int) -> _Brought | None:
    held = recorded_round(settings.stages, ledger, number)
    if held is None:
        return None
    stage = expansion_of(settings.stages, held, expand_of(settings))
    broadened = broadened_of(settings, held)
    return _Brought(
        None,
        held.checkpoint_hash,
        held.store_hash,
        read_threshold(broadened) if broadened else None,
        _counts(settings, stage) if stage else {},
        task_thresholds=held.task_thresholds,
    )


def _expand(
    settings: Settings,
    shared: Shared,
    ledger: Ledger,
    trained: Stage,
    number: int,
    clock: _Clock,
) -> _Brought:
    checkpoint = load_checkpoint(trained.path / CHECKPOINT, shared.source.identities)
    exclude = excluded_clips(settings, shared, ledger.asked_ids(number - 1))
    gold_labels = _gold(settings, ledger)
    found = choice(
        settings,
        shared,
        trained,
        thresholds=checkpoint.thresholds,
        labelled=_labelled(settings, ledger, number - 1),
        gold=gold_labels,
        exclude=exclude,
        number=number,
        run=clock.run,
    )
    stage = clock.run(
        "expand",
        partial(
            expand_stage,
            settings.stages,
            found.pool,
            found.gold,
            gold_labels=gold_labels,
            thresholds=found.thresholds,
            config=found.expand,
            round=number,
            exclude=exclude,
            index=_index(settings, found.pool, clock),
            media=media_of(settings, shared, clock.run),
        ),
    )
    threshold = read_threshold(stage)  # of this store: LT in pooled space is another
    value = threshold["value"] if threshold else None
    model = PseudoModel(trained, checkpoint.sha256, found.pool, found.gold, value)
    return _Brought(
        stage,
        checkpoint.sha256,
        found.pool.content,
        read_threshold(found.broadened or stage),
        _counts(settings, stage),
        found.shortlist,
        model if found.thresholds else None,
        found.task_thresholds,
    )


def _counts(settings: Settings, expanded: Stage) -> dict[str, int]:
    """Those of an expansion, and how many clips of the pool were scored for it."""
    unscored = settings.shortlist.method == UNSCORED
    return {**expanded.counts, "scored": 0 if unscored else expanded.counts["pool"]}


def _index(settings: Settings, pool: Stage, clock: _Clock) -> Stage | None:
    """The index of the pool, where a search is to be approximate."""
    search = settings.expand.search
    if not isinstance(search, FaissConfig) or not settings.expand.broadening.total:
        return None
    store = Store.open(pool.path, verify=False)
    clock.run("index", partial(train_index, settings.stages, store, search))
    return clock.run("index", partial(build_index, settings.stages, store, search))


def _positives(labelled: pa.Table, tasks: tuple[str, ...]) -> dict[str, int]:
    return {task: int((labelled[LABEL + task].to_numpy() == 1).sum()) for task in tasks}
