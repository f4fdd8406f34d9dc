"""Latent Space Broadening with a lookalike threshold: arrays and tables in, ids out.

The lowest floor of the project: it knows no model, no Lightning and no SLURM.
"""

import os

# Read by OpenMP when torch or faiss is loaded, hence here, before either. Threads that spin while
# they wait starve each other on a busy machine: flat search 0.36 s against 2.4 s.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
