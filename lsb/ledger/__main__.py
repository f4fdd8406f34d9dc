"""Look after a ledger: `python -m lsb.ledger COMMAND LEDGER ...`.

Commands: migrate, gold, cost, adjudicate, queue; asked and import, for whoever answers a training
that grows while it runs.

A LEDGER is the path of an SQLite file, or a URL: postgresql+psycopg://user@host/database.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
from pyarrow import csv

from lsb.annotate import PSEUDO
from lsb.annotate.answers import Answer, Refused, read_answer_files, take_answers
from lsb.console import run_command
from lsb.ids import sample_ids, texts, to_arrow
from lsb.ledger.ledger import Ledger
from lsb.ledger.merge import POLICIES, MergeConfig
from lsb.ledger.rows import GOLD_LABELS
from lsb.ledger.tables import SCHEMA_VERSION, Row


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry point; returns the exit code: 0, or 2 where something cannot be done."""
    return run_command(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lsb.ledger", description="Look after a ledger (docs/ledger.md)."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("migrate", help="bring an older ledger to this release's version")
    command.set_defaults(run=_migrate)
    command.add_argument("ledger", metavar="LEDGER")
    command = commands.add_parser("gold", help="add known labels, to measure annotators by")
    command.set_defaults(run=_gold)
    command.add_argument("ledger", metavar="LEDGER")
    command.add_argument("file", type=Path, metavar="FILE.csv", help="columns key, task, label")
    command = commands.add_parser("cost", help="add what labels cost")
    command.set_defaults(run=_cost)
    command.add_argument("ledger", metavar="LEDGER")
    command.add_argument("--round", type=int, required=True)
    command.add_argument("--payee", required=True, help="labeller or source")
    command.add_argument("--unit-price", type=float, required=True, help="in units of your choice")
    command.add_argument("--count", type=int, required=True, help="labels paid for")
    command.add_argument("--entry", default="", help="tells payments of a round apart")
    command = commands.add_parser("adjudicate", help="merge the answers of several annotators")
    command.set_defaults(run=_adjudicate)
    command.add_argument("ledger", metavar="LEDGER")
    default = MergeConfig()
    command.add_argument("--policy", choices=POLICIES, default=default.policy)
    command.add_argument("--sources", nargs="+", default=list(default.sources), metavar="SOURCE")
    command.add_argument("--agreement", type=float, default=default.agreement)
    command.add_argument("--minimum-annotators", type=int, default=default.minimum_annotators)
    command.add_argument("--smoothing", type=float, default=default.smoothing)
    command.add_argument("--iterations", type=int, default=default.iterations)
    command = commands.add_parser("queue", help="what to ask another annotator about")
    command.set_defaults(run=_queue)
    command.add_argument("ledger", metavar="LEDGER")
    command = commands.add_parser("asked", help="clips that nobody has answered yet")
    command.set_defaults(run=_asked)
    command.add_argument("ledger", metavar="LEDGER")
    command = commands.add_parser("import", help="take answers of people about clips that it asked")
    command.set_defaults(run=_import)
    command.add_argument("ledger", metavar="LEDGER")
    command.add_argument("files", type=Path, nargs="+", metavar="ANSWERS.jsonl")
    command.add_argument(
        "--tasks", nargs="+", required=True, metavar="TASK", help="that were asked about"
    )
    return parser


def _migrate(options: argparse.Namespace) -> int:
    with Ledger.open(options.ledger, create=False, migrate=True) as ledger:
        print(f"{ledger.name} is at version {SCHEMA_VERSION}: {len(ledger.rounds())} rounds")
    return 0


def _gold(options: argparse.Namespace) -> int:
    gold = _read_gold(options.file)
    with Ledger.open(options.ledger, create=False, migrate=True) as ledger:
        added = ledger.add_gold(gold)
    print(f"{added:,} of {gold.num_rows:,} gold labels are new")
    return 0


def _read_gold(path: Path) -> pa.Table:
    """Schema `GOLD_LABELS` from a CSV file."""
    names = GOLD_LABELS.names[1:]
    kinds = {name: GOLD_LABELS.field(name).type for name in names}
    options = csv.ConvertOptions(column_types=kinds, include_columns=names)
    try:
        read = csv.read_csv(path, convert_options=options)
    except (pa.ArrowInvalid, pa.ArrowKeyError) as error:
        raise ValueError(
            f"{path} is no table of {', '.join(names)} ({error}): write one label a line below "
            "these names"
        ) from error
    ids = to_arrow(sample_ids(texts(read["key"])))
    return pa.table([ids, *(read[name] for name in names)], schema=GOLD_LABELS)


def _cost(options: argparse.Namespace) -> int:
    with Ledger.open(options.ledger, create=False, migrate=True) as ledger:
        new = ledger.record_cost(
            options.round, options.payee, options.unit_price, options.count, entry=options.entry
        )
    print("recorded" if new else "was recorded already")
    return 0


def _adjudicate(options: argparse.Namespace) -> int:
    config = MergeConfig(
        policy=options.policy,
        sources=tuple(options.sources),
        agreement=options.agreement,
        minimum_annotators=options.minimum_annotators,
        smoothing=options.smoothing,
        iterations=options.iterations,
    )
    with Ledger.open(options.ledger, create=False, migrate=True) as ledger:
        done = ledger.adjudicate(config)
    print(
        f"{config.name}: {done.items:,} items decided, {done.resolved:,} resolved, "
        f"{done.items - done.resolved:,} to be asked again; {done.recorded:,} decisions are new"
    )
    return 0


def _queue(options: argparse.Namespace) -> int:
    with Ledger.open(options.ledger, create=False) as ledger:
        queue = ledger.queue()
    for row in queue.to_pylist():
        answers = ", ".join(
            f"{labeller} {label}"
            for labeller, label in zip(row["labellers"], row["labels"], strict=True)
        )
        print(f"{row['key']}\t{row['task']}\t{row['confidence']:.3f}\t{answers}")
    print(f"{queue.num_rows:,} items to ask another annotator about", file=sys.stderr)
    return 0


def _asked(options: argparse.Namespace) -> int:
    with Ledger.open(options.ledger, create=False) as ledger:
        asked = _last_asked(ledger.candidacies())
        answered = {row["clip_id"] for row in ledger.annotations() if row["source"] != PSEUDO}
    rows = [row for clip, row in asked.items() if clip not in answered]
    for row in sorted(rows, key=lambda row: (row["round"], row["rank"])):
        print(f"{row['clip_id']}\t{row['key']}\t{row['round']}\t{row['reason']}")
    print(
        f"{len(rows):,} of {len(asked):,} clips that were asked for have no answer", file=sys.stderr
    )
    return 0


def _import(options: argparse.Namespace) -> int:
    # Rounds are the business of who asks: an answer is one to the last that asked for its clip.
    added, skips, refused = 0, 0, list[Refused]()
    with Ledger.open(options.ledger, create=False, migrate=True) as ledger:
        asked = _last_asked(ledger.candidacies())
        answers, _ = read_answer_files(options.files, asked, options.tasks)
        rounds: dict[int, list[Answer]] = {}
        for answer in answers:
            rounds.setdefault(asked[answer.clip_id]["round"], []).append(answer)
        for number, given in sorted(rounds.items()):
            taken = take_answers(ledger, number, given)
            added, skips = added + taken.labels, skips + sum(one.skipped for one in given)
            refused += taken.refused
    for one in refused:
        print(f"not taken: {one.text}")
    told = f", {skips:,} skips are not kept" if skips else ""
    print(f"{added:,} labels are new, {len(refused):,} answers were not taken{told}")
    return 0


def _last_asked(candidacies: Iterable[Row]) -> dict[str, Row]:
    """Clip id -> the last time that it was asked for."""
    return {row["clip_id"]: row for row in sorted(candidacies, key=lambda row: row["round"])}


if __name__ == "__main__":
    sys.exit(main())
