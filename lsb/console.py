"""What the commands of `lsb` share: how they print, and how they end."""

from __future__ import annotations

import argparse
import sys

from rich.console import Console


def console() -> Console:
    """A console that prints keys as they are, 160 columns wide where nobody watches."""
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, markup=False, emoji=False, highlight=False)


def run_command(options: argparse.Namespace) -> int:
    """Run the subcommand that was chosen.

    Args:
        options: with `run`, a function of them that returns an exit code.

    Returns:
        Its exit code, or 2 where something cannot be done, which is then one line.
    """
    try:
        return int(options.run(options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
