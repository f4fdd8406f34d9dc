"""Clips of a folder of media, or of a manifest that names files."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import PurePosixPath
from typing import Any

import pyarrow.parquet as pq

from vlmae.data.prepare.ingest.clips import SourceClip, SourceMember, clip_key
from vlmae.data.prepare.ingest.config import SPLIT_NAME, IngestConfig
from vlmae.data.prepare.media import ClipMembers, clip_members, split_file_name
from vlmae.data.storage import FileInfo, Storage, is_remote, local_path

COLUMNS = ("path", "url", "key", "title", "split", "sound")
ABSENT = -1
REQUESTS = 16


def folder_clips(config: IngestConfig) -> list[SourceClip]:
    """Clips of all media below a folder: files of the same stem are one clip.

    Raises:
        ValueError: there is no such folder, or no media in it, or two files have one key.
    """
    place = _absolute(config.place)
    files = Storage(config.storage_options).find(place)
    stems: dict[str, dict[str, FileInfo]] = {}
    for file in files:
        relative = file.place[len(place.rstrip("/")) + 1 :]
        if (name := split_file_name(relative)) is not None:
            _add(stems.setdefault(name[0], {}), name[1], file)
    clips = []
    for stem, found in stems.items():
        if (parts := clip_members(found)) is not None:
            clips.append(_clip(stem, found, parts, config.split, None))
    if not clips:
        raise ValueError(
            f"there are no media in {config.place}: it has {len(files)} files, none of a known "
            "ending (docs/data.md)"
        )
    return clips


def _add(found: dict[str, FileInfo], ending: str, file: FileInfo) -> None:
    """Put a file with those of its stem.

    Raises:
        ValueError: another is there that would be the same clip's video or sound.
    """
    parts = clip_members([*found, ending])
    rivals = parts.rivals if parts is not None else None
    if ending in found or rivals is not None:
        other = found[ending if rivals is None else next(e for e in rivals if e != ending)]
        raise ValueError(
            f"{other.place} and {file.place} would have the same key: rename or drop one"
        )
    found[ending] = file


def _clip(
    stem: str,
    found: Mapping[str, FileInfo],
    parts: ClipMembers,
    split: str,
    title: str | None,
    key: str | None = None,
) -> SourceClip:
    endings = [*parts.media, *parts.titles]
    members = tuple(SourceMember.whole(ending, found[ending]) for ending in endings)
    made = key if key is not None else clip_key(stem, [*endings, "json"])
    return SourceClip(made, stem, split, title, members)


def manifest_clips(config: IngestConfig) -> list[SourceClip]:
    """Clips of a CSV or parquet table; see docs/data.md for its columns.

    A file that is absent is listed as such, so that it is counted among the unusable clips.

    Raises:
        ValueError: the table cannot be read, lacks a column, or a row names no media file.
    """
    rows = _read_manifest(config)
    root = _absolute(config.root or config.place.rpartition("/")[0] or ".")
    places: list[list[str]] = []
    for number, row in enumerate(rows):
        named = [row.get("path") or row.get("url"), row.get("sound")]
        places.append([_join(root, text) for text in named if text])
        if not named[0]:
            raise ValueError(f"{config.place}, row {number + 1}: neither path nor url is given")
    with ThreadPoolExecutor(REQUESTS) as pool:
        storage = Storage(config.storage_options)
        described = list(
            pool.map(lambda place: _describe(storage, place), chain.from_iterable(places))
        )
    known = {file.place: file for file in described}
    return [
        _manifest_clip(config, root, number, row, [known[place] for place in named])
        for number, (row, named) in enumerate(zip(rows, places, strict=True))
    ]


def _manifest_clip(
    config: IngestConfig,
    root: str,
    number: int,
    row: Mapping[str, str],
    files: Iterable[FileInfo],
) -> SourceClip:
    where = f"{config.place}, row {number + 1}"
    found: dict[str, FileInfo] = {}
    stem = ""
    for file in files:
        relative = file.place.removeprefix(root.rstrip("/") + "/").split("://", 1)[-1]
        name = split_file_name(relative.split("?", 1)[0])
        if name is None or clip_members([name[1]]) is None:
            raise ValueError(f"{where}: {file.place} is not of a known media ending (docs/data.md)")
        stem = stem or name[0]
        _add(found, name[1], file)
    parts = clip_members(found)
    assert parts is not None, "every file of a row is a medium"
    split = row.get("split") or config.split
    if not SPLIT_NAME.fullmatch(split):
        raise ValueError(f"{where}: split is {split!r}: use letters, digits and _ only")
    key = clip_key(row["key"], [*parts.media, "json"]) if row.get("key") else None
    return _clip(stem, found, parts, split, row.get("title") or "", key)


def _absolute(place: str) -> str:
    """A URL, or a local path that names the same file wherever the shards are made."""
    return place if is_remote(place) else str(local_path(place).expanduser().absolute())


def _join(root: str, text: str) -> str:
    return text if "://" in text or PurePosixPath(text).is_absolute() else f"{root}/{text}"


def _describe(storage: Storage, place: str) -> FileInfo:
    try:
        return storage.describe(place)
    except OSError:
        return FileInfo(place, ABSENT, "absent")


def _read_manifest(config: IngestConfig) -> list[dict[str, str]]:
    """Rows as column -> text; empty where there is none."""
    place = config.place
    try:
        data = Storage(config.storage_options).read(place)
    except OSError as error:
        raise ValueError(f"data.path: {place} cannot be read ({error}): check it") from error
    try:
        if place.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(data)).to_pylist()
        else:
            table = list(csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline="")))
    except (ValueError, OSError, csv.Error) as error:
        raise ValueError(
            f"data.path: {place} is not a CSV table in UTF-8 or a .parquet file ({error})"
        ) from error
    columns = set(table[0]) if table else set()
    if not columns & {"path", "url"}:
        raise ValueError(
            f"data.path: {place} has the columns {sorted(map(str, columns))} and {len(table)} rows:"
            f" give a column path or url, and any of {', '.join(COLUMNS[2:])}"
        )
    return [{name: _text(row.get(name)) for name in COLUMNS} for row in table]


def _text(value: Any) -> str:
    return "" if value is None else str(value)
