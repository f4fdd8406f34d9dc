"""Why a clip is in the training set: `python -m lsb.why <clip key> [--ledger PATH]...`.

Prints the chain behind it: round, arm, seed, similarity, LT, model and store, then all its labels
and what was adjudicated from them. If the seed was itself chosen in an earlier round, its chain
follows, indented. Without --ledger the ledger of every arm in runs/<experiment>/<arm>/ below
$VLMAE_RUNS (or ./runs) is asked, newest first: its ledger.sqlite, or the one that its
ledger.location names. A ledger is the path of an SQLite file, or a URL:
postgresql+psycopg://user@host/database.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from pathlib import Path

from rich.tree import Tree

from lsb.annotate.carried import representative_of
from lsb.console import console
from lsb.ledger import LOCATION_FILE, Ledger, Row, kept_location


def main(arguments: list[str] | None = None) -> int:
    """Command line entry point; returns the exit code: 0, or 2 for an unknown clip or ledger."""
    parser = argparse.ArgumentParser(prog="python -m lsb.why", description=__doc__.splitlines()[0])
    parser.add_argument("key", help="clip key")
    parser.add_argument("--ledger", action="append", metavar="PATH or URL", help="may be repeated")
    options = parser.parse_args(arguments)
    runs = Path(os.environ.get("VLMAE_RUNS", "runs"))
    found = options.ledger or _of_runs(runs)
    if not found:
        print(
            f"no {runs}/*/*/ledger.sqlite nor {LOCATION_FILE} beside it: run a round or give "
            "--ledger PATH",
            file=sys.stderr,
        )
        return 2
    out = console()
    keys: set[str] = set()
    asked: list[str] = []
    shown = False
    try:
        for location in found:
            with Ledger.open(location, create=False) as ledger:
                asked.append(_title(location, ledger))
                if ledger.candidacies(options.key) or ledger.annotations(options.key):
                    out.print(_chain(ledger, options.key, asked[-1]))
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
    print(f"unknown clip {options.key!r} in {', '.join(asked)}: {hint}", file=sys.stderr)
    return 2


def _of_runs(runs: Path) -> list[str | Path]:
    """Ledgers of all arms, newest first."""
    files = [*runs.glob("*/*/ledger.sqlite"), *runs.glob(f"*/*/{LOCATION_FILE}")]
    return [
        kept_location(file.parent) or file if file.name == LOCATION_FILE else file
        for file in sorted(files, key=_newest_first)
    ]


def _newest_first(path: Path) -> tuple[float, str]:
    return -path.stat().st_mtime, str(path)


def _title(location: str | Path, ledger: Ledger) -> str:
    """The path as it was given; a URL without its password."""
    return ledger.name if "://" in str(location) else str(location)


def _chain(ledger: Ledger, key: str, title: str) -> Tree:
    tree = Tree(title, guide_style="dim")
    branch, clip, seen = tree.add(key), key, {key}
    while True:
        chosen = ledger.candidacies(clip)
        for row in chosen:
            branch.add(_reason(row))
            branch.add(f"checkpoint {row['checkpoint_hash']}\nstore {row['store_hash']}")
        for line in _labels(ledger.annotations(clip)):
            branch.add(line)
        for line in _decisions(ledger, clip):
            branch.add(line)
        seeds = [*_copied(ledger, clip)]
        seeds += [row["seed_key"] for row in chosen if row["seed_key"] is not None]
        if not seeds or seeds[-1] in seen:
            return tree
        clip = seeds[-1]
        seen.add(clip)
        branch = branch.add(f"from {clip}")


def _copied(ledger: Ledger, key: str) -> list[str]:
    """Keys of clips that a copy has its labels from."""
    named = [representative_of(row["labeller"]) for row in ledger.annotations(key)]
    wanted = sorted({name for name in named if name is not None})
    if not wanted:
        return []
    keys = {row["clip_id"]: row["key"] for row in ledger.annotations()}
    return [keys[name] for name in wanted if name in keys]


def _reason(row: Row) -> str:
    text = f"round {row['round']}, arm {row['arm']}: {row['reason']}"
    if row["seed_key"] is None:
        return text
    kind = ", ".join(part for part in (row["seed_kind"], row["task"]) if part)
    if row["seed_key"] == row["key"]:
        return f"{text} ({kind})"
    text = f"{text} of {row['seed_key']} ({kind}), similarity {row['similarity']:.4f}"
    limit = row["lookalike_threshold"]
    return text + (", no LT" if limit is None else f", LT {limit:.4f}")


def _labels(rows: list[Row]) -> list[str]:
    """One line for all labels that came together."""
    together: dict[str, list[str]] = {}
    for row in rows:
        origin = f"{row['source']} by {row['labeller']} in round {row['round']}"
        line = f"{origin} at {row['labelled_at']}"
        together.setdefault(line, []).append(f"{row['task']}={row['label']}")
    return [f"{' '.join(labels)}: {line}" for line, labels in together.items()] or ["no label"]


def _decisions(ledger: Ledger, clip: str) -> list[str]:
    """What was decided from several labels, and labels that are known and measure annotators."""
    lines = []
    for row in ledger.adjudications(clip):
        label = "unresolved" if row["label"] is None else row["label"]
        evidence = sorted(row["evidence"])
        origin = ", ".join(f"{labeller} in round {number}" for labeller, number in evidence)
        lines.append(
            f"{row['task']}={label}: adjudicated by {row['policy']}, share "
            f"{row['confidence']:.3f}, from {origin}, as of round {row['round']} at "
            f"{row['adjudicated_at']}"
        )
    measured = sorted(ledger.measured(clip).items())
    return [
        *lines,
        *(f"{task}={label}: known, measures annotators" for (_, task), label in measured),
    ]


if __name__ == "__main__":
    sys.exit(main())
