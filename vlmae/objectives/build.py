"""An objective from its Hydra node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from vlmae.objectives.base import Objective


def build_objective(node: Mapping[str, Any], tasks: Sequence[str]) -> Objective:
    """The objective of a Hydra node, for these tasks.

    Raises:
        ValueError: the node's `_target_` is no `Objective`, or its options are wrong.
    """
    try:
        objective = instantiate(dict(node), tasks=list(tasks), _convert_="all")
    except InstantiationException as error:
        # Hydra wraps what a constructor refused; the refusal is what the user needs.
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise ValueError(f"objective cannot be built: {error}") from error
    if not isinstance(objective, Objective):
        raise ValueError(
            f"objective._target_ is {node.get('_target_')!r}, which is no objective: use a file of "
            "conf/objective, or a subclass of vlmae.objectives.Objective"
        )
    return objective
