"""Comparisons over arms, seeds and fusion variants: their units and their tables."""
