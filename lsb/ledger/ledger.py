"""The ledger itself: rounds, annotations, adjudications, gold labels and costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import sqlalchemy as sa

from lsb.annotate import PSEUDO, SOURCES
from lsb.ids import IdArray, from_hex
from lsb.ledger.adjudications import (
    Adjudicated,
    deliberate,
    known_labels,
    left_open,
    read_adjudications,
    read_queue,
    write_decisions,
)
from lsb.ledger.database import all_rows, insert_absent, name_of, open_database, writing
from lsb.ledger.labels import counted_labels, training_table
from lsb.ledger.measured import require_measurable
from lsb.ledger.merge import MergeConfig
from lsb.ledger.quality import AnnotatorQuality, Item, annotator_quality, current_votes
from lsb.ledger.rows import (
    ANNOTATION_KEY,
    annotation_rows,
    by_text,
    candidate_rows,
    gold_rows,
    held_rows,
    require_equal,
    require_ids_of_keys,
    utc_text,
)
from lsb.ledger.tables import (
    ANNOTATED,
    CANDIDATES,
    COSTS,
    GOLD,
    ROUNDS,
    TASK_THRESHOLDS,
    Row,
)
from lsb.ledger.task_threshold import (
    TaskThreshold,
    complete_thresholds,
    read_thresholds,
    threshold_rows,
)


@dataclass(frozen=True)
class Round:
    """What was done in one round.

    Attributes:
        round: number; 0 for labels that were there before any model.
        arm: name of the acquisition and broadening preset.
        checkpoint_hash: of the model that scored the pool; "" for none.
        store_hash: of the store that was searched; "" for none.
        threshold_value: LT; None for none.
        threshold_precision: lower bound of lookalike precision at LT; None if LT was given.
        threshold_pairs: labelled pairs the calibration rests on.
        task_thresholds: LT of each task by name, where tasks have their own; empty where one LT
            stands for all of them, or there is none.
    """

    round: int
    arm: str
    checkpoint_hash: str
    store_hash: str
    threshold_value: float | None = None
    threshold_precision: float | None = None
    threshold_pairs: int | None = None
    task_thresholds: tuple[TaskThreshold, ...] = ()


class Ledger:
    """One experiment's ledger. Use it as a context manager, or call `close`."""

    def __init__(self, engine: sa.Engine):
        self.engine = engine

    @classmethod
    def open(
        cls, location: str | Path, *, create: bool = True, migrate: bool | None = None
    ) -> Ledger:
        """Open a ledger.

        Args:
            location: path of an SQLite file, or a URL: `postgresql+psycopg://user@host/database`.
            create: make it where it does not exist.
            migrate: bring a ledger of an older version to this one, in one transaction; what
                `create` says by default, so that a ledger opened for reading stays as it is.

        Raises:
            ValueError: it does not exist and `create` is false, it is not a ledger of this
                version, or the server cannot be reached.
        """
        upgrade = create if migrate is None else migrate
        return cls(open_database(location, create=create, upgrade=upgrade))

    @property
    def name(self) -> str:
        """Its URL, without a password."""
        return name_of(self.engine)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def record_round(
        self,
        record: Round,
        candidates: pa.Table,
        annotations: pa.Table | None,
        *,
        labelled_at: datetime | None = None,
    ) -> bool:
        """Write one round in one transaction.

        Args:
            record: the round.
            candidates: schema `lsb.selection.CHOSEN`, unique in id.
            annotations: schema `lsb.annotate.ANNOTATIONS`, unique in (id, task, labeller); all the
                round's. None where they come later, by `import_annotations`; pseudo-labels may do
                so in any case.
            labelled_at: time of the labels, with a time zone; now by default.

        Returns:
            Whether it was written; False where the ledger holds the same round already. Nothing is
            changed then, nor is `labelled_at`; but a round that has no LT of a task, as an earlier
            release left it, is given those of `record`.

        Raises:
            ValueError: the ledger holds this round with other content, or the tables are not as
                above. The message names the first difference.
        """
        time = utc_text(labelled_at or datetime.now(UTC))
        rounds = [{name: value for name, value in vars(record).items() if name in ROUNDS.c}]
        limits = threshold_rows(record.round, record.task_thresholds)
        chosen = candidate_rows(record.round, candidates)
        labels = [] if annotations is None else annotation_rows(record.round, annotations)
        with writing(self.engine) as connection:
            if self._holds(connection, record.round):
                require_equal(connection, ROUNDS, record.round, rounds)
                complete_thresholds(connection, record.round, limits)
                require_equal(connection, CANDIDATES, record.round, chosen)
                if annotations is not None:
                    given = any(row["source"] == PSEUDO for row in labels)
                    of_people = [] if given else [ANNOTATED.c.source != PSEUDO]
                    require_equal(connection, ANNOTATED, record.round, labels, *of_people)
                return False
            connection.execute(sa.insert(ROUNDS), rounds)
            if limits:
                connection.execute(sa.insert(TASK_THRESHOLDS), limits)
            if chosen:
                connection.execute(sa.insert(CANDIDATES), chosen)
            if labels:
                stamped = [{**row, "labelled_at": time} for row in labels]
                connection.execute(sa.insert(ANNOTATED), stamped)
        return True

    def import_annotations(
        self,
        number: int,
        annotations: pa.Table,
        *,
        labelled_at: datetime | Sequence[datetime] | None = None,
    ) -> int:
        """Add labels to a recorded round, in one transaction; any number of processes may do so.

        Importing again changes nothing: a label is known by (clip, task, labeller, round).

        Args:
            number: of the round, which `record_round` wrote.
            annotations: schema `lsb.annotate.ANNOTATIONS`, unique in (id, task, labeller).
            labelled_at: time of all labels or of each, with a time zone; now by default.

        Returns:
            How many were not there yet.

        Raises:
            ValueError: the round is not recorded, or the ledger holds one of these labels with
                another value or source; names it. Nothing is written then.
        """
        if isinstance(labelled_at, datetime) or labelled_at is None:
            times = [utc_text(labelled_at or datetime.now(UTC))] * annotations.num_rows
        else:
            times = [utc_text(moment) for moment in labelled_at]
        if len(times) != annotations.num_rows:
            raise ValueError(
                f"{annotations.num_rows} annotations but {len(times)} times: give one for each"
            )
        rows = annotation_rows(number, annotations, times)
        require_ids_of_keys(rows)
        with writing(self.engine, alone=False) as connection:
            self._require_round(connection, number)
            added = insert_absent(connection, ANNOTATED, rows)
            wanted = {(row["clip_id"], row["task"], row["labeller"]): row for row in rows}
            if len(added) < len(rows):
                for held in held_rows(connection, ANNOTATED, rows, ANNOTATED.c.round == number):
                    new = wanted.get(tuple(held[name] for name in ANNOTATION_KEY))
                    for field in ("label", "source"):
                        if new is not None and held[field] != new[field]:
                            raise ValueError(
                                f"{field} of clip {new['key']!r}, task {new['task']!r} by "
                                f"{new['labeller']!r} in round {number} is {held[field]!r} in the "
                                f"ledger, {new[field]!r} now: a label is never rewritten; ask again"
                                " in a new round, or leave it out"
                            )
        return len(added)

    def add_gold(self, gold: pa.Table) -> int:
        """Add labels that are known, to measure annotators by; adding again changes nothing.

        They enter no training set, whoever labels their clips (labels of source gold do). So they
        are for clips that no finished round rests on, see `lsb.ledger.measured`.

        Args:
            gold: schema `lsb.ledger.GOLD_LABELS`, unique in (id, task).

        Returns:
            How many were not there yet.

        Raises:
            ValueError: the ledger holds another label for one of them, or an earlier round rests on
                it; names it. Nothing is written then.
        """
        rows = gold_rows(gold)
        require_ids_of_keys(rows)
        with writing(self.engine) as connection:
            added = insert_absent(connection, GOLD, rows)
            wanted = {(row["clip_id"], row["task"]): row["label"] for row in rows}
            for held in held_rows(connection, GOLD, rows):
                label = wanted.get((held["clip_id"], held["task"]), held["label"])
                if held["label"] != label:
                    raise ValueError(
                        f"gold label of clip {held['key']!r}, task {held['task']!r} is "
                        f"{held['label']} in the ledger, {label} now: find out which is right; "
                        "gold labels are never rewritten, leave it out or start a new ledger"
                    )
            new = [row for row in rows if (row["clip_id"], row["task"]) in added]
            require_measurable(connection, new)
        return len(added)

    def record_cost(
        self, number: int, payee: str, unit_price: float, count: int, *, entry: str = ""
    ) -> bool:
        """Write what labels cost; writing it again changes nothing.

        Args:
            number: of the round.
            payee: labeller or source that was paid.
            unit_price: of one label, in units of your choice, 0 or more; hours where `entry`
                ends with `lsb.ledger.HOURS`.
            count: labels paid for.
            entry: tells several payments of a round to one payee apart, e.g. a batch.

        Returns:
            Whether it was written; False where it was there already.

        Raises:
            ValueError: the round is not recorded, a number is negative or not finite, or the entry
                is there with other numbers.
        """
        if not 0 <= unit_price < float("inf") or count < 0:
            raise ValueError(
                f"{count} labels at a unit price of {unit_price} are no cost: give numbers of 0 or "
                "more"
            )
        row = {"round": number, "payee": payee, "entry": entry}
        row |= {"unit_price": float(unit_price), "count": count}
        with writing(self.engine) as connection:
            self._require_round(connection, number)
            if insert_absent(connection, COSTS, [row]):
                return True
            query = sa.select(COSTS).filter_by(round=number, payee=payee, entry=entry)
            held = dict(connection.execute(query).mappings().one())
        if held != row:
            raise ValueError(
                f"round {number} has {held['count']} labels of {payee!r} at {held['unit_price']:g} "
                f"as entry {entry!r}, {count} at {unit_price:g} now: costs are never rewritten; "
                "give another entry for what was paid besides"
            )
        return False

    def adjudicate(
        self, config: MergeConfig, through_round: int | None = None, *, at: datetime | None = None
    ) -> Adjudicated:
        """Merge the answers of all annotators and record what changed.

        Annotations stay as they are. An item's decision is written where its label, policy or
        evidence differ from those of its last one, so that doing it again changes nothing. Answers
        of later rounds are not looked at, and decisions belong to the round they were made through:
        what comes later changes no training set of an earlier round.

        Args:
            config: the policy.
            through_round: the last round to look at; None for the last recorded one.
            at: time of the decisions, with a time zone; now by default.
        """
        time = utc_text(at or datetime.now(UTC))
        with writing(self.engine) as connection:
            last = sa.select(sa.func.max(ROUNDS.c.round))
            if through_round is not None:
                last = last.where(ROUNDS.c.round <= through_round)
            through = connection.execute(last).scalar()
            if through is None:  # no round, and so no answers
                return Adjudicated(0, 0, 0)
            found = deliberate(connection, config, through)
            recorded = write_decisions(connection, found, config.name, through, time)
        items = len(found.decisions)
        return Adjudicated(items, items - len(left_open(found.decisions)), recorded)

    def undecided(self, config: MergeConfig, through_round: int) -> set[Item]:
        """Items that `adjudicate` would leave unresolved now; writes nothing.

        Args:
            config: see `adjudicate`.
            through_round: see `adjudicate`.
        """
        with self.engine.connect() as connection:
            return left_open(deliberate(connection, config, through_round).decisions)

    def queue(self) -> pa.Table:
        """Items to ask another annotator about: those that the last adjudication left unresolved.

        Returns:
            Schema `QUEUE`, ordered by (confidence, id, task): the least agreed first. `labels` are
            the answers so far and `labellers` who gave them, both by labeller.
        """
        with self.engine.connect() as connection:
            return read_queue(connection)

    def quality(self) -> list[AnnotatorQuality]:
        """How good every labeller is in every task, on gold items; by (labeller, task)."""
        with self.engine.connect() as connection:
            votes = current_votes(all_rows(connection, sa.select(ANNOTATED)), SOURCES[1:])
            return annotator_quality(votes, known_labels(connection))

    def training_set(
        self, through_round: int | None = None, sources: Sequence[str] = SOURCES
    ) -> pa.Table:
        """Labelled clips for training.

        Where a (clip, task) has several labels, gold labels win, then what was adjudicated (left
        out where that is unresolved), then the more trusted source (human, then oracle, then
        pseudo), then the later round, then the labeller first by name. Pseudo-labels count in the
        round they were made for alone: those of earlier models are withdrawn. Items of the table
        `gold` are left out. Pass the sources you want: gold is often kept for evaluation.

        Args:
            through_round: leave out labels of later rounds, and what was adjudicated from them,
                and pseudo-labels of any other round; None takes all, pseudo-labels of the last.
            sources: of labels to use; adjudications that rest on another one are not used.

        Returns:
            id, key, round, `label_<task>` (int8, null for none) for every task by name, source;
            ordered by id. `round` is the first round that gave one of the labels used, `source` the
            least trusted source of them.
        """
        return training_table(self.counted(through_round, sources))

    def counted(
        self, through_round: int | None = None, sources: Sequence[str] = SOURCES
    ) -> dict[Item, Row]:
        """The row that counts for every (clip, task); `lsb.ledger.labels` has the rule.

        Args:
            through_round: see `training_set`.
            sources: see `training_set`.

        Returns:
            Item -> its row of `annotations`, or of `adjudications` with `source`, `sources` and
            `evidence`. An unresolved item has the label None.
        """
        unknown = [source for source in sources if source not in SOURCES]
        if unknown:
            raise ValueError(f"source {unknown[0]!r} is unknown: use {', '.join(SOURCES)}")
        query = sa.select(ANNOTATED).where(ANNOTATED.c.source.in_(list(sources)))
        now: Any = sa.select(sa.func.max(ROUNDS.c.round)).scalar_subquery()
        if through_round is not None:
            now = through_round
            query = query.where(ANNOTATED.c.round <= through_round)
        query = query.where((ANNOTATED.c.source != PSEUDO) | (ANNOTATED.c.round == now))
        with self.engine.connect() as connection:
            annotations = all_rows(connection, query)
            adjudications = [
                row
                for row in read_adjudications(connection)
                if set(row["sources"]) <= set(sources)
                and (through_round is None or row["round"] <= through_round)
            ]
        return counted_labels(annotations, adjudications, self.measured())

    def labelled_ids(self, through_round: int | None = None) -> IdArray:
        """Ids of clips with a label, ascending, (N,) S16.

        Pseudo-labels do not count: a person may still be asked about such a clip.
        """
        query = sa.select(ANNOTATED.c.clip_id).where(ANNOTATED.c.source != PSEUDO).distinct()
        if through_round is not None:
            query = query.where(ANNOTATED.c.round <= through_round)
        return from_hex(sorted(row["clip_id"] for row in self._rows(query)))

    def asked_ids(self, through_round: int | None = None) -> IdArray:
        """Ids of clips that were chosen or have a label, ascending, (N,) S16.

        Those that people could not tell were asked about, too, and are not asked about again.
        """
        query = sa.select(CANDIDATES.c.clip_id).distinct()
        if through_round is not None:
            query = query.where(CANDIDATES.c.round <= through_round)
        chosen = from_hex(sorted(row["clip_id"] for row in self._rows(query)))
        return np.union1d(chosen, self.labelled_ids(through_round))

    def rounds(self) -> list[Round]:
        """All rounds, in order."""
        with self.engine.connect() as connection:
            rows = all_rows(connection, sa.select(ROUNDS).order_by(ROUNDS.c.round))
            limits = read_thresholds(connection)
        return [Round(**row, task_thresholds=limits.get(row["round"], ())) for row in rows]

    def candidacies(self, key: str | None = None) -> list[Row]:
        """Every time a clip was chosen: its candidate row joined with the round's.

        By (round, clip_id); of all clips where `key` is None.
        """
        query = sa.select(CANDIDATES, *(c for c in ROUNDS.c if c.name != "round")).join(ROUNDS)
        if key is not None:
            query = query.where(CANDIDATES.c.key == key)
        return by_text(self._rows(query), "round", "clip_id")

    def annotations(self, key: str | None = None) -> list[Row]:
        """Every label of a clip, or of all, by (round, clip_id, task, labeller)."""
        query = sa.select(ANNOTATED)
        if key is not None:
            query = query.where(ANNOTATED.c.key == key)
        return by_text(self._rows(query), "round", *ANNOTATION_KEY)

    def adjudications(self, key: str | None = None) -> list[Row]:
        """Every decision about a clip, or about all, by (clip_id, task, round, number).

        Rows of `adjudications` with `evidence`, a set of (labeller, round), and `sources`, those
        of its labels.
        """
        with self.engine.connect() as connection:
            return read_adjudications(connection, key)

    def gold(self) -> dict[Item, int]:
        """Known labels: those of the table `gold`, then labels of source gold."""
        with self.engine.connect() as connection:
            return known_labels(connection)

    def measured(self, key: str | None = None) -> dict[Item, int]:
        """Items of the table `gold` alone, of a clip or of all, with their labels."""
        query = sa.select(GOLD) if key is None else sa.select(GOLD).where(GOLD.c.key == key)
        return {(row["clip_id"], row["task"]): int(row["label"]) for row in self._rows(query)}

    def costs(self) -> list[Row]:
        """All rows of `costs`, by (round, payee, entry)."""
        return by_text(self._rows(sa.select(COSTS)), "round", "payee", "entry")

    def keys(self) -> list[str]:
        """Keys of all clips that were chosen or labelled, ascending."""
        union = sa.union(sa.select(CANDIDATES.c.key), sa.select(ANNOTATED.c.key)).subquery()
        return sorted(row["key"] for row in self._rows(sa.select(union.c.key)))

    def _rows(self, query: sa.Select[Any]) -> list[Row]:
        with self.engine.connect() as connection:
            return all_rows(connection, query)

    def _holds(self, connection: sa.Connection, number: int) -> bool:
        query = sa.select(ROUNDS.c.round).where(ROUNDS.c.round == number)
        return connection.execute(query).first() is not None

    def _require_round(self, connection: sa.Connection, number: int) -> None:
        if not self._holds(connection, number):
            held = sorted(connection.execute(sa.select(ROUNDS.c.round)).scalars())
            raise ValueError(
                f"round {number} is not in the ledger {self.name}, only {held}: record "
                "the round first"
            )
