"""From which probability on a prediction may be taken for a label, measured on gold clips.

A probability is not a confidence: what counts is how often predictions of at least that probability
are right on gold clips, with its lower bound (Clopper-Pearson, as for LT in `lsb.threshold`). The
calibrated confidence of a prediction is the largest such bound among probabilities up to its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.labelled import Labelled
from lsb.pseudo.agreement import LabelledClips, neighbour_labels
from lsb.pseudo.config import PseudoConfig
from lsb.threshold import CURVE, precision_curve

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Cuts = Mapping[tuple[str, int], float | None]
"""(task, label) -> the cut of an earlier rule, None where it had none."""


@dataclass(frozen=True)
class LabelRule:
    """When a task's label is given by the model, and the evidence.

    Attributes:
        task: the task.
        label: 0 or 1.
        cut: smallest probability of the label whose bound reaches the target; None for none.
        gold: gold clips that are predicted so with at least this probability and whose neighbours
            agree; where there is no cut, those behind the best bound.
        right: those of them with that label.
        bound: lower bound of the precision.
        earlier_cut: of the last round's rule, which is measured anew with this round's model.
        earlier_gold: gold clips that it takes.
        earlier_right: those of them with that label.
        off: why no clip is labelled so in this round; None where some may be.
        curve: schema `lsb.threshold.CURVE`, bound against probability ("similarity").
    """

    task: str
    label: int
    cut: float | None
    gold: int
    right: int
    bound: float
    earlier_cut: float | None = None
    earlier_gold: int = 0
    earlier_right: int = 0
    off: str | None = None
    curve: pa.Table = field(default_factory=CURVE.empty_table, compare=False)

    def evidence(self) -> dict[str, Any]:
        """All but the curve, as JSON has it."""
        return {name: value for name, value in vars(self).items() if name != "curve"}

    def confidence(self, probability_N: FloatArray) -> npt.NDArray[np.float64]:
        """Calibrated confidence of predictions with this label, (N,); 0 below all gold clips."""
        cuts = self.curve["similarity"].to_numpy()[::-1]
        best = np.maximum.accumulate(np.r_[0.0, self.curve["bound"].to_numpy()[::-1]])
        return np.asarray(best[np.searchsorted(cuts, probability_N, side="right")])


def predicted(
    probability_N: npt.NDArray[np.floating[Any]], threshold: float, label: int
) -> tuple[BoolArray, FloatArray]:
    """Which clips a model gives a label, and with which probability of it, (N,) float32."""
    positive = np.asarray(probability_N, dtype=np.float32)
    says = positive >= np.float32(threshold)
    return (says, positive) if label else (~says, np.float32(1) - positive)


def find_rules(
    gold: Labelled,
    labelled: LabelledClips,
    config: PseudoConfig,
    *,
    similarity: float | None,
    earlier: Cuts,
) -> list[LabelRule]:
    """The rule of every (task, label), by task and label.

    Args:
        gold: gold clips with the predictions of the model that gives labels.
        labelled: see `neighbour_labels`.
        config: target, bound and agreement.
        similarity: see `neighbour_labels`.
        earlier: cuts of the last round's rules; empty in the first.
    """
    rules = []
    for task in gold.tasks:
        label_M = gold.labels[task]
        counts = neighbour_labels(
            gold.ids,
            gold.vectors,
            labelled,
            task,
            neighbours=config.neighbours,
            similarity=similarity,
        )
        for label in (0, 1):
            says, probability = predicted(
                gold.probabilities[task], gold.operating_thresholds[task], label
            )
            taken = says & (label_M >= 0) & (counts[:, label] >= config.agreeing)
            cut = earlier.get((task, label))
            rules.append(
                _rule(task, label, probability[taken], label_M[taken] == label, config, cut)
            )
    return rules


def _rule(
    task: str,
    label: int,
    probability_G: FloatArray,
    right_G: BoolArray,
    config: PseudoConfig,
    earlier: float | None,
) -> LabelRule:
    curve = precision_curve(
        probability_G, right_G, confidence=config.confidence, minimum_pairs=config.minimum_gold
    )
    cut, gold, right, bound, off = None, len(right_G), int(right_G.sum()), 0.0, None
    name = f"{task}={label}"
    if curve.num_rows:
        bounds = curve["bound"].to_numpy()
        reached = np.flatnonzero(bounds >= config.target)
        best = int(reached[-1]) if reached.size else int(np.argmax(bounds))
        at = curve.slice(best, 1).to_pylist()[0]
        gold, right, bound = at["pairs"], at["lookalikes"], at["bound"]
        cut = at["similarity"] if reached.size else None
    if cut is None:
        off = (
            f"{name}: {right} of {gold} gold clips are right, lower bound {bound:.3f}, "
            f"pseudo.target {config.target:g} (pseudo.minimum_gold {config.minimum_gold})"
        )
    held = np.zeros(0, dtype=np.bool_)
    if earlier is not None:
        held = right_G[probability_G >= np.float32(earlier)]
        if len(held) and held.mean() < config.target:
            off = (
                f"{name}: switched off, the last round's rule (probability {earlier:.3f} or more) "
                f"is right on {int(held.sum())} of {len(held)} gold clips now "
                f"({held.mean():.3f}), pseudo.target {config.target:g}"
            )
    return LabelRule(
        task, label, cut, gold, right, bound, earlier, len(held), int(held.sum()), off, curve
    )
