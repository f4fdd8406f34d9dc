"""How the ranks of a training share its work."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from vlmae.ranks import Ranks

if TYPE_CHECKING:
    from vlmae.module import VlmaeModule
    from vlmae.trainer import TrainConfig


@dataclass(frozen=True)
class StrategyConfig:
    """How the ranks share the work.

    Attributes:
        name: "ddp".
    """

    name: str = "ddp"

    def hashed(self) -> dict[str, Any]:
        """What changes results."""
        return asdict(self)


def build_strategy(config: StrategyConfig, train: TrainConfig, ranks: Ranks) -> Any:
    """The Lightning strategy."""
    return "ddp" if ranks.size > 1 else "auto"


def whole_state(module: VlmaeModule) -> dict[str, Tensor]:
    """The model's state dict on the CPU, whole on the first rank. Collective."""
    return {name: tensor.detach().cpu() for name, tensor in module.model.state_dict().items()}
