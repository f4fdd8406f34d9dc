"""Tasks as jobs of a SLURM cluster: scripts, and the executor that submits them."""

from launch.slurm.executor import SlurmExecutor
from launch.slurm.script import render_script

__all__ = ["SlurmExecutor", "render_script"]
