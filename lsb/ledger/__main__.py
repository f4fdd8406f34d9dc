"""Look after a ledger: `python -m lsb.ledger migrate|adjudicate|queue LEDGER`.

A LEDGER is the path of an SQLite file, or a URL: postgresql+psycopg://user@host/database.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from lsb.ledger.ledger import Ledger
from lsb.ledger.merge import POLICIES, MergeConfig
from lsb.ledger.tables import SCHEMA_VERSION


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry point; returns the exit code: 0, or 2 where something cannot be done."""
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lsb.ledger", description="Look after a ledger (docs/ledger.md)."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("migrate", help="bring an older ledger to this release's version")
    command.set_defaults(run=_migrate)
    command.add_argument("ledger", metavar="LEDGER")
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
    return parser


def _migrate(options: argparse.Namespace) -> int:
    with Ledger.open(options.ledger, create=False, migrate=True) as ledger:
        print(f"{ledger.name} is at version {SCHEMA_VERSION}: {len(ledger.rounds())} rounds")
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


if __name__ == "__main__":
    sys.exit(main())
