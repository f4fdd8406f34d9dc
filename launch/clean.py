"""Delete stages that nobody needs: `python -m launch.clean [--runs runs] [--dry-run] [--report]`.

A run is kept as long as its folder is there, and a stage that vlmae.prepare, cache, embed or train
was asked for by hand until --forget lets go of it; with both every stage they were made from.
Nothing is deleted while a process is at work on a stage. Killed stages are kept for the run that
goes on with them, unless --partial is given. What a killed takedown left is put in order first, and
what a killed cleaning left (*.remake) is deleted.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import rmtree
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from launch.stages.run_folder import read_run
from lsb.artifact import open_stage
from lsb.kept import forget, kept, require_kept
from lsb.redaction import REDACTING, require_idle, settle, unsettled

PARTIAL = ".partial"
REMAKE = ".remake"
"""Of what is made again whole, or is being deleted: nobody goes on with it."""
BY_HAND = "by hand"
KILLED = "killed"
File = tuple[int, int]


@dataclass(frozen=True)
class Folders:
    """Stage directories of `runs/stages`.

    Attributes:
        finished: path -> who keeps it: names of runs, and `BY_HAND`; nobody's are empty.
        killed: paths of unfinished ones.
    """

    finished: Mapping[Path, frozenset[str]]
    killed: tuple[Path, ...]

    def unneeded(self, *, partial: bool) -> list[Path]:
        """Leftovers, and those that nobody keeps; with `partial` also killed ones."""
        leftovers = [path for path in self.killed if path.suffix == REMAKE]
        free = [path for path, keepers in self.finished.items() if not keepers]
        killed = [path for path in self.killed if path.suffix == PARTIAL]
        return leftovers + free + (killed if partial else [])


def find_folders(runs: Path, *, letting_go: Sequence[str] = ()) -> Folders:
    """Stage directories, and who keeps them.

    Args:
        runs: folder of runs and stages.
        letting_go: names of stages that are no longer kept by hand.

    Raises:
        ValueError: a run.json or a manifest cannot be read, so that nobody knows what is needed.
    """
    root = runs / "stages"
    folders = sorted(path for path in root.glob("*") if path.is_dir() and path.suffix != REDACTING)
    finished = [path for path in folders if path.suffix not in (PARTIAL, REMAKE)]
    manifests = {path.name: open_stage(path, verify=False).manifest for path in finished}
    named = {file.parent.name: read_run(file)["stages"] for file in sorted(runs.glob("*/run.json"))}
    by_hand = set(kept(root)) - set(letting_go)
    keepers: dict[str, set[str]] = defaultdict(set)
    for keeper, names in [*named.items(), (BY_HAND, by_hand)]:
        for name in _with_sources(names, manifests):
            keepers[name].add(keeper)
    return Folders(
        {path: frozenset(keepers[path.name]) for path in finished},
        tuple(path for path in folders if path.suffix in (PARTIAL, REMAKE)),
    )


def _with_sources(names: Iterable[str], manifests: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Stages, and all that they were made from."""
    made_from: dict[str, set[str]] = {}
    for name, manifest in manifests.items():
        made_from.setdefault(manifest["content"], set()).add(name)
    found: set[str] = set()
    waiting = set(names)
    while waiting:
        name = waiting.pop()
        found.add(name)
        for content in manifests.get(name, {"inputs": {}})["inputs"].values():
            waiting |= made_from.get(content, set()) - found
    return found


def unneeded(runs: Path, *, partial: bool = False) -> list[Path]:
    """Stage directories under `runs/stages` that nobody needs.

    Args:
        runs: folder of runs and stages.
        partial: also killed stages.

    Raises:
        ValueError: see `find_folders`.
    """
    return find_folders(runs).unneeded(partial=partial)


def clean(
    runs: Path, *, dry_run: bool, partial: bool = False, letting_go: Sequence[str] = ()
) -> int:
    """Delete them, or only say so; returns the bytes that become free.

    Raises:
        ValueError: a process is at work on a stage, a stage to let go of is not kept, or see
            `find_folders`.
    """
    root = runs / "stages"
    require_idle(root, "clean")
    require_kept(kept(root), letting_go)
    _tell_unsettled(root)
    if not dry_run:
        settle(root)
        if letting_go:
            forget(root, letting_go)
    paths = find_folders(runs, letting_go=letting_go).unneeded(partial=partial)
    freed = 0
    for path, size in _freed(paths).items():
        if not dry_run:
            _delete(path)
        freed += size
        print(f"{'would free' if dry_run else 'freed'} {size / 1e6:8.1f} MB  {path}")
    return freed


def _delete(path: Path) -> None:
    """Delete a folder; killed at any moment it leaves none of that name with a part of its files.

    What has the name of a finished stage is taken as whole, and of an unfinished one its records
    are. So the folder first moves into a leftover, in one step, and one level down: there nobody
    who looks for manifests finds it. Leftovers of the same stage must be gone.
    """
    doomed = path
    if path.suffix != REMAKE:
        doomed = path.with_name(path.name.removesuffix(PARTIAL) + REMAKE)
        doomed.mkdir()
        os.replace(path, doomed / path.name)
    rmtree(doomed)


def _tell_unsettled(root: Path) -> None:
    for path in unsettled(root):
        print(f"a takedown was killed at {path}: run python -m vlmae.takedown, without keys")


def _sizes(path: Path) -> tuple[Counter[File], dict[File, tuple[int, int]]]:
    """How often a folder names each file, and each file's bytes and number of names anywhere."""
    names: Counter[File] = Counter()
    told: dict[File, tuple[int, int]] = {}
    for entry in path.rglob("*"):
        if entry.is_file():
            status = entry.stat()
            file = (status.st_dev, status.st_ino)
            names[file] += 1
            told[file] = (status.st_size, status.st_nlink)
    return names, told


def _freed(paths: Iterable[Path]) -> dict[Path, int]:
    """Folder -> bytes that become free when it is deleted after those before it.

    A file that another folder names too is freed with its last name.
    """
    gone: Counter[File] = Counter()
    freed: dict[Path, int] = {}
    for path in paths:
        names, told = _sizes(path)
        gone += names
        freed[path] = sum(size for file, (size, links) in told.items() if gone[file] >= links)
    return freed


def report(runs: Path) -> Table:
    """What stages there are by kind, who keeps them, and what could be freed.

    MB count a file once, in the first kind that names it.

    Raises:
        ValueError: see `find_folders`.
    """
    folders = find_folders(runs)
    free = _freed(folders.unneeded(partial=True))
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("kind", "stages", "MB", "kept by", "could be freed MB"):
        table.add_column(column, justify="left" if column in ("kind", "kept by") else "right")
    kinds: dict[str, list[Path]] = defaultdict(list)
    for path in sorted([*folders.finished, *folders.killed]):
        kinds[path.name.rsplit("-", 1)[0]].append(path)
    counted: set[File] = set()
    sums = [0, 0.0, 0.0]
    for kind, paths in kinds.items():
        held = 0
        for path in paths:
            told = _sizes(path)[1]
            held += sum(size for file, (size, _) in told.items() if file not in counted)
            counted |= set(told)
        freed = sum(free.get(path, 0) for path in paths)
        table.add_row(kind, *_cells(len(paths), held, _keepers(folders, paths), freed))
        sums = [sums[0] + len(paths), sums[1] + held, sums[2] + freed]
    table.add_section()
    table.add_row("all", *_cells(int(sums[0]), sums[1], "", sums[2]))
    table.caption = "killed stages are freed with --partial only"
    return table


def _cells(stages: int, held: float, keepers: str, freed: float) -> tuple[str, str, str, str]:
    return str(stages), f"{held / 1e6:.1f}", keepers, f"{freed / 1e6:.1f}"


def _keepers(folders: Folders, paths: Sequence[Path]) -> str:
    """How many of some stages each keeper keeps."""
    counts: Counter[str] = Counter()
    for path in paths:
        counts.update(folders.finished.get(path, frozenset({KILLED})) or {"nobody"})
    return ", ".join(f"{keeper}: {count}" for keeper, count in sorted(counts.items()))


def main() -> None:
    """Read the arguments and clean."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of runs")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be deleted")
    parser.add_argument("--partial", action="store_true", help="also killed stages")
    parser.add_argument("--report", action="store_true", help="only print a table of all stages")
    parser.add_argument(
        "--forget", nargs="+", default=[], metavar="NAME", help="let go of stages kept by hand"
    )
    arguments = parser.parse_args()
    try:
        if arguments.report:
            Console().print(report(arguments.runs))
            _tell_unsettled(arguments.runs / "stages")
            return
        names = [Path(name).name for name in arguments.forget]
        freed = clean(
            arguments.runs,
            dry_run=arguments.dry_run,
            partial=arguments.partial,
            letting_go=names,
        )
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    print(f"{freed / 1e6:.1f} MB {'could be freed' if arguments.dry_run else 'freed'}")


if __name__ == "__main__":
    main()
