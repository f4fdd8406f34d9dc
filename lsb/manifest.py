"""The manifest of a finished stage: what is in it, made and read in one place."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from lsb.files import StageError
from lsb.parts import versions

FORMAT = "vlmae-stage"
VERSION = 1
FILE = "manifest.json"


def make_manifest(
    digest: str, key: Mapping[str, Any], parts: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """The manifest of a stage whose parts are whole.

    Args:
        digest: hash of `key`.
        key: stage, code, inputs and config: what determines the stage's bytes.
        parts: name -> files (bytes and sha256 of each), counts and, where it has one, key.
    """
    totals: dict[str, int] = {}
    content = hashlib.sha256()
    for part in parts.values():
        for name, count in part["counts"].items():
            totals[name] = totals.get(name, 0) + count
        for name, entry in part["files"].items():
            content.update(f"{name}\0{entry['sha256']}\n".encode())
    return {
        "format": FORMAT,
        "version": VERSION,
        "stage": key["stage"],
        "hash": digest,
        "content": content.hexdigest()[:32],
        "counts": totals,
        "code": key["code"],
        "inputs": key["inputs"],
        "config": key["config"],
        "versions": versions(),
        "parts": dict(parts),
    }


def parse_manifest(data: bytes, folder: str) -> dict[str, Any]:
    """Read a manifest.

    Args:
        data: the file's bytes.
        folder: the stage, path or URL, for messages.

    Raises:
        StageError: it is no manifest, or one of another format or version.
    """
    try:
        manifest = json.loads(data)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(
            f"{folder}/{FILE} is not valid JSON ({error}): delete {folder} and run again"
        ) from error
    if not isinstance(manifest, dict) or not {"parts", "content", "counts"} <= set(manifest):
        raise StageError(f"{folder}/{FILE} is not a stage's: delete {folder} and run again")
    if manifest.get("format") != FORMAT or manifest.get("version") != VERSION:
        raise StageError(
            f"{folder} has format {manifest.get('format')!r} version {manifest.get('version')!r}, "
            f"this release reads {FORMAT!r} version {VERSION}: delete the folder and run the stage "
            "again"
        )
    return manifest


def absent_manifest(folder: str) -> StageError:
    """The error of a folder that has no manifest."""
    return StageError(f"{folder} has no {FILE}: it is not a finished stage; run the stage again")
