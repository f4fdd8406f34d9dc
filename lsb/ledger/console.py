"""How the ledger's commands print."""

from __future__ import annotations

import sys

from rich.console import Console


def console() -> Console:
    """A console that prints keys as they are, 160 columns wide where nobody watches."""
    width = None if sys.stdout.isatty() else 160
    return Console(width=width, markup=False, emoji=False, highlight=False)
