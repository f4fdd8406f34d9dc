"""Softmax over tasks that exclude each other, beside binary tasks; labels may be partial.

Every class keeps a column of its own, so that labels, predictions and thresholds look as they do
for binary tasks. A clip with a positive label is of that class. One of which only some classes are
known to be wrong is of any of the others: its loss is -log of their summed probability.

Source of the partial-label loss: Jin and Ghahramani 2002 (Learning with multiple labels, NIPS 15),
with a uniform prior over the classes left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from vlmae.objectives.base import MISSING, Objective
from vlmae.objectives.binary import ClassWeights, read_class_weights
from vlmae.objectives.weighting import build_weighting


class GroupedSoftmax(Objective):
    """Cross-entropy a group of exclusive tasks, binary cross-entropy a task that is in none.

    Exactly one task of a group is true of a clip; add one for "none of these" where that happens.

    Args:
        tasks: task names in the order of the logits' columns.
        weights: weight of each group's or loose task's terms; those not named weigh 1.
        groups: group name -> its tasks, two or more.
        class_weights: task -> weight of clips of that class, 1 where not named; a loose task may
            have [negatives, positives]. A clip whose class is not known weighs 1.
        weighting: "fixed" or "uncertainty" (`vlmae.objectives.weighting`).

    Raises:
        ValueError: no group, groups that overlap or name unknown tasks, or a weight that cannot be.
    """

    def __init__(
        self,
        tasks: Sequence[str],
        weights: Mapping[str, float],
        groups: Mapping[str, Sequence[str]],
        class_weights: ClassWeights | None = None,
        weighting: str = "fixed",
    ) -> None:
        _check_groups(tasks, groups)
        class_weights = class_weights or {}
        grouped = {task for members in groups.values() for task in members}
        pairs = sorted(task for task in grouped if isinstance(class_weights.get(task), Sequence))
        if pairs:
            raise ValueError(
                f"objective.class_weights gives {pairs} a weight of negatives, which a class of a "
                "group does not have: give one number"
            )
        kinds = {
            name: [list(tasks).index(task) for task in members] for name, members in groups.items()
        }
        kinds |= {task: [column] for column, task in enumerate(tasks) if task not in grouped}
        named = "groups and loose tasks"
        super().__init__(tasks, kinds, build_weighting(weighting, weights, list(kinds), named))
        self.groups = tuple(groups)
        self.register_buffer("class_weights", read_class_weights(tasks, class_weights))
        self.class_weights: Tensor

    def terms(self, labels: Tensor) -> Tensor:
        """See `Objective.terms`: one kind a group, then one a loose task."""
        present = []
        for name, columns in self.kinds.items():
            own = labels[:, columns]
            if name in self.groups:
                # All wrong says nothing that could be learned; `check` refuses it.
                known = (own == 1).any(dim=1) | ((own == 0).any(dim=1) & (own != 0).any(dim=1))
            else:
                known = own[:, 0] != MISSING
            present.append(known)
        return torch.stack(present, dim=1).float()

    def nll(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Objective.nll`."""
        values = [
            _partial_label_nll(logits[:, columns], labels[:, columns])
            if name in self.groups
            else _binary_nll(logits[:, columns[0]], labels[:, columns[0]])
            for name, columns in self.kinds.items()
        ]
        return torch.stack(values, dim=1)

    def losses(self, logits: Tensor, labels: Tensor) -> Tensor:
        """See `Objective.losses`."""
        negative, positive = self.class_weights.to(logits.dtype)
        factors = []
        for name, columns in self.kinds.items():
            own = labels[:, columns]
            if name in self.groups:
                of_class = torch.where(own == 1, positive[list(columns)], 0.0).sum(dim=1)
                factors.append(torch.where((own == 1).any(dim=1), of_class, 1.0))
            else:
                column = columns[0]
                factors.append(torch.where(own[:, 0] == 1, positive[column], negative[column]))
        return self.nll(logits, labels) * torch.stack(factors, dim=1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """See `Objective.probabilities`: those of a group add up to 1."""
        values = logits.sigmoid()
        for name in self.groups:
            columns = torch.tensor(self.kinds[name], device=logits.device)
            values = values.index_copy(1, columns, logits[:, columns].softmax(dim=1))
        return values

    def check(self, labels: Tensor) -> None:
        """See `Objective.check`: two classes of a group at once, or none of all."""
        for name in self.groups:
            columns = self.kinds[name]
            own = labels[:, columns]
            several = int(((own == 1).sum(dim=1) > 1).sum())
            none = int((own == 0).all(dim=1).sum())
            if several or none:
                members = [self.tasks[column] for column in columns]
                raise ValueError(
                    f"group {name!r} of exclusive tasks {members}: {several} clips are labelled "
                    f"with more than one of them, {none} with none: correct these labels, add a "
                    "task for what is none of these, or take the tasks out of objective.groups"
                )


def _partial_label_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """(B,) -log of the summed probability of the classes that (B, C) labels leave possible."""
    positive = labels == 1
    possible = torch.where(positive.any(dim=1, keepdim=True), positive, labels != 0)
    # Where none is left all are: a zero without a term, where infinity times 0 would be NaN.
    possible = possible | ~possible.any(dim=1, keepdim=True)
    held = torch.where(possible, logits, -torch.inf)
    return logits.logsumexp(dim=1) - held.logsumexp(dim=1)


def _binary_nll(logits: Tensor, labels: Tensor) -> Tensor:
    targets = labels.clamp_min(0).to(logits.dtype)
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")


def _check_groups(tasks: Sequence[str], groups: Mapping[str, Sequence[str]]) -> None:
    if not groups:
        raise ValueError(
            "objective.groups is empty: name groups of tasks that exclude each other, e.g. "
            "+objective.groups.topic=[sport,music], or use objective=binary"
        )
    taken: dict[str, str] = {}
    for name, members in groups.items():
        unknown = sorted(set(members) - set(tasks))
        if unknown:
            raise ValueError(f"objective.groups.{name} has {unknown}, the tasks are {list(tasks)}")
        if len(members) < 2:
            raise ValueError(f"objective.groups.{name} is {list(members)}: give two tasks or more")
        if name in tasks and name not in members:
            raise ValueError(f"objective.groups has {name!r}, the name of a task: rename the group")
        for task in members:
            if task in taken:
                raise ValueError(
                    f"task {task!r} is in objective.groups.{taken[task]} and in {name}: a task is "
                    "once in one group"
                )
            taken[task] = name
