"""Why a clip is in the training set: `python -m lsb.why <clip key> [--ledger PATH]...`.

Prints the chain behind it: round, arm, seed, similarity, LT, model and store, then its labels. If
the seed was itself chosen in an earlier round, its chain follows, indented. Without --ledger every
runs/<experiment>/<arm>/ledger.sqlite below $VLMAE_RUNS (or ./runs) is asked, newest first.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lsb.ledger import Ledger, Row


def main(arguments: list[str] | None = None) -> int:
    """Command line entry point; returns the exit code: 0, or 2 for an unknown clip or ledger."""
    parser = argparse.ArgumentParser(prog="python -m lsb.why", description=__doc__.splitlines()[0])
    parser.add_argument("key", help="clip key")
    parser.add_argument("--ledger", action="append", metavar="PATH", help="may be repeated")
    options = parser.parse_args(arguments)
    runs = Path(os.environ.get("VLMAE_RUNS", "runs"))
    found = options.ledger or sorted(runs.glob("*/*/ledger.sqlite"), key=_newest_first)
    if not found:
        print(f"no {runs}/*/*/ledger.sqlite: run a round or give --ledger PATH", file=sys.stderr)
        return 2
    width = None if sys.stdout.isatty() else 160
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    keys: set[str] = set()
    shown = False
    try:
        for location in found:
            with Ledger.open(location, create=False) as ledger:
                if ledger.candidacies(options.key) or ledger.annotations(options.key):
                    console.print(_chain(ledger, options.key, str(location)))
                    shown = True
                else:
                    keys.update(ledger.keys())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if shown:
        return 0
    near = difflib.get_close_matches(options.key, sorted(keys), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(near)}?" if near else "no key is near it"
    print(f"unknown clip {options.key!r} in {', '.join(map(str, found))}: {hint}", file=sys.stderr)
    return 2


def _newest_first(path: Path) -> tuple[float, str]:
    return -path.stat().st_mtime, str(path)


def _chain(ledger: Ledger, key: str, title: str) -> Table:
    table = Table(title=title, title_justify="left")
    columns = ("clip", "round", "arm", "reason", "seed", "similarity", "LT", "checkpoint", "store")
    for column in (*columns, "labels"):
        table.add_column(column, overflow="fold")
    seen: set[str] = set()
    clip: str | None = key
    while clip is not None and clip not in seen:
        indent = "  " * len(seen) + ("from " if seen else "")
        seen.add(clip)
        chosen = ledger.candidacies(clip)
        labels = "\n".join(_label(row) for row in ledger.annotations(clip)) or "none"
        if not chosen:
            table.add_row(indent + clip, *["-"] * (len(columns) - 1), labels)
        for row in chosen:
            table.add_row(indent + clip, *_candidacy(row), labels)
        seeds = [row["seed_key"] for row in chosen if row["seed_key"] is not None]
        clip = seeds[-1] if seeds else None
    return table


def _candidacy(row: Row) -> list[str]:
    seed = "\n".join(part for part in (row["seed_key"], row["seed_kind"], row["task"]) if part)
    values = [row["round"], row["arm"], row["reason"], seed, row["similarity"]]
    values += [row["lookalike_threshold"], row["checkpoint_hash"], row["store_hash"]]
    texts = [f"{value:.4f}" if isinstance(value, float) else str(value) for value in values]
    return ["-" if value in (None, "") else text for value, text in zip(values, texts, strict=True)]


def _label(row: Row) -> str:
    return (
        f"{row['task']}={row['label']} {row['source']} by {row['labeller']} "
        f"in round {row['round']} at {row['labelled_at']}"
    )


if __name__ == "__main__":
    sys.exit(main())
