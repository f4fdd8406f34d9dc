"""Starts scripts of this folder on one or several ranks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent


def start_script(name: str, folder: Path, ranks: int = 1) -> subprocess.Popen[str]:
    """`python <name> <folder>`, by torchrun where there are several ranks."""
    torchrun = ["-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    return subprocess.Popen(
        [sys.executable, *(torchrun if ranks > 1 else []), str(HERE / name), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "CUDA_VISIBLE_DEVICES": "",
            # This checkout, whichever is installed, and where helpers of all tests lie.
            "PYTHONPATH": os.pathsep.join(map(str, (HERE.parents[1], HERE.parent))),
        },
    )


def ended(process: subprocess.Popen[str]) -> str:
    """What it has printed, after it ended well."""
    output, _ = process.communicate(timeout=500)
    assert process.returncode == 0, output
    return output
