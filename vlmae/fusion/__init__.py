"""Fusion variants, one file each, behind one seam (design, contract 10)."""

from vlmae.fusion.base import Fusion, InnerBlocks
from vlmae.fusion.bottleneck import BottleneckFusion
from vlmae.fusion.concat import ConcatFusion
from vlmae.fusion.cross_attention import CrossAttentionFusion
from vlmae.fusion.deep import DeepFusion
from vlmae.fusion.film import FilmFusion
from vlmae.fusion.gated import GatedFusion
from vlmae.fusion.late import LateFusion
from vlmae.fusion.self_attention import SelfAttentionFusion

__all__ = [
    "BottleneckFusion",
    "ConcatFusion",
    "CrossAttentionFusion",
    "DeepFusion",
    "FilmFusion",
    "Fusion",
    "GatedFusion",
    "InnerBlocks",
    "LateFusion",
    "SelfAttentionFusion",
]
