"""How much of a tower trains: nothing, its last blocks, LoRA in them, all of it, or adapters.

The group `tuning` says it per tower, in words that hold for every backbone. Two things follow from
it: where the tower is cut (`tuned_node` sets `tuned_blocks` of its Hydra node, so that the cache
ends there), and which weights behind the cut move (`tune` on a copy of them). The two are apart on
purpose: LoRA in the last n blocks and the last n blocks themselves have the same cut, and so one
cache (design, contract 11).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

from vlmae.config import build
from vlmae.lora import add_lora

TOWERS = ("vl", "audio")
MODES = ("frozen", "last", "lora", "full", "adapters")
ALL: Literal["all"] = "all"
LORA_KEYS = ("rank", "alpha", "lora_dropout", "targets")
Blocks = int | Literal["all"]


@dataclass(frozen=True)
class TowerTuning:
    """How one tower trains.

    Attributes:
        mode: "frozen", as loaded; "last", the last blocks; "lora", low-rank updates of the linear
            layers of the last blocks, which stay as loaded (`vlmae.lora`); "full", everything, cut
            at the inputs; "adapters", nothing of the tower, but what a fusion puts between its last
            blocks (fusion=deep).
        blocks: how many of the last blocks are behind the cut, of every stream or by stream; "all"
            cuts at the inputs. A stream that a mapping leaves out is frozen.
        learning_rate: of its weights, as a factor of the optimiser's.
        unfreeze: share of all steps, in [0, 1), before which its weights do not move, rounded down
            to whole steps.
        rank: of LoRA's updates; 8 if not given.
        alpha: LoRA's updates are scaled by alpha / rank; twice the rank if not given.
        lora_dropout: on the inputs of LoRA's updates, in [0, 1); 0 if not given.
        targets: last parts of the names of the layers that LoRA changes, e.g. ["q_proj"]; all
            linear layers of the blocks if not given.

    Raises:
        ValueError: a value out of range or one that contradicts the mode.
    """

    mode: str = "frozen"
    blocks: Blocks | Mapping[str, Blocks] | None = None
    learning_rate: float = 0.1
    unfreeze: float = 0.0
    rank: int | None = None
    alpha: int | None = None
    lora_dropout: float | None = None
    targets: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise ValueError(f"tuning has mode {self.mode!r}: use one of {', '.join(MODES)}")
        if not self.learning_rate > 0 or not 0 <= self.unfreeze < 1:
            raise ValueError(
                f"tuning has learning_rate {self.learning_rate}, unfreeze {self.unfreeze}: give a "
                "factor above 0 and a share in [0, 1); mode frozen is what never moves"
            )
        if (
            (self.rank is not None and self.rank < 1)
            or (self.alpha is not None and self.alpha < 1)
            or not 0 <= (self.lora_dropout or 0.0) < 1
            or (self.targets is not None and not self.targets)
        ):
            raise ValueError(
                f"tuning has rank {self.rank}, alpha {self.alpha}, lora_dropout "
                f"{self.lora_dropout}, targets {self.targets}: give a rank and an alpha of 1 or "
                "more, a share in [0, 1), and at least one name or null for all linear layers"
            )
        self._check_blocks()
        without_effect = self._without_effect()
        if without_effect:
            warnings.warn(
                f"tuning has {', '.join(without_effect)} without effect in mode {self.mode}",
                UserWarning,
                stacklevel=3,
            )

    @property
    def cut(self) -> Blocks | dict[str, Blocks]:
        """`tuned_blocks` of the tower's node, in one spelling however it is said; 0 if none."""
        if self.mode == "frozen":
            return 0
        if self.mode == "full":
            return ALL
        return _one_spelling(self.blocks)

    @property
    def trains(self) -> bool:
        """Whether weights of the tower itself, or LoRA's, move."""
        return self.mode in ("last", "lora", "full")

    def _check_blocks(self) -> None:
        blocks, mode = self.blocks, self.mode
        given = list(blocks.values()) if isinstance(blocks, Mapping) else [blocks]
        numbers = [number for number in given if number is not None and number != ALL]
        if any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in numbers):
            raise ValueError(
                f"tuning has blocks {blocks!r}: give how many of the last blocks, {ALL!r}, or a "
                "mapping of streams to either"
            )
        if mode == "full" and blocks not in (None, ALL):
            raise ValueError(
                f"tuning has mode full with blocks {blocks!r}: full trains every block and the "
                "embeddings; for the last blocks use mode last"
            )
        if mode == "last" and blocks == ALL:
            raise ValueError(
                "tuning has mode last with blocks 'all': use mode full, or give their number"
            )
        if mode in ("last", "lora", "adapters") and not any(given):
            raise ValueError(
                f"tuning has mode {mode} with blocks {blocks!r}: give how many of the last blocks "
                "it is about, or use mode frozen"
            )

    def _without_effect(self) -> list[str]:
        """Keys that were given and that the mode does not read."""
        unread = list(LORA_KEYS) if self.mode != "lora" else []
        if not self.trains:
            unread += ["learning_rate", "unfreeze"]
        if self.mode == "frozen" and self.blocks != 0:
            unread.append("blocks")
        defaults = {field.name: field.default for field in fields(self)}
        return [name for name in unread if getattr(self, name) != defaults[name]]


def tuning_config(values: Mapping[str, Any] | None) -> dict[str, TowerTuning]:
    """Tower ("vl", "audio") -> how it trains, from the group `tuning`.

    A tower that the group leaves out is frozen. Without any group nothing is said: towers are cut
    as their nodes are, and what is behind the cuts trains.

    Raises:
        ValueError: an unknown tower or key, or a value out of range.
    """
    if not values:
        return {}
    unknown = sorted(set(values) - set(TOWERS))
    if unknown:
        raise ValueError(f"tuning has no tower {unknown[0]!r}, only {', '.join(TOWERS)}")
    tuning = {
        tower: build(f"tuning.{tower}", TowerTuning, values.get(tower) or {}) for tower in TOWERS
    }
    if tuning["audio"].mode == "adapters":
        raise ValueError(
            "tuning.audio.mode is 'adapters', and a fusion acts inside the vision-language tower "
            "alone: use another mode for audio"
        )
    return tuning


def tuned_node(node: Mapping[str, Any], tuning: TowerTuning | None) -> dict[str, Any]:
    """The Hydra node of a tower, cut as its tuning wants.

    Equal cuts give equal nodes, however they are said, so that caches are found again.

    Args:
        node: with `_target_`.
        tuning: of the tower; None leaves the node as it is.

    Raises:
        ValueError: the node has blocks of its own, and they are others.
    """
    cut_node = {key: value for key, value in node.items() if key != "tuned_blocks"}
    given = _one_spelling(node.get("tuned_blocks"))
    wanted = given if tuning is None else tuning.cut
    if given not in (0, wanted):
        raise ValueError(
            f"{node.get('_target_')} has tuned_blocks {given!r}, and its tuning (mode "
            f"{tuning.mode if tuning else None}) wants {wanted!r}: leave tuned_blocks out of the "
            "backbone and set the mode and blocks of the group tuning"
        )
    return {**cut_node, "tuned_blocks": wanted} if wanted else cut_node


def tune(stream: nn.Module, tuning: TowerTuning | None, name: str) -> None:
    """Make that part of one stream's end trainable which its tuning trains, in place.

    Args:
        stream: a copy of what lies behind its cut.
        tuning: of its tower; None trains all of it.
        name: of the stream, for messages.

    Raises:
        ValueError: LoRA finds no layer to change.
    """
    stream.requires_grad_(tuning is None or tuning.mode in ("last", "full"))
    if tuning is not None and tuning.mode == "lora":
        rank = tuning.rank or 8
        add_lora(
            stream,
            name,
            rank=rank,
            alpha=tuning.alpha or 2 * rank,
            dropout=tuning.lora_dropout or 0.0,
            targets=tuning.targets,
        )


def _one_spelling(blocks: Blocks | Mapping[str, Blocks] | None) -> Blocks | dict[str, Blocks]:
    """A number or a mapping without zeros, in order of names; 0 if it names no block."""
    if isinstance(blocks, Mapping):
        return {name: blocks[name] for name in sorted(blocks) if blocks[name]} or 0
    return blocks or 0
