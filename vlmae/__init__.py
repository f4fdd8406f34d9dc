"""Audio-enhanced vision-language models: clips in, tokens and task probabilities out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import lsb  # noqa: F401  # sets how OpenMP threads wait, before torch is loaded

if TYPE_CHECKING:
    from vlmae.scorer import Scorer

__all__ = ["load"]


def load(folder: str | Path, **options: Any) -> Scorer:
    """A model that `python -m vlmae.export` wrote, ready for clips; see `vlmae.scorer.load`."""
    # Here and not above: importing the package stays light.
    from vlmae.scorer import load as read

    return read(folder, **options)
