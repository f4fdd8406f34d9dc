"""How many parameters a model has and trains, part by part."""

from __future__ import annotations

from collections.abc import Mapping

from rich.table import Table
from torch import nn

TRAINABLE, ALL = "trainable: ", "parameters: "


def count_by_part(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Part -> (trainable, all) of its parameters, in the model's order.

    Parts are the top-level modules; of the suffix, each stream is one ("suffix.audio"). Buffers are
    not counted, nor are the towers in front of the cut, which are no part of the model.
    """
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in model.named_parameters():
        pieces = name.split(".")
        part = ".".join(pieces[:2]) if pieces[0] == "suffix" else pieces[0]
        # ZeRO-3 keeps an empty tensor in place of the values, and their number beside it.
        size = int(getattr(parameter, "ds_numel", parameter.numel()))
        trainable, total = counts.get(part, (0, 0))
        counts[part] = (trainable + size * parameter.requires_grad, total + size)
    return counts


def part_counts(model: nn.Module) -> dict[str, int]:
    """`count_by_part` as counts of a stage: "trainable: <part>" and "parameters: <part>"."""
    parts = count_by_part(model).items()
    trainable = {TRAINABLE + part: count for part, (count, _) in parts if count}
    return trainable | {ALL + part: count for part, (_, count) in parts}


def trainable_count(counts: Mapping[str, int]) -> int:
    """How many parameters train, over all parts, from the counts of a train stage."""
    return sum(count for name, count in counts.items() if name.startswith(TRAINABLE))


def part_table(counts: Mapping[str, int]) -> Table:
    """Table of the counts of a train stage, a line a part and one for their sum.

    Args:
        counts: of a stage, see `part_counts`; others are left out.
    """
    parts = [name.removeprefix(ALL) for name in counts if name.startswith(ALL)]
    rows = [(part, counts.get(TRAINABLE + part, 0), counts[ALL + part]) for part in parts]
    table = Table("part", title="parameters")
    for column in ("trainable", "all", "share"):
        table.add_column(column, justify="right")
    total = ("sum", sum(row[1] for row in rows), sum(row[2] for row in rows))
    for part, trainable, size in [*rows, total]:
        table.add_row(part, f"{trainable:,}", f"{size:,}", f"{trainable / max(1, size):.1%}")
    return table
