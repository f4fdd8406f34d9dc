"""How a round's clips come by labels: simulated annotators answer at once, people when they can.

A round whose annotators are people is recorded with its candidates alone; the run then stops and
says what it waits for. `launch.annotate` hands the clips off and takes answers into the ledger, and
the run goes on when it is started again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from launch.labelling.handoff import RoundFolder
from launch.stages.annotators import HandOffConfig
from launch.stages.copies import with_carried
from launch.stages.recorded import record_without_tombstones, recorded_round
from launch.stages.settings import Settings
from launch.stages.shared import Shared
from launch.stages.shortlist import with_provenance
from lsb import ids as sample_ids
from lsb.annotate import annotation_table
from lsb.annotate.oracle import Oracle
from lsb.annotate.simulated import (
    COSTS,
    Judged,
    OpenItems,
    SimulatedAnnotators,
    SimulatedConfig,
)
from lsb.artifact import Counts, Part, Stage, run_stage
from lsb.labelled import LABEL
from lsb.ledger import Ledger, Round
from lsb.ledger.judgements import Undecided, record_judgements
from lsb.selection import CHOSEN
from vlmae.data.tombstones import without_tombstones

FIRST_ROUND = 0
LABELLING = ("oracle", "human")
"""Sources of the labels that a round trains on."""
GIVEN = "given"
"""Labeller of labels that came with the media."""
WAITING = 75
"""Exit code of a run that waits for people: not a failure, come again (EX_TEMPFAIL)."""
ANNOTATIONS_FILE, COSTS_FILE = "annotations.parquet", "costs.parquet"
RunStage = Callable[[str, Callable[[], Stage]], Stage]


class WaitingForPeople(SystemExit):
    """A round has clips that nobody has answered yet; ends the process with `WAITING`."""

    def __init__(self, message: str) -> None:
        super().__init__(WAITING)
        self.message = message


def record_first_labels(
    settings: Settings, shared: Shared, ledger: Ledger, first: pa.Table, gold: pa.Table
) -> None:
    """Round 0: the first labels and gold labels.

    With people as annotators the first labels are those of the truth table, or of the table that
    came with their media: a round starts from labels that are there.

    Args:
        settings: of the arm.
        shared: data and tokens.
        ledger: of the arm.
        first: id, key and `label_<task>` of the clips that are labelled at the start.
        gold: schema `lsb.annotate.ANNOTATIONS`.
    """
    if settings.data.composed is None and isinstance(settings.oracle, HandOffConfig):
        given = given_annotations(first, settings.tasks, source="human", labeller=GIVEN)
        judged = Judged(given, COSTS.empty_table())
    else:
        again = Undecided.of(ledger, FIRST_ROUND, settings.merge)
        judged = judge(settings, shared, first, again)
    record = Round(FIRST_ROUND, "first", checkpoint_hash="", store_hash="")
    _record(
        settings,
        ledger,
        record,
        CHOSEN.empty_table(),
        pa.concat_tables([judged.annotations, gold]),
        judged.costs,
    )


def given_annotations(
    clips: pa.Table, tasks: Sequence[str], *, source: str, labeller: str
) -> pa.Table:
    """Labels of a table as annotations, schema `lsb.annotate.ANNOTATIONS`.

    Args:
        clips: id, key, and `label_<task>` of each task; null where nobody knows.
        tasks: names.
        source: of the labels.
        labeller: whose they are.
    """
    ids, keys = clips["id"].to_pylist(), clips["key"].to_pylist()
    rows = [
        (clip, key, task, label)
        for task in sorted(tasks)
        for clip, key, label in zip(ids, keys, clips[LABEL + task].to_pylist(), strict=True)
        if label is not None
    ]
    columns = list(zip(*rows, strict=True)) if rows else [(), (), (), ()]
    return annotation_table(*columns, source=source, labeller=labeller)


def label_round(
    settings: Settings,
    shared: Shared,
    ledger: Ledger,
    expanded: Stage | None,
    listed: Stage | None,
    record: Round,
    run: RunStage,
) -> None:
    """Have a round's candidates labelled and write the round into the ledger.

    Args:
        settings: of the arm.
        shared: data and tokens.
        ledger: of the arm.
        expanded: the expansion with the candidates; None where the round is recorded and stays,
            see `launch.stages.recorded`.
        listed: the shortlist that the candidates were chosen from, which knows what brought them.
        record: of the round.
        run: runs a stage and keeps its seconds.

    Raises:
        WaitingForPeople: people have not answered enough of it yet.
    """
    people = isinstance(settings.oracle, HandOffConfig)
    if expanded is not None:
        candidates = pq.read_table(expanded.path / "candidates.parquet")
        if listed is not None:
            candidates = with_provenance(candidates, listed)
        candidates = without_tombstones(settings.stages, candidates)
        if people:
            record_without_tombstones(settings.stages, ledger, record, candidates, None)
        else:
            again = Undecided.of(ledger, record.round, settings.merge)
            stage = run("label", partial(_label, settings, shared, expanded, candidates, again))
            costs = stage.path / COSTS_FILE
            _record(
                settings,
                ledger,
                record,
                candidates,
                with_carried(settings, ledger, expanded, stage),
                pq.read_table(costs) if costs.is_file() else COSTS.empty_table(),
            )
    if people:
        _close_or_wait(settings, ledger, record.round)


def _close_or_wait(settings: Settings, ledger: Ledger, number: int) -> None:
    folder = RoundFolder(settings, number)
    progress = folder.progress(ledger)
    if folder.closed or progress.is_enough:
        folder.close(ledger)
        if left := folder.progress(ledger).left_text:
            print(f"{settings.arm}, round {number} goes on; {left}", file=sys.stderr)
        return
    overrides = " ".join(["experiment=...", f"arm={settings.arm}"])
    message = (
        f"{settings.arm}, round {number} waits for people: {progress.text}. "
        f"python -m launch.annotate push {overrides} hands the clips off, pull takes answers, "
        "close goes on with fewer; then run this command again"
    )
    print(message, file=sys.stderr)
    raise WaitingForPeople(message)


def _record(
    settings: Settings,
    ledger: Ledger,
    record: Round,
    candidates: pa.Table,
    annotations: pa.Table,
    costs: pa.Table,
) -> None:
    # A round that stays as it is recorded keeps its costs, too.
    stays = recorded_round(settings.stages, ledger, record.round) is not None
    record_without_tombstones(settings.stages, ledger, record, candidates, annotations)
    if not stays:
        record_judgements(ledger, record.round, costs)


def _label(
    settings: Settings, shared: Shared, expanded: Stage, candidates: pa.Table, again: Undecided
) -> Stage:
    """The answers of simulated annotators as a stage."""
    priced = isinstance(settings.oracle, SimulatedConfig)
    others = isinstance(settings.oracle, SimulatedConfig) and settings.oracle.further_answers
    files = (ANNOTATIONS_FILE, COSTS_FILE) if priced else (ANNOTATIONS_FILE,)
    return run_stage(
        settings.stages,
        "label",
        config={"oracle": _identity(settings), "tasks": list(settings.tasks)},
        inputs={
            "candidates": expanded.content,
            "data": shared.data.content,
            **({"labels": shared.labels} if shared.labels else {}),
            **({"undecided": again.identity} if others else {}),
        },
        parts=[
            Part("annotations", files, partial(_ask, settings, shared, candidates, again, files))
        ],
    )


def _ask(
    settings: Settings,
    shared: Shared,
    candidates: pa.Table,
    again: Undecided,
    files: tuple[str, ...],
    output: Path,
) -> Counts:
    judged = judge(settings, shared, candidates, again)
    pq.write_table(judged.annotations, output / ANNOTATIONS_FILE)
    if COSTS_FILE in files:
        pq.write_table(judged.costs, output / COSTS_FILE)
    return {"annotations": judged.annotations.num_rows}


def judge(
    settings: Settings, shared: Shared, clips: pa.Table, again: OpenItems | None = None
) -> Judged:
    """Answers of the simulated annotators about clips, and what they cost.

    Args:
        settings: of the arm; where its annotators are people, the truth answers.
        shared: its truth table.
        clips: id and key.
        again: which items others are asked about, see `SimulatedAnnotators.judge`.
    """
    ids, keys = sample_ids.from_arrow(clips["id"]), sample_ids.texts(clips["key"])
    people = isinstance(settings.oracle, HandOffConfig)
    annotator = Oracle(shared.truth) if people else simulated(settings, shared)
    if isinstance(annotator, SimulatedAnnotators):
        return annotator.judge(ids, keys, settings.tasks, again)
    return Judged(annotator.annotate(ids, keys, settings.tasks), COSTS.empty_table())


def simulated(settings: Settings, shared: Shared) -> Oracle | SimulatedAnnotators:
    """Annotators that answer at once, from the truth.

    Raises:
        ValueError: the arm's annotators are people.
    """
    if isinstance(settings.oracle, HandOffConfig):
        raise ValueError(
            f"oracle.kind is {settings.oracle.kind!r}: people cannot answer while a training runs; "
            "use oracle=exact or noisy, growing.labels=ledger, or growing=none"
        )
    if isinstance(settings.oracle, SimulatedConfig):
        return SimulatedAnnotators(shared.truth, settings.oracle)
    return Oracle(shared.truth, **settings.oracle)


def _identity(settings: Settings) -> Mapping[str, Any]:
    """The annotator as a stage's config names it."""
    assert not isinstance(settings.oracle, HandOffConfig), "people make no stage"
    if isinstance(settings.oracle, SimulatedConfig):
        return settings.oracle.identity()
    return dict(settings.oracle)
