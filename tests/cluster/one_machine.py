"""What the cluster is compared with: the same commands by this machine's own processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def here(folder: Path, *arguments: str) -> None:
    """Run a command of this interpreter in a folder, which is made."""
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
