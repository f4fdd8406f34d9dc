"""Virtual environments of the peers: `python -m benchmarks.search.venvs`.

Each has the pinned packages of requirements/bench-<name>.txt in .bench-packages/<name>, apart
from .venv and from each other, because some need older packages. One that cannot be made is
reported and left out; what uses it says so.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / ".bench-packages"
NAMES = ("scann", "usearch", "lancedb", "autofaiss")


class MissingError(Exception):
    """A virtual environment is not there; the message says why."""


def requirements(name: str) -> Path:
    """The pinned packages of one."""
    return ROOT / "requirements" / f"bench-{name}.txt"


def python_of(name: str, folder: Path = FOLDER) -> str:
    """The interpreter with the packages of a peer; "" is that of the project.

    Raises:
        MissingError: it was not made, or not from the requirements as they are now.
    """
    if not name:
        return sys.executable
    ready, failed = (folder / name / mark for mark in (".ready", ".failed"))
    wanted = requirements(name).read_text("utf-8")
    if ready.is_file() and ready.read_text("utf-8") == wanted:
        return str(folder / name / "bin" / "python")
    if failed.is_file():
        raise MissingError(failed.read_text("utf-8").strip())
    raise MissingError(f"not installed: run python -m benchmarks.search.venvs {name}")


def make(name: str, folder: Path = FOLDER) -> None:
    """Make one anew.

    Raises:
        MissingError: pip or venv failed; the message is its last line.
    """
    target = folder / name
    shutil.rmtree(target, ignore_errors=True)
    python = str(target / "bin" / "python")
    pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps"]
    for command in (
        [sys.executable, "-m", "venv", str(target)],
        [*pip, "-r", str(requirements(name))],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip()).splitlines() or ["no message"]
            reason = f"not installed: {said[-1][:200]}"
            target.mkdir(parents=True, exist_ok=True)
            (target / ".failed").write_text(f"{reason}\n", "utf-8")
            raise MissingError(reason)
    (target / ".ready").write_text(requirements(name).read_text("utf-8"), "utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Make those that are not there; always 0, since a missing peer is no mistake."""
    for name in arguments if arguments is not None else sys.argv[1:] or NAMES:
        if name not in NAMES:
            print(f"error: no peer {name!r}: use {', '.join(NAMES)}", file=sys.stderr)
            return 2
        try:
            python_of(name)
        except MissingError:
            print(f"installing {requirements(name).name} into {FOLDER / name}", flush=True)
            try:
                make(name)
            except MissingError as error:
                print(f"{name} is left out: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
