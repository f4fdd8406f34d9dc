"""Fusion variants, one file each, behind one seam (design, contract 10)."""

from vlmae.fusion.base import Fusion
from vlmae.fusion.cross_attention import CrossAttentionFusion
from vlmae.fusion.late import LateFusion

__all__ = ["CrossAttentionFusion", "Fusion", "LateFusion"]
