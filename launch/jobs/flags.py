"""Flags of commands, which Hydra knows as overrides."""

from __future__ import annotations

import sys

FLAGS = {"--dry-run": "launcher.dry_run=true"}
NO_SCRIPTS = "launcher=local has no scripts: add launcher=slurm to see those of a cluster"


def read_flags(**more: str) -> None:
    """Take flags on the command line as the overrides they stand for.

    Args:
        **more: name of a flag, without its dashes -> override, beside `--dry-run`.
    """
    flags = FLAGS | {f"--{name}": override for name, override in more.items()}
    sys.argv[1:] = [flags.get(argument, argument) for argument in sys.argv[1:]]
