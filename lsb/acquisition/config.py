"""Which acquisition orders the pool, and what each needs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

SCORED = ("entropy", "least_confidence", "margin", "top_score", "disagreement")
"""Read probabilities that every store of kind "fused" holds."""
STOCHASTIC = ("dropout_variance", "bald")
"""Read dropout passes, which a store holds where they were asked for."""
DIVERSE = ("core_set", "badge", "typiclust")
"""Compare vectors of a bounded number of candidates."""
OF_CLASSES = ("entropy", "least_confidence", "margin", *STOCHASTIC)
"""Score tasks that exclude each other as the classes of one question."""
ACQUISITIONS = (*SCORED, *STOCHASTIC, *DIVERSE, "random")
ELSEWHERE = {
    "proxy": "it is fitted on training labels and vectors of a pooled store, which a fused store "
    "does not hold: call lsb.acquisition.proxy.fit_proxy and rank_by_proxy",
    "confident_errors": "it finds labelled clips, it does not order the pool: set "
    "broadening.confident_error, which makes seeds of them",
}


@dataclass(frozen=True)
class AcquisitionConfig:
    """The order in which the pool is asked where no seed brings a clip.

    Attributes:
        name: one of `ACQUISITIONS`, see docs/acquisition.md.
        task_weights: task -> weight >= 0, for scores, seeds, and calibration.
        seed: of chance.
        dropout_samples: passes with dropout that "dropout_variance" and "bald" read, columns
            `dropout_logit_<task>_<0 ... dropout_samples - 1>`.
        candidates: clips among which "core_set", "badge" and "typiclust" choose: the pool's by
            chance, for "badge" those with the longest gradients. All, if the pool is not larger.
        groups: group -> two or more tasks that exclude each other (`objective=softmax`). The
            acquisitions of `OF_CLASSES` score its probabilities together, with the sum of the
            tasks' weights; `top_score` and `disagreement` score each task by itself.
    """

    name: str = "entropy"
    task_weights: Mapping[str, float] = field(default_factory=dict)
    seed: int = 0
    dropout_samples: int = 0
    candidates: int = 20_000
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name in ELSEWHERE:
            raise ValueError(f"acquisition.name is {self.name!r}: {ELSEWHERE[self.name]}")
        if self.name not in ACQUISITIONS:
            raise ValueError(
                f"acquisition.name is {self.name!r}: use one of {', '.join(ACQUISITIONS)}"
            )
        if self.name in STOCHASTIC and self.dropout_samples < 2:
            raise ValueError(
                f"acquisition.dropout_samples is {self.dropout_samples}: {self.name} compares "
                "passes with dropout; give at least 2, 10 are usual"
            )
        if self.name not in STOCHASTIC and self.dropout_samples:
            raise ValueError(
                f"acquisition.dropout_samples is {self.dropout_samples} but {self.name} reads no "
                f"passes with dropout: set it to 0, or name one of {', '.join(STOCHASTIC)}"
            )
        small = [group for group, tasks in self.groups.items() if len(tasks) < 2]
        if small:
            raise ValueError(
                f"acquisition.groups.{small[0]} has {len(self.groups[small[0]])} tasks: give two "
                "or more that exclude each other"
            )
        if self.groups and self.name == "badge":
            raise ValueError(
                "acquisition.name is badge, whose gradients are those of binary tasks, and tasks "
                f"of {', '.join(sorted(self.groups))} exclude each other (objective.groups): use "
                "another acquisition, or objective=binary"
            )
        if self.candidates < 1:
            raise ValueError(f"acquisition.candidates is {self.candidates}: give at least 1 clip")

    @property
    def reads_scores(self) -> bool:
        """Whether it needs what a model says of each clip."""
        return self.name not in ("random", "core_set", "typiclust")

    def identity(self) -> dict[str, Any]:
        """What can change a result: settings that this acquisition does not read are left out."""
        values = asdict(self)
        if self.name not in STOCHASTIC:
            del values["dropout_samples"]
        if self.name not in DIVERSE:
            del values["candidates"]
        if not self.groups or self.name not in OF_CLASSES:
            del values["groups"]
        return values
