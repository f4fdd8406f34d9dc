"""Losses over several tasks, of which any clip may lack labels."""

from vlmae.objectives.base import MISSING, Objective
from vlmae.objectives.binary import MultiTaskBinary
from vlmae.objectives.build import build_objective
from vlmae.objectives.focal import MultiTaskFocal
from vlmae.objectives.softmax import GroupedSoftmax
from vlmae.objectives.weighting import FixedWeights, TaskWeighting, UncertaintyWeights

__all__ = [
    "MISSING",
    "FixedWeights",
    "GroupedSoftmax",
    "MultiTaskBinary",
    "MultiTaskFocal",
    "Objective",
    "TaskWeighting",
    "UncertaintyWeights",
    "build_objective",
]
