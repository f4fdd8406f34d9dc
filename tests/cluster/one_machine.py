"""What the cluster is compared with: the same commands by this machine's own processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

DISTRIBUTED = Path(__file__).parents[1] / "distributed"
CLIPS = "import sys, pathlib, small_clips; small_clips.write_folder(pathlib.Path(sys.argv[1]), 24)"
OF_CLIPS = (
    "data=folder",
    "data.shard_clips=16",
    "data.reencode=false",
    "decode.frames=1",
    "decode.backend=pyav",
    "vl.image_size=64",
    "prefix.processes=1",
)
"""Keys of commands that read them, beside those of `write_clips`."""


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


def write_clips(folder: Path) -> tuple[str, ...]:
    """Write 24 clips and tables of labels; returns the keys that name them."""
    path = os.pathsep.join(filter(None, [str(DISTRIBUTED), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-c", CLIPS, str(folder / "clips")]
    subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, check=True)
    tables = (f"{name}={folder / name}.csv" for name in ("labels", "validation"))
    return (f"data.path={folder / 'clips'}", *tables)
