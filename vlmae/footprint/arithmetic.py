"""Bytes on a GPU and in the host's memory, line by line, for every strategy.

Weights, gradients and the optimiser's state are float32 in all of them. Proved on CPU ranks
(tests/distributed/test_footprint_on_ranks.py) are the lines `weights` to `optimiser`, and on one
process what moves with a live prefix (tests/vlmae/test_footprint.py); buckets, the gathered working
set and the step's workspace are read off the settings and the sources of torch 2.11 and DeepSpeed
0.19.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vlmae.footprint.activations import Activations
from vlmae.footprint.size import ModelSize
from vlmae.optimizers import OptimizerConfig
from vlmae.strategy import StrategyConfig

FLOAT = 4
MOST_GATHERED = 1_000_000_000
"""Elements that DeepSpeed keeps gathered at most, `stage3_max_live_parameters`' default."""
COPY = "second copy (hpZ)"
ALWAYS, START, BACKWARD, STEP, END = "always", "start", "backward", "step", "end"


@dataclass(frozen=True)
class Line:
    """One term.

    Attributes:
        name: what it is.
        size: bytes.
        when: "always", or the phase in which it is there: "start" (the model is built), "backward"
            (forward and backward pass), "step" (of the optimiser), "end" (predictions on the first
            rank's device).
    """

    name: str
    size: int
    when: str = ALWAYS


@dataclass(frozen=True)
class Placement:
    """How a training is spread.

    Attributes:
        strategy: its settings.
        optimizer: its settings.
        ranks: over all machines.
        live: the frozen prefix runs in the training, for want of a cache.
        accumulate: micro-batches of a step.
        overlap: gradients are reduced while others are computed, as on GPUs.
    """

    strategy: StrategyConfig
    optimizer: OptimizerConfig
    ranks: int
    live: bool
    accumulate: int = 1
    overlap: bool = True


def gpu_lines(size: ModelSize, activations: Activations, placed: Placement) -> list[Line]:
    """What lies on the fullest GPU, the first rank's."""
    config = placed.strategy
    trained, everything = sum(size.trained), size.parameters
    share = placed.ranks if config.sharded else 1
    shard = _part(size.trained, share)
    lines = [Line("weights", _weights(size, placed) + size.buffers)]
    if placed.live:
        # `VlmaeModule.encode` moves the towers whole; what trains is a copy of their last blocks.
        lines.append(Line("frozen prefix", size.prefix))
        lines.append(Line("the towers' own blocks behind the cut", size.loaded))
    if config.hpz_ranks > 1 and not config.offload_parameters:
        lines.append(Line(COPY, FLOAT * _part_of_all(size, config.hpz_ranks)))
    if config.name == "zero1" and placed.accumulate > 1:
        lines.append(Line("gradients until the last micro-batch", FLOAT * trained, BACKWARD))
    if not config.offload_optimizer:
        lines.append(Line("gradients", FLOAT * shard))
        if config.sharded:
            lines.append(Line("shard that the optimiser steps", FLOAT * shard))
        lines.append(Line("optimiser", FLOAT * _moments(placed.optimizer) * shard))
    # ZeRO 1 and 2 give theirs back at the end of the backward pass.
    when = BACKWARD if config.name in ("zero1", "zero2") else ALWAYS
    lines.append(Line("communication buckets", _buckets(size, placed), when))
    if config.name == "zero3":
        gathered = min(everything, MOST_GATHERED + max((*size.trained, *size.frozen), default=0))
        lines.append(Line("gathered weights (ZeRO-3)", FLOAT * gathered, BACKWARD))
    lines.append(Line("activations (estimate)", activations.total, BACKWARD))
    if not config.offload_optimizer:
        lines.append(Line("workspace of the step", FLOAT * shard, STEP))
    lines.append(Line("whole model for predictions", FLOAT * everything + size.buffers, END))
    return [line for line in lines if line.size]


def host_lines(size: ModelSize, placed: Placement) -> list[Line]:
    """What one rank keeps in the host's memory; python and its libraries are not counted."""
    config, everything = placed.strategy, FLOAT * size.parameters
    shard = FLOAT * _part(size.trained, placed.ranks)
    # Without a cache they move to the GPU, all of them, at the first step.
    when = START if placed.live else ALWAYS
    lines = [Line("towers as they were loaded", size.prefix + size.loaded, when)]
    lines.append(Line("whole model before it moves", everything, START))
    if config.offload_optimizer:
        lines.append(Line("offloaded optimiser", shard * (2 + _moments(placed.optimizer))))
    if config.offload_parameters:
        lines.append(Line("offloaded weights", FLOAT * _part_of_all(size, placed.ranks)))
        if config.hpz_ranks > 1:  # DeepSpeed keeps the copy where the shards are
            lines.append(Line(COPY, FLOAT * _part_of_all(size, config.hpz_ranks)))
    lines.append(Line("trained weights and a new model (first rank)", 2 * everything, END))
    return [line for line in lines if line.size]


def peak(lines: Sequence[Line]) -> tuple[str, int]:
    """The phase in which most is needed, and the bytes."""
    always = sum(line.size for line in lines if line.when == ALWAYS)
    phases = {
        when: always + sum(line.size for line in lines if line.when == when)
        for when in (START, BACKWARD, STEP, END)
    }
    most = max(phases, key=lambda when: phases[when])
    return most, phases[most]


def machine_bytes(lines: Sequence[Line], ranks: int) -> int:
    """What the first machine needs at most: its ranks start together, and one of them ends.

    Args:
        lines: of `host_lines`.
        ranks: of a machine.
    """
    always, start, end = (
        sum(line.size for line in lines if line.when == when) for when in (ALWAYS, START, END)
    )
    return ranks * always + max(ranks * start, end)


def _part(sizes: Sequence[int], ranks: int) -> int:
    """Elements of one rank; ZeRO pads every parameter or group to equal parts."""
    return sum(-(-size // ranks) for size in sizes)


def _part_of_all(size: ModelSize, ranks: int) -> int:
    return _part((*size.trained, *size.frozen), ranks)


def _weights(size: ModelSize, placed: Placement) -> int:
    config = placed.strategy
    if config.name != "zero3":
        return FLOAT * size.parameters
    whole = [n for n in (*size.trained, *size.frozen) if n <= config.persist_below]
    shards = 0 if config.offload_parameters else _part_of_all(size, placed.ranks)
    return FLOAT * (shards + sum(whole))


def _moments(optimizer: OptimizerConfig) -> int:
    if optimizer.name == "adamw":
        return 2
    return 1 if optimizer.momentum else 0


def _buckets(size: ModelSize, placed: Placement) -> int:
    """Elements are float32; what travels in bfloat16 is a copy beside them."""
    config, trained = placed.strategy, sum(size.trained)
    rounded = 2 if config.communication_data_type == "bf16" else 0
    if not config.sharded:
        # DDP copies all gradients into buckets of its own.
        return trained * (FLOAT + rounded) if placed.ranks > 1 else 0
    bucket = min(trained, max(config.bucket_size, max(size.trained, default=0)))
    copies = 2 if placed.overlap else 1
    return bucket * (FLOAT * copies + rounded)
