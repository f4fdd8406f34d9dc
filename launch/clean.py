"""Delete stages that no kept run needs: `python -m launch.clean [--runs runs] [--dry-run]`.

A run is kept as long as its folder is there. Stages of a process that is at work are left alone.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from filelock import FileLock, Timeout

from launch.run_folder import read_run


def unneeded(runs: Path) -> list[Path]:
    """Stage directories under `runs/stages` that no `runs/*/run.json` names, and killed ones."""
    kept = {name for file in runs.glob("*/run.json") for name in read_run(file)["stages"]}
    folders = (path for path in (runs / "stages").glob("*") if path.is_dir())
    return sorted(path for path in folders if path.name not in kept)


def clean(runs: Path, *, dry_run: bool) -> int:
    """Delete them, or only say so; returns the bytes they hold."""
    freed = 0
    for path in unneeded(runs):
        lock = FileLock(path.with_name(f".{path.name.split('.')[0]}.lock"))
        try:
            with lock.acquire(timeout=0):
                size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
                if not dry_run:
                    shutil.rmtree(path)
        except Timeout:
            print(f"in use     {path}")
            continue
        freed += size
        print(f"{'would free' if dry_run else 'freed'} {size / 1e6:8.1f} MB  {path}")
    return freed


def main() -> None:
    """Read the arguments and clean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    arguments = parser.parse_args()
    freed = clean(arguments.runs, dry_run=arguments.dry_run)
    print(f"{freed / 1e6:.1f} MB {'could be freed' if arguments.dry_run else 'freed'}")


if __name__ == "__main__":
    main()
