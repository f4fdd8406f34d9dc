"""A store that is made of others: whole or absent, with a manifest that names them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from lsb.files import StageError, file_sha256, fingerprint, write_json
from lsb.manifest import FILE, make_manifest, parse_manifest
from lsb.parts import versions
from lsb.store.store import Store

STAGE = "embed"
REVISION = 1
PARTIAL = ".partial"

Entry = dict[str, Any]
Fill = Callable[[Path], Mapping[str, Entry]]


def build_store(
    output: Path, command: str, config: Mapping[str, Any], inputs: Mapping[str, str], fill: Fill
) -> bool:
    """Make a store folder under a temporary name and rename it.

    Args:
        output: folder to make.
        command: that asks, part of what the store is recognised by.
        config: what determines the bytes besides `inputs`.
        inputs: name -> content of the stores it is made of.
        fill: writes files into the folder it is given, returns the parts for the manifest.

    Returns:
        False if the same store is there already.

    Raises:
        StageError: something else is there, or another process is at work.
    """
    code = {"release": versions().get("vlmae"), "command": command, "revision": REVISION}
    key = {"stage": STAGE, "code": code, "config": dict(config), "inputs": dict(inputs)}
    digest = fingerprint(key)
    work = output.with_name(output.name + PARTIAL)
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(output.with_name(f".{output.name}.lock"), timeout=0):
            if output.exists():
                _require_same(output, digest)
                return False
            shutil.rmtree(work, ignore_errors=True)
            work.mkdir()
            try:
                parts = fill(work)
                write_json(work / FILE, make_manifest(digest, key, parts))
                os.replace(work, output)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except Timeout:
        raise StageError(
            f"another process is making {output}: wait for it to end, then run again"
        ) from None
    return True


def _require_same(output: Path, digest: str) -> None:
    file = output / FILE
    if file.is_file():
        made = parse_manifest(file.read_bytes(), str(output)).get("hash")
        if made == digest:
            return
    raise StageError(
        f"{output} exists and is not what these arguments give: delete it or give another name"
    )


def lend_part(store: Store, name: str, work: Path, as_name: str | None = None) -> tuple[str, Entry]:
    """Link (from afar: copy and check) the files of a part; returns its name and entry.

    Args:
        store: that has the part.
        name: of the part there.
        work: folder to link into.
        as_name: its name in the new store, the same by default.
    """
    new = as_name or name
    entry = store.manifest["parts"][name]
    files: Entry = {}
    for file, recorded in entry["files"].items():
        own = new + file.removeprefix(name) if file.startswith(name) else f"{new}.{file}"
        lend_file(store, file, work / own, recorded)
        files[own] = recorded
    return new, {"files": files, "counts": dict(entry["counts"])}


def lend_file(store: Store, file: str, target: Path, recorded: Mapping[str, Any]) -> None:
    """Link one file of a local store, or copy one from afar and check it.

    Raises:
        StageError: the copy has another hash than the store's manifest says.
    """
    store.folder.give(file, target)
    if store.folder.local(file) is None and file_sha256(target) != recorded["sha256"]:
        raise StageError(
            f"{store.folder.file(file)} is damaged (its sha256 is not the one in manifest.json): "
            "copy the store there again"
        )


def recorded_files(work: Path, names: list[str]) -> Entry:
    """Bytes and hash of new files, as a manifest records them."""
    return {
        name: {"bytes": (work / name).stat().st_size, "sha256": file_sha256(work / name)}
        for name in names
    }
