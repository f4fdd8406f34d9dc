"""Adjudications in the database: what was decided about an item, and from which annotations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import sqlalchemy as sa

from lsb.ids import ID_TYPE
from lsb.ledger.database import all_rows
from lsb.ledger.merge import Decision, MergeConfig, decide
from lsb.ledger.quality import Item, Votes, current_votes
from lsb.ledger.rows import ANNOTATION_KEY, annotation_rows, by_text
from lsb.ledger.tables import ADJUDICATIONS, ANNOTATED, EVIDENCE, GOLD, Row

QUEUE_FIELDS: dict[str, pa.DataType] = {
    "id": ID_TYPE,
    "key": pa.string(),
    "task": pa.string(),
    "labels": pa.list_(pa.int8()),
    "labellers": pa.list_(pa.string()),
    "confidence": pa.float64(),
    "policy": pa.string(),
}
QUEUE = pa.schema(QUEUE_FIELDS)


@dataclass(frozen=True)
class Adjudicated:
    """What `Ledger.adjudicate` did.

    Attributes:
        items: (clip, task) pairs that the policy had to decide.
        resolved: those that have a label now.
        recorded: decisions that differ from the last one and were written.
    """

    items: int
    resolved: int
    recorded: int


def known_labels(connection: sa.Connection, through_round: int | None = None) -> dict[Item, int]:
    """Item -> gold label: of the table `gold`, else the last annotation of source gold.

    Args:
        connection: to the ledger.
        through_round: leave out annotations of later rounds.
    """
    query = sa.select(ANNOTATED).where(ANNOTATED.c.source == "gold")
    if through_round is not None:
        query = query.where(ANNOTATED.c.round <= through_round)
    annotated = all_rows(connection, query)
    rows = [*by_text(annotated, "round", "labeller"), *all_rows(connection, sa.select(GOLD))]
    return {(row["clip_id"], row["task"]): int(row["label"]) for row in rows}


def read_adjudications(connection: sa.Connection, key: str | None = None) -> list[Row]:
    """Every decision about a clip, or about all, by (clip_id, task, round, number).

    The last of an item is the one that counts: an earlier round may have been decided anew since.

    Returns:
        Rows of `adjudications` with `evidence`, a set of (labeller, round), and `sources`, the set
        of sources of these annotations.
    """
    query = sa.select(ADJUDICATIONS)
    same = [EVIDENCE.c[name] == ANNOTATED.c[name] for name in (*ANNOTATION_KEY, "round")]
    origins = sa.select(EVIDENCE, ANNOTATED.c.source).join(ANNOTATED, sa.and_(*same))
    if key is not None:
        query = query.where(ADJUDICATIONS.c.key == key)
        origins = origins.where(ANNOTATED.c.key == key)
    evidence: dict[tuple[str, str, int], set[tuple[str, int]]] = defaultdict(set)
    sources: dict[tuple[str, str, int], set[str]] = defaultdict(set)
    for row in all_rows(connection, origins):
        place = (row["clip_id"], row["task"], row["number"])
        evidence[place].add((row["labeller"], row["round"]))
        sources[place].add(row["source"])
    rows = by_text(all_rows(connection, query), "clip_id", "task", "round", "number")
    for row in rows:
        place = (row["clip_id"], row["task"], row["number"])
        row["evidence"], row["sources"] = evidence[place], sources[place]
    return rows


def last_decisions(history: Iterable[Row], through_round: int | None = None) -> dict[Item, Row]:
    """Item -> its last decision that rests on nothing later than a round.

    Args:
        history: see `read_adjudications`.
        through_round: the round; None for the last decision of all.
    """
    return {
        (row["clip_id"], row["task"]): row
        for row in history
        if through_round is None or row["round"] <= through_round
    }


@dataclass(frozen=True)
class Deliberation:
    """What a policy says of a ledger, before anything of it is written.

    Attributes:
        history: see `read_adjudications`.
        last: its `last_decisions` through the round.
        votes: the answers that count.
        decisions: item -> decision.
    """

    history: Sequence[Row]
    last: Mapping[Item, Row]
    votes: Votes
    decisions: Mapping[Item, Decision]


def deliberate(connection: sa.Connection, config: MergeConfig, through_round: int) -> Deliberation:
    """Decide all items by what a ledger holds through a round; writes nothing.

    Args:
        connection: to the ledger.
        config: the policy.
        through_round: answers of later rounds are not looked at.
    """
    query = sa.select(ANNOTATED).where(ANNOTATED.c.round <= through_round)
    votes = current_votes(all_rows(connection, query), config.sources)
    history = read_adjudications(connection)
    last = last_decisions(history, through_round)
    known = known_labels(connection, through_round)
    return Deliberation(history, last, votes, decide(votes, known, config, last))


def left_open(decisions: Mapping[Item, Decision]) -> set[Item]:
    """Items that have no label."""
    return {item for item, decision in decisions.items() if decision.label is None}


def open_after(
    annotations: pa.Table, number: int, before: Iterable[Row], config: MergeConfig
) -> set[Item]:
    """Items of a round that is not recorded yet which a policy would leave open.

    The table `gold` has no say: it may grow while the round is the last one, and who was asked
    must not change with it.

    Args:
        annotations: of the round so far, schema `lsb.annotate.ANNOTATIONS`.
        number: of the round.
        before: annotations of earlier rounds, as the ledger has them.
        config: the policy.
    """
    rows = [*before, *annotation_rows(number, annotations)]
    known = {
        (row["clip_id"], row["task"]): int(row["label"]) for row in rows if row["source"] == "gold"
    }
    asked = {(row["id"].hex(), row["task"]) for row in annotations.to_pylist()}
    return left_open(decide(current_votes(rows, config.sources), known, config)) & asked


def write_decisions(
    connection: sa.Connection,
    found: Deliberation,
    policy: str,
    through_round: int,
    time: str,
) -> int:
    """Record decisions whose label, policy or evidence are not those of the item's last one.

    Args:
        connection: in a writing transaction that holds the ledger's write lock.
        found: what was found in it through that round.
        policy: `MergeConfig.name`.
        through_round: a recorded round.
        time: of the decisions, in UTC.

    Returns:
        How many were recorded.
    """
    numbers: dict[Item, int] = {}
    for row in found.history:
        item = (row["clip_id"], row["task"])
        numbers[item] = max(numbers.get(item, 0), row["number"])
    changed: list[Row] = []
    evidence: list[Row] = []
    for item, decision in found.decisions.items():
        answers = found.votes[item]
        origin = {(labeller, row["round"]) for labeller, row in answers.items()}
        held = found.last.get(item)
        if held is not None:
            before = (held["label"], held["policy"], held["evidence"])
            if before == (decision.label, policy, origin):
                continue
        place = {
            "clip_id": item[0],
            "task": item[1],
            "number": numbers.get(item, 0) + 1,
        }
        changed.append(
            {
                **place,
                "key": next(iter(answers.values()))["key"],
                "label": decision.label,
                "confidence": decision.confidence,
                "policy": policy,
                "round": through_round,
                "adjudicated_at": time,
            }
        )
        evidence += [
            {**place, "labeller": labeller, "round": number} for labeller, number in sorted(origin)
        ]
    if changed:
        connection.execute(sa.insert(ADJUDICATIONS), changed)
        connection.execute(sa.insert(EVIDENCE), evidence)
    return len(changed)


def read_queue(connection: sa.Connection) -> pa.Table:
    """See `Ledger.queue`."""
    last = last_decisions(read_adjudications(connection))
    known = known_labels(connection)
    answers = {
        (row["clip_id"], row["task"], row["labeller"], row["round"]): row["label"]
        for row in all_rows(connection, sa.select(ANNOTATED))
    }
    rows = []
    for item in sorted(last, key=lambda item: (last[item]["confidence"], item)):
        row = last[item]
        if row["label"] is not None or item in known:
            continue
        evidence = sorted(row["evidence"])
        rows.append(
            {
                "id": bytes.fromhex(row["clip_id"]),
                "labels": [answers[(*item, *origin)] for origin in evidence],
                "labellers": [labeller for labeller, _ in evidence],
                **{name: row[name] for name in ("key", "task", "confidence", "policy")},
            }
        )
    return pa.Table.from_pylist(rows, schema=QUEUE)
