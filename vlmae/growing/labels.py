"""Where the labels of an expansion come from: annotators that answer at once, or a ledger.

All write the round into the ledger (contract 5: rounds, candidates and labels live there); asking
again for the same candidates changes nothing in it, so that a training that was killed while it
asked may ask again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import pyarrow as pa

from lsb.annotate import SOURCES, Annotator
from lsb.annotate.simulated import SimulatedAnnotators
from lsb.ids import ID_TYPE, IdArray, from_arrow, texts, to_bytes
from lsb.labelled import LABEL
from lsb.ledger import Ledger, MergeConfig, Round
from lsb.ledger.judgements import Undecided, record_judgements

TRAINING_SOURCES = tuple(source for source in SOURCES if source != "gold")


class LabelSource(Protocol):
    """Gives labels to the candidates of an expansion."""

    @property
    def identity(self) -> dict[str, Any]:
        """What of it changes results; JSON-like."""

    def labels(
        self,
        record: Round,
        candidates: pa.Table,
        pending: IdArray,
        held: pa.Table,
        tasks: Sequence[str],
    ) -> pa.Table:
        """Labels that are there now; the first rank calls it.

        Args:
            record: the round that asks.
            candidates: schema `lsb.selection.CHOSEN`.
            pending: ids of earlier candidates of this training that have no label yet.
            held: rows of the training set of earlier candidates that have: id, key, source and
                `label_<task>` of every task.
            tasks: to judge.

        Returns:
            `label_columns(tasks)` by id, one row for each candidate or pending clip with a label,
            and for each held one whose labels are others now, with all that it has now; none of
            them is a label that was withdrawn.
        """

    def remember(self, record: Round, candidates: pa.Table, tasks: Sequence[str]) -> None:
        """Record a round that was finished before, in case its ledger has been lost."""


def label_columns(tasks: Sequence[str]) -> pa.Schema:
    """id, key, round, `label_<task>` for every task, source."""
    fields: dict[str, pa.DataType] = {"id": ID_TYPE, "key": pa.string(), "round": pa.int32()}
    fields |= {LABEL + task: pa.int8() for task in tasks}
    return pa.schema({**fields, "source": pa.string()})


@dataclass(frozen=True)
class FromAnnotator:
    """Labels of one annotator that answers at once, and whose name says how.

    Attributes:
        annotator: e.g. `lsb.annotate.oracle.Oracle`; at most one answer for a clip in a task.
        answers: what its answers are known by, e.g. the hash of the truth.
        ledger: path or URL to record rounds in, or None.
    """

    annotator: Annotator
    answers: str
    ledger: str | None = None

    @property
    def identity(self) -> dict[str, Any]:
        """See `LabelSource`."""
        return {"annotator": self.annotator.name, "answers": self.answers}

    def labels(
        self,
        record: Round,
        candidates: pa.Table,
        pending: IdArray,
        held: pa.Table,
        tasks: Sequence[str],
    ) -> pa.Table:
        """See `LabelSource`. What it leaves unanswered it has no answer to."""
        annotations = self._asked(candidates, tasks)
        if self.ledger is not None:
            with Ledger.open(self.ledger) as ledger:
                ledger.record_round(record, candidates, annotations)
        rows: dict[bytes, dict[str, Any]] = {}
        for answer in annotations.to_pylist():
            clip = {"id": answer["id"], "key": answer["key"], "round": record.round}
            row = rows.setdefault(answer["id"], {**clip, "source": answer["source"]})
            row[LABEL + answer["task"]] = answer["label"]
        return pa.Table.from_pylist(
            [rows[name] for name in sorted(rows)], schema=label_columns(tasks)
        )

    def remember(self, record: Round, candidates: pa.Table, tasks: Sequence[str]) -> None:
        """See `LabelSource`."""
        if self.ledger is not None:
            with Ledger.open(self.ledger) as ledger:
                ledger.record_round(record, candidates, self._asked(candidates, tasks))

    def _asked(self, candidates: pa.Table, tasks: Sequence[str]) -> pa.Table:
        ids, keys = from_arrow(candidates["id"]), texts(candidates["key"])
        return self.annotator.annotate(ids, keys, tasks)


@dataclass(frozen=True)
class FromAnnotators:
    """Labels of simulated annotators, merged as those of people are.

    Their answers go into a ledger, which decides as between rounds: by all that it holds, so that
    a policy may weigh an annotator by earlier answers, and decide an earlier clip otherwise.

    Attributes:
        annotators: several, who may differ about a clip.
        answers: what their truth is known by.
        ledger: path or URL.
        merge: how their answers become one label.
    """

    annotators: SimulatedAnnotators
    answers: str
    ledger: str
    merge: MergeConfig = field(default_factory=MergeConfig)

    @property
    def identity(self) -> dict[str, Any]:
        """See `LabelSource`: their name does not tell how they err, skip and are drawn."""
        return {
            "annotator": self.annotators.name,
            "answers": self.answers,
            "annotators": self.annotators.config.deciding(),
            "merge": asdict(self.merge),
        }

    def labels(
        self,
        record: Round,
        candidates: pa.Table,
        pending: IdArray,
        held: pa.Table,
        tasks: Sequence[str],
    ) -> pa.Table:
        """See `LabelSource`. Clips that are skipped or undecided stay without a label."""
        with Ledger.open(self.ledger) as ledger:
            self._record(ledger, record, candidates, tasks)
            # Later rounds are there when a training goes on from an earlier save.
            known = ledger.training_set(record.round, TRAINING_SOURCES)
            return _news(ledger, known, record, candidates, pending, held, tasks)

    def remember(self, record: Round, candidates: pa.Table, tasks: Sequence[str]) -> None:
        """See `LabelSource`."""
        with Ledger.open(self.ledger) as ledger:
            self._record(ledger, record, candidates, tasks)

    def _record(
        self, ledger: Ledger, record: Round, candidates: pa.Table, tasks: Sequence[str]
    ) -> None:
        ids, keys = from_arrow(candidates["id"]), texts(candidates["key"])
        again = Undecided.of(ledger, record.round, self.merge)
        judged = self.annotators.judge(ids, keys, tasks, again)
        ledger.record_round(record, candidates, judged.annotations)
        record_judgements(ledger, record.round, judged.costs)
        ledger.adjudicate(self.merge, record.round)


@dataclass(frozen=True)
class FromLedger:
    """Labels that people, or a program of theirs, write into a ledger while the training runs.

    An expansion records its candidates, which is what they are asked, and takes the answers that
    are there; later ones join with the next expansion, and so do later answers about a clip that
    has joined already: in another task, or so that its label is another one.

    Attributes:
        ledger: path or URL.
        merge: how the answers of several annotators become one label.
    """

    ledger: str
    merge: MergeConfig = field(default_factory=MergeConfig)

    @property
    def identity(self) -> dict[str, Any]:
        """See `LabelSource`: the answers are recorded with each expansion."""
        return {"merge": asdict(self.merge)}

    def labels(
        self,
        record: Round,
        candidates: pa.Table,
        pending: IdArray,
        held: pa.Table,
        tasks: Sequence[str],
    ) -> pa.Table:
        """See `LabelSource`."""
        with Ledger.open(self.ledger) as ledger:
            ledger.record_round(record, candidates, None)
            ledger.adjudicate(self.merge)
            known = ledger.training_set(sources=TRAINING_SOURCES)
            return _news(ledger, known, record, candidates, pending, held, tasks)

    def remember(self, record: Round, candidates: pa.Table, tasks: Sequence[str]) -> None:
        """See `LabelSource`: answers that are gone cannot be remembered, the round can."""
        with Ledger.open(self.ledger) as ledger:
            ledger.record_round(record, candidates, None)


def _news(
    ledger: Ledger,
    told: pa.Table,
    record: Round,
    candidates: pa.Table,
    pending: IdArray,
    held: pa.Table,
    tasks: Sequence[str],
) -> pa.Table:
    """What an adjudicated ledger says of the clips that a training asked for, and it does not know.

    Held clips that the ledger never heard of keep their labels: it is another one than before.
    """
    columns = [LABEL + task for task in tasks]
    known = {row["id"]: row for row in told.to_pylist()}
    asked = set(to_bytes(ledger.asked_ids()))
    before = {row["id"]: row for row in held.to_pylist() if row["id"] in asked}
    rows = []
    for clip in sorted(
        before.keys() | set(to_bytes(pending)) | set(to_bytes(from_arrow(candidates["id"])))
    ):
        new, old = known.get(clip, {}), before.get(clip, {})
        labels = {column: new.get(column) for column in columns}
        if labels != {column: old.get(column) for column in columns}:
            named = {name: (new or old)[name] for name in ("id", "key", "source")}
            rows.append({**named, "round": record.round, **labels})
    return pa.Table.from_pylist(rows, schema=label_columns(tasks))
