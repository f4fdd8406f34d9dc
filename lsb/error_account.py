"""Confident errors found by asking, and what became of those that a model made elsewhere.

*Found*: a clip was asked for, its label came, and the model that asked had been sure of the other
one (`lsb.acquisition.confident_errors`): it had not been trained on the clip. *Fixed* cannot be
counted on such a clip, which trains the next model. It is counted on clips that no model was ever
trained on (test, gold): confident errors of one round's model that the next one gets right; and so
are the new ones.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import numpy.typing as npt

from lsb.acquisition.confident_errors import Labels, Probabilities, confident_errors, errors


@dataclass(frozen=True)
class ModelAnswers:
    """What one model says of N clips that it was not trained on, in one task.

    Attributes:
        probability: (N,) of the positive class.
        threshold: from which it says "positive".
    """

    probability: Probabilities
    threshold: float

    def wrong(self, label_N: Labels) -> npt.NDArray[np.bool_]:
        """(N,) labelled clips that it gets wrong."""
        return errors(self.probability, label_N, self.threshold)

    def surely_wrong(self, label_N: Labels, confidence: float) -> npt.NDArray[np.bool_]:
        """(N,) labelled clips that it gets wrong with confidence."""
        return confident_errors(self.probability, label_N, self.threshold, confidence)


@dataclass(frozen=True)
class ErrorChange:
    """Confident errors of one model and of the next on the same clips.

    Attributes:
        clips: with a label.
        before: confident errors of the earlier model.
        fixed: of these, right now.
        unsure: of these, still wrong, but no longer with confidence.
        kept: of these, still wrong with confidence.
        new: confident errors of the later model that the earlier one did not make with confidence.
    """

    clips: int
    before: int
    fixed: int
    unsure: int
    kept: int
    new: int

    @property
    def after(self) -> int:
        """Confident errors of the later model."""
        return self.kept + self.new

    def as_dict(self) -> dict[str, int]:
        """All counts."""
        return {**asdict(self), "after": self.after}


def error_change(
    label_N: Labels, earlier: ModelAnswers, later: ModelAnswers, confidence: float
) -> ErrorChange:
    """Compare two models on clips that neither was trained on.

    Args:
        label_N: (N,) int8: 0, 1, or `UNLABELLED`.
        earlier: model of a round.
        later: model of the next.
        confidence: smallest probability of the wrong class for a confident error.

    Raises:
        ValueError: the models answered other numbers of clips.
    """
    if not len(label_N) == len(earlier.probability) == len(later.probability):
        raise ValueError(
            f"{len(label_N)} labels, {len(earlier.probability)} answers of the earlier model and "
            f"{len(later.probability)} of the later: give the same clips in the same order"
        )
    before = earlier.surely_wrong(label_N, confidence)
    after = later.surely_wrong(label_N, confidence)
    wrong = later.wrong(label_N)
    return ErrorChange(
        clips=int((label_N >= 0).sum()),
        before=int(before.sum()),
        fixed=int((before & ~wrong).sum()),
        unsure=int((before & wrong & ~after).sum()),
        kept=int((before & after).sum()),
        new=int((after & ~before).sum()),
    )
