"""The one place where faiss is imported.

torch comes first: in the other order faiss searches hang in forked loader workers. The wheels
faiss-cpu and faiss-gpu own the same folder, so with both installed either may be the one that runs.
"""

from __future__ import annotations

from importlib import metadata
from typing import Any

import torch

assert torch is not None  # imported for its side effect, before faiss

DISTRIBUTIONS = ("faiss-cpu", "faiss-gpu")


def check_distributions() -> str:
    """Name of the one installed faiss distribution.

    Raises:
        ImportError: none or both are installed; the message says what to do.
    """
    installed = [name for name in DISTRIBUTIONS if _is_installed(name)]
    if not installed:
        raise ImportError(
            "faiss is not installed: run `pip install vlmae[cpu]`, or `pip install vlmae[gpu]` on "
            "a machine with CUDA"
        )
    if len(installed) > 1:
        raise ImportError(
            "faiss-cpu and faiss-gpu are both installed and overwrite each other's files: run "
            "`pip uninstall -y faiss-cpu faiss-gpu`, then `pip install vlmae[cpu]` or "
            "`pip install vlmae[gpu]`"
        )
    return installed[0]


def load() -> Any:
    """The faiss module, after `check_distributions`."""
    check_distributions()
    import faiss

    return faiss


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
