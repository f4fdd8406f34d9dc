"""Losses over several tasks, of which any clip may lack labels."""

from vlmae.objectives.binary import MultiTaskBinary

__all__ = ["MultiTaskBinary"]
