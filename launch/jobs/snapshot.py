"""The code and the config that a launch runs, kept as they were: jobs wait, and people edit.

<run>/jobs/code-3f2a.../   lsb, vlmae, launch and conf, named by the hash of all their files
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

from lsb.artifact import file_sha256, fingerprint
from vlmae.config import conf_dir

PACKAGES = ("lsb", "vlmae", "launch")
LEFT_OUT = ("__pycache__",)


def snapshot(folder: Path) -> Path:
    """Copy the code of this process and its config, unless the same is there.

    Args:
        folder: of all jobs of a run.

    Returns:
        The copy, which goes first on the PYTHONPATH of jobs.
    """
    home = Path(__file__).resolve().parents[2]
    sources = {name: home / name for name in PACKAGES} | {"conf": Path(conf_dir())}
    files = {
        f"{name}/{file.relative_to(source)}": file
        for name, source in sources.items()
        for file in _files(source)
    }
    digest = fingerprint({name: file_sha256(file) for name, file in files.items()})
    target = folder / f"code-{digest[:12]}"
    if target.is_dir():
        return target
    work = folder / f".{target.name}.{uuid4().hex[:8]}"
    for name, file in files.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(file, work / name)
    try:
        os.replace(work, target)
    except OSError:
        shutil.rmtree(work)
        if not target.is_dir():  # else another process was faster
            raise
    return target


def _files(source: Path) -> Iterator[Path]:
    for path in sorted(source.rglob("*")):
        if path.is_file() and not set(path.parts) & set(LEFT_OUT):
            yield path
