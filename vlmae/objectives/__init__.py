"""Losses over several tasks, of which any clip may lack labels."""

from vlmae.objectives.base import MISSING, Objective
from vlmae.objectives.binary import MultiTaskBinary

__all__ = ["MISSING", "MultiTaskBinary", "Objective"]
