"""Files that are whole or absent, and hashes of what they hold."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any


class StageError(ValueError):
    """A stage directory that cannot be used; the message names it and the remedy."""


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: the form in which configs are hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


def fingerprint(value: Any) -> str:
    """Hash of any JSON-like value, 32 hexadecimal digits."""
    return hashlib.blake2b(canonical(value).encode("utf-8"), digest_size=16).hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_bytes(path: Path, data: bytes) -> None:
    """Write beside `path`, flush to disk and rename: readers see all of it or none."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented, keys in the order given."""
    text = json.dumps(value, indent=2, ensure_ascii=False, default=str)
    write_bytes(path, text.encode("utf-8") + b"\n")


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        StageError: the file is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise StageError(
            f"{path} is not valid JSON ({error}): delete {path.parent} and run again"
        ) from error


def link(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
