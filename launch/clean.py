"""Delete stages that no kept run needs: `python -m launch.clean [--runs runs] [--dry-run]`.

A run is kept as long as its folder is there; with it every stage it names and every stage those
were made from. Nothing is deleted while a process is at work on a stage. Killed stages are kept for
the run that goes on with them, unless --partial is given. A data set that only `vlmae.prepare` made
belongs to no run and is deleted.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from launch.run_folder import read_run
from lsb.artifact import open_stage

PARTIAL = (".partial", ".remake")


def unneeded(runs: Path, *, partial: bool = False) -> list[Path]:
    """Stage directories under `runs/stages` that no run needs.

    Args:
        runs: folder of runs and stages.
        partial: also killed stages.

    Raises:
        ValueError: a run.json or a manifest cannot be read, so that nobody knows what is needed.
    """
    folders = sorted(path for path in (runs / "stages").glob("*") if path.is_dir())
    finished = [path for path in folders if path.suffix not in PARTIAL]
    manifests = {path.name: open_stage(path, verify=False).manifest for path in finished}
    made_from: dict[str, set[str]] = {}
    for name, manifest in manifests.items():
        made_from.setdefault(manifest["content"], set()).add(name)
    kept: set[str] = set()
    waiting = {name for file in runs.glob("*/run.json") for name in read_run(file)["stages"]}
    while waiting:
        name = waiting.pop()
        kept.add(name)
        for content in manifests.get(name, {"inputs": {}})["inputs"].values():
            waiting |= made_from.get(content, set()) - kept
    killed = [path for path in folders if path.suffix in PARTIAL] if partial else []
    return [path for path in finished if path.name not in kept] + killed


def clean(runs: Path, *, dry_run: bool, partial: bool = False) -> int:
    """Delete them, or only say so; returns the bytes they hold.

    Raises:
        ValueError: a process is at work on a stage, or see `unneeded`.
    """
    for file in (runs / "stages").glob(".*.lock"):
        try:
            FileLock(file).acquire(timeout=0).lock.release()
        except Timeout:
            raise ValueError(
                f"a process is at work on {file.name[1:-5]}: wait for it to end, then clean"
            ) from None
    freed = 0
    for path in unneeded(runs, partial=partial):
        size = sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
        if not dry_run:
            shutil.rmtree(path)
        freed += size
        print(f"{'would free' if dry_run else 'freed'} {size / 1e6:8.1f} MB  {path}")
    return freed


def main() -> None:
    """Read the arguments and clean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    parser.add_argument("--partial", action="store_true", help="also killed stages")
    arguments = parser.parse_args()
    try:
        freed = clean(arguments.runs, dry_run=arguments.dry_run, partial=arguments.partial)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"{freed / 1e6:.1f} MB {'could be freed' if arguments.dry_run else 'freed'}")


if __name__ == "__main__":
    main()
