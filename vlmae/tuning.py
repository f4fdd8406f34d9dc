"""How much of a tower trains: nothing, its last blocks, adapters in them, or all of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TowerTuning:
    """How one tower trains.

    Attributes:
        mode: "frozen".
    """

    mode: str = "frozen"


def tuning_config(values: Mapping[str, Any] | None) -> dict[str, TowerTuning]:
    """Tower ("vl", "audio") -> how it trains, from the group `tuning`."""
    return {tower: TowerTuning(**dict((values or {}).get(tower, {}))) for tower in ("vl", "audio")}


def tuned_node(node: Mapping[str, Any], tuning: TowerTuning) -> dict[str, Any]:
    """The Hydra node of a tower, cut as its tuning wants."""
    return dict(node)
