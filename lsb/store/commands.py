"""The commands of `python -m lsb.store`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lsb.console import console, run_command
from lsb.store.checks import find_faults
from lsb.store.description import describe
from lsb.store.drop import drop_clips, drop_parts
from lsb.store.merge import merge
from lsb.store.store import Store


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line entry point.

    Returns:
        The exit code: 0; 1 where `verify` found faults; 2 where something cannot be done.
    """
    return run_command(_parser().parse_args(arguments))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m lsb.store",
        description="Check, describe, merge and cut embedding stores (docs/store.md). A STORE is a "
        "stage folder or any URL that fsspec knows; OUTPUT is a local folder to be made.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser("verify", help="read all of it and name every fault")
    command.add_argument("store", metavar="STORE")
    command.set_defaults(run=_verify)
    command = commands.add_parser("stat", help="what it is")
    command.add_argument("store", metavar="STORE")
    command.set_defaults(run=_stat)
    command = commands.add_parser("merge", help="one store of several")
    command.add_argument("output", type=Path, metavar="OUTPUT")
    command.add_argument("stores", nargs="+", metavar="STORE")
    command.set_defaults(run=_merge)
    command = commands.add_parser("drop", help="a store without some parts or clips")
    command.add_argument("output", type=Path, metavar="OUTPUT")
    command.add_argument("store", metavar="STORE")
    what = command.add_mutually_exclusive_group(required=True)
    what.add_argument("--part", nargs="+", action="extend", metavar="NAME", help="parts to drop")
    what.add_argument("--keys", type=Path, metavar="FILE", help="clips to drop, one key a line")
    command.set_defaults(run=_drop)
    return parser


def _verify(options: argparse.Namespace) -> int:
    faults = find_faults(options.store)
    for fault in faults:
        print(fault)
    if faults:
        print(f"{options.store}: {len(faults)} faults", file=sys.stderr)
        return 1
    store = Store.open(options.store)
    print(f"{options.store} is whole: {len(store.parts):,} parts, {len(store):,} rows")
    return 0


def _stat(options: argparse.Namespace) -> int:
    console().print(describe(Store.open(options.store)))
    return 0


def _merge(options: argparse.Namespace) -> int:
    return _made(options.output, merge(options.output, [Store.open(s) for s in options.stores]))


def _drop(options: argparse.Namespace) -> int:
    store = Store.open(options.store)
    if options.part:
        return _made(options.output, drop_parts(options.output, store, options.part))
    keys = [line for line in options.keys.read_text("utf-8").splitlines() if line]
    return _made(options.output, drop_clips(options.output, store, keys))


def _made(output: Path, new: bool) -> int:
    store = Store.open(output)
    what = f"{len(store.parts):,} parts, {len(store):,} rows, content {store.hash}"
    print(f"{output}: {what}" if new else f"{output} was there already: {what}")
    return 0
