"""How much memory a training needs on these nodes, and the nearest settings that fit.

What can be counted is counted on the model (`vlmae.footprint`), which is built once, without
weights, for all settings that are tried.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from launch.jobs.launcher_config import LauncherConfig, launcher_config
from vlmae.config import build, checked
from vlmae.data.decode import DecodePolicy
from vlmae.data.prefix_cache import PrefixConfig
from vlmae.footprint.activations import Activations, measure
from vlmae.footprint.arithmetic import Line, Placement, gpu_lines, host_lines, machine_bytes, peak
from vlmae.footprint.size import token_shapes, weightless_model
from vlmae.optimizers import OptimizerConfig
from vlmae.ranks import Ranks
from vlmae.settings import model_config, tower_nodes
from vlmae.strategy import StrategyConfig
from vlmae.trainer import TrainConfig

GIB = 2**30
HEAVIER = ("ddp", "zero1", "zero2", "zero3")
MOST_NODES = 64


@dataclass(frozen=True)
class PlanConfig:
    """What there is.

    Attributes:
        gpu_memory_gb: of one GPU, in GiB.
        headroom: share of it that stays free.
        seconds: of sound in a clip.
        host_memory_gb: of one machine, in GiB; None does not ask.
    """

    gpu_memory_gb: float
    headroom: float
    seconds: float
    host_memory_gb: float | None = None

    def __post_init__(self) -> None:
        if not self.gpu_memory_gb > 0 or not 0 <= self.headroom < 1 or not self.seconds > 0:
            raise ValueError(
                f"plan has gpu_memory_gb {self.gpu_memory_gb}, headroom {self.headroom}, seconds "
                f"{self.seconds}: give more than 0, a share in [0, 1), and more than 0"
            )
        if self.host_memory_gb is not None and not self.host_memory_gb > 0:
            raise ValueError(
                f"plan.host_memory_gb is {self.host_memory_gb}: give more than 0, or null"
            )


@dataclass(frozen=True)
class Setting:
    """What may be changed to make a training fit.

    Attributes:
        strategy: how ranks share the work.
        train: batch size, accumulation, recomputing.
        nodes: machines.
        ranks: on each.
    """

    strategy: StrategyConfig
    train: TrainConfig
    nodes: int
    ranks: int

    @property
    def world(self) -> int:
        """All ranks."""
        return self.nodes * self.ranks

    @property
    def global_batch(self) -> int:
        """Clips in a step of the optimiser."""
        return self.world * self.train.batch_size * self.train.accumulate


@dataclass(frozen=True)
class Need:
    """What a setting takes.

    Attributes:
        gpu: lines of the fullest GPU.
        host: lines of one rank.
        gpu_peak: phase and bytes.
        node: bytes of the first machine, all its ranks together.
    """

    gpu: list[Line]
    host: list[Line]
    gpu_peak: tuple[str, int]
    node: int


class Planner:
    """The arithmetic of one config.

    Args:
        values: of `conf/plan.yaml`, as plain containers.

    Raises:
        ValueError: a value is wrong, or a tower's configuration is not there.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.plan = build("plan", PlanConfig, values["plan"])
        self.optimizer = build("optimizer", OptimizerConfig, values["optimizer"])
        launcher: LauncherConfig = launcher_config(values["launcher"])
        # Only SLURM's launcher has more machines than one.
        self._most_nodes = max(MOST_NODES, launcher.nodes) if launcher.name == "slurm" else 1
        self.asked = Setting(
            build("strategy", StrategyConfig, values["strategy"]),
            build("trainer", TrainConfig, values["trainer"]),
            launcher.nodes,
            launcher.ranks,
        )
        # Offload needs a GPU, and a plan is about GPUs whatever this machine has.
        self.asked.strategy.check("gpu", Ranks(0, self.asked.world, launcher.ranks))
        tasks = checked("task.names", list[str], values["task"]["names"])
        self._model, towers, self.size = weightless_model(
            *tower_nodes(values), model_config(values, tasks)
        )
        prefix = build("prefix", PrefixConfig, values["prefix"])
        self.live = prefix.use != "require"
        policy = build("decode", DecodePolicy, values["decode"])
        self.shapes = token_shapes(towers, policy.frames, self.plan.seconds)
        self._measured: dict[tuple[int, bool, str], Activations] = {}

    @property
    def usable(self) -> int:
        """Bytes of a GPU that a training may take."""
        return int(self.plan.gpu_memory_gb * GIB * (1 - self.plan.headroom))

    def need(self, setting: Setting) -> Need:
        """What a setting takes."""
        placed = Placement(
            setting.strategy, self.optimizer, setting.world, self.live, setting.train.accumulate
        )
        gpu = gpu_lines(self.size, self.activations(setting.train), placed)
        host = host_lines(self.size, placed)
        return Need(gpu, host, peak(gpu), machine_bytes(host, setting.ranks))

    def fits(self, need: Need) -> bool:
        """Whether GPUs and machines have that much."""
        most = self.plan.host_memory_gb
        return need.gpu_peak[1] <= self.usable and (most is None or need.node <= most * GIB)

    def nearest(self) -> tuple[Setting, list[str]] | None:
        """The first of the `alternatives` that fits, and its overrides; None if none does."""
        for setting, overrides in self.alternatives():
            if self.fits(self.need(setting)):
                return setting, overrides
        return None

    def alternatives(self) -> Iterator[tuple[Setting, list[str]]]:
        """Settings in the order they are tried, from those that change nothing but time.

        Recomputed blocks; smaller micro-batches, accumulated to the same step; strategies that
        shard more, then in the host's memory; the same on two, four, ... times as many machines.
        ZeRO-3 over several machines has a second copy of the weights on each where there is room.
        """
        asked = self.asked
        nodes = asked.nodes
        while nodes <= self._most_nodes:
            for strategy in self._strategies(nodes):
                copied = self.with_copy(strategy, nodes)
                # The strategy that was asked, with or without a copy, is tried as it was asked.
                if copied is None or asked.strategy in (strategy, copied):
                    choices = [strategy]
                else:
                    choices = [copied, strategy]
                for train in self._trainings():
                    for chosen in choices:
                        setting = replace(asked, strategy=chosen, train=train, nodes=nodes)
                        if overrides := _overrides(asked, setting):
                            yield setting, overrides
            nodes *= 2

    def with_copy(self, strategy: StrategyConfig, nodes: int) -> StrategyConfig | None:
        """ZeRO-3 with a second copy of the weights on each machine (hpZ); None where it is no use.

        It costs memory, and saves the backward pass what it would gather from other machines.
        """
        useful = strategy.name == "zero3" and nodes > 1 and self.asked.ranks > 1
        if not useful or strategy.hpz_ranks > 1 or strategy.offload_parameters:
            return None
        return replace(strategy, hpz_ranks=self.asked.ranks)

    def _strategies(self, nodes: int) -> list[StrategyConfig]:
        """As asked first, then those that shard more."""
        asked = self.asked.strategy
        alone = replace(asked, hpz_ranks=1)
        found = [asked] if asked == alone else [asked, alone]
        if nodes * self.asked.ranks > 1:
            for name in HEAVIER[HEAVIER.index(asked.name) + 1 :]:
                # conf/strategy has no ZeRO-3 that keeps its weights and offloads the rest.
                weights = name == "zero3" and asked.offload_optimizer
                found.append(replace(asked, name=name, offload_parameters=weights))
        offloaded = replace(alone, name="zero3", offload_optimizer=True, offload_parameters=True)
        return found if offloaded in found else [*found, offloaded]

    def _trainings(self) -> list[TrainConfig]:
        asked = self.asked.train
        blocks = (asked.checkpoint_blocks,) if asked.checkpoint_blocks else self._recomputing
        found, size = [], asked.batch_size
        while True:
            accumulate = asked.accumulate * asked.batch_size // size
            found += [
                replace(asked, batch_size=size, accumulate=accumulate, checkpoint_blocks=recompute)
                for recompute in blocks
            ]
            if size % 2:
                return found
            size //= 2

    @cached_property
    def _recomputing(self) -> tuple[bool, ...]:
        can = any(hasattr(module, "checkpointing") for module in self._model.modules())
        return (False, True) if can else (False,)

    def activations(self, train: TrainConfig) -> Activations:
        """Of a micro-batch, measured once for equal settings."""
        key = (train.batch_size, train.checkpoint_blocks, train.precision)
        if key not in self._measured:
            self._measured[key] = measure(
                self._model,
                self.shapes,
                train.batch_size,
                bf16=train.precision == "bf16-mixed",
                recompute=train.checkpoint_blocks,
            )
        return self._measured[key]


def _overrides(asked: Setting, setting: Setting) -> list[str]:
    """What to add to the command line for a setting."""
    pairs = [
        ("strategy", _file(asked.strategy), _file(setting.strategy)),
        ("strategy.hpz_ranks", asked.strategy.hpz_ranks, setting.strategy.hpz_ranks),
        ("trainer.batch_size", asked.train.batch_size, setting.train.batch_size),
        ("trainer.accumulate", asked.train.accumulate, setting.train.accumulate),
        (
            "trainer.checkpoint_blocks",
            asked.train.checkpoint_blocks,
            setting.train.checkpoint_blocks,
        ),
        ("launcher.nodes", asked.nodes, setting.nodes),
    ]
    return [f"{key}={str(new).lower()}" for key, old, new in pairs if old != new]


def _file(strategy: StrategyConfig) -> str:
    """Of conf/strategy."""
    whole = strategy.offload_parameters or strategy.name != "zero3"
    return strategy.name + ("_offload" if strategy.offload_optimizer and whole else "")
