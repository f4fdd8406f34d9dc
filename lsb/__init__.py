"""Latent Space Broadening with a lookalike threshold: arrays and tables in, ids out.

The lowest floor of the project: it knows no model, no Lightning and no SLURM.
"""
