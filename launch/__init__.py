"""Where things run: the commands, and below them what they are made of.

Commands are the modules here, and `doctor`. Packages import downwards only: `comparing`, `piloting`
and `sweeping` rest on `rounds`, these on `labelling`, on `stages`, on `jobs` (with `slurm`).
"""
