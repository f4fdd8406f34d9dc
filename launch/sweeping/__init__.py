"""Sweeps: what they go over, their points, and what became of them."""
