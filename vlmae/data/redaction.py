"""How clips leave the files of a stage's part, and data sets that are made without them.

Five kinds of stages hold what a clip is made of: `prepare` its media, `cache` its tokens,
`whitened` the same of fewer columns, `embed` its vectors, `handoff` what people were shown of it.
Of all others (training sets, predictions, candidates) the records stay.
"""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from lsb import ids as sample_ids
from lsb.arrays import map_array
from lsb.artifact import Counts, Part, Stage, StageError
from lsb.ids import IdArray
from lsb.redaction import Edit, Edited, redact_stage
from lsb.search.codes import cut_codes
from lsb.search.partial import ENDING as NEIGHBOURS_ENDING
from lsb.search.partial import void_lists
from lsb.store import CODES_ENDING
from vlmae.data.blanking import copy_blanked
from vlmae.data.decode.clip import BadClipError
from vlmae.data.index import INDEX_ENDING
from vlmae.data.records import tar_members
from vlmae.data.tombstones import Place, tombstone_ids

KINDS = ("prepare", "cache", "whitened", "embed", "handoff")
OF_TOKENS = ("cache", "whitened")
QUARANTINE_ENDING = ".quarantine.parquet"
TRUTH_ENDING = ".truth.parquet"
BLOCK_BYTES = 1 << 24


def held_clips(folder: Path, files: Iterable[str], ids: IdArray) -> set[bytes]:
    """Those of `ids` that the tables of a part name.

    Raises:
        StageError: a table is missing, so that nobody can tell.
    """
    found: set[bytes] = set()
    for name in files:
        if not name.endswith(".parquet"):
            continue
        if not (folder / name).is_file():
            raise StageError(
                f"{folder / name} is missing: run the command that made it again, then take down"
            )
        held = sample_ids.from_arrow(pq.read_table(folder / name, columns=["id"])["id"])
        found.update(sample_ids.to_bytes(held[np.isin(held, ids)]))
    return found


def places_elsewhere(folder: Path, files: Iterable[str], ids: IdArray) -> dict[str, set[Place]]:
    """Key -> where the media of a part's clips lie, for shards that were indexed in place."""
    found: dict[str, set[Place]] = {}
    for name in files:
        if name.endswith(INDEX_ENDING):
            index = pq.read_table(folder / name, columns=["id", "key", "shard", "offset", "size"])
            index = index.filter(pa.array(np.isin(sample_ids.from_arrow(index["id"]), ids)))
            for row in index.to_pylist():
                if "://" in row["shard"]:
                    place = Place(row["shard"], row["offset"], row["size"])
                    found.setdefault(row["key"], set()).add(place)
    return found


def redact_part(
    source: Path, target: Path, *, kind: str, part: str, files: Sequence[str], ids: IdArray
) -> Counts:
    """Write the files of one part without some clips; those that do not change are not written.

    One array, and all tables, of the part are read at a time, arrays block by block.

    Args:
        source: folder with the part's files.
        target: folder to write into.
        kind: of the stage, one of `KINDS`.
        part: its name.
        files: its files.
        ids: of the clips.

    Returns:
        By how much each count of the part goes down.
    """
    gone: Counter[str] = Counter()
    prefix = f"{part.rsplit('-', 1)[0]}." if kind == "prepare" else ""
    clips = "rows" if kind == "embed" else f"{prefix}clips"
    for name in files:
        if not name.endswith(".parquet") or name.endswith(NEIGHBOURS_ENDING):
            continue
        table = pq.read_table(source / name)
        out = np.isin(sample_ids.from_arrow(table["id"]), ids)
        if not out.any():
            continue
        dropped, left = table.filter(pa.array(out)), table.filter(pa.array(~out))
        if name.endswith(QUARANTINE_ENDING):
            gone[f"{prefix}skipped"] += dropped.num_rows
            gone.update(f"skipped: {reason}" for reason in dropped["reason"].to_pylist())
        elif name.endswith(TRUTH_ENDING):
            gone += _labels(dropped, prefix)
        else:
            gone[clips] += dropped.num_rows
            if name.endswith(INDEX_ENDING):
                gone[f"{prefix}synthetic"] += _blank(source, target, part, files, dropped)
            elif kind in OF_TOKENS:
                left = _cut_tokens(source, target, part, files, table, out)
                for column in ("audio_missing", "video_missing"):
                    reasons = dropped[column].to_pylist()
                    gone.update(f"masked: {reason}" for reason in reasons if reason)
            elif kind == "handoff":
                gone += _empty_rendered(target, files, dropped)
            else:
                _cut_rows(source / f"{part}.npy", target / f"{part}.npy", _spans(~out))
                codes = f"{part}{CODES_ENDING}"
                if codes in files:
                    cut_codes(source / codes, target / codes, ~out)
        _write_like(left, source / name, target / name)
    if gone[clips]:
        for name in files:
            if name.endswith(NEIGHBOURS_ENDING):
                void_lists(source / name, target / name)
    return dict(gone)


def fewer(counts: Counts, gone: Counts) -> Counts:
    """Counts of a part after a redaction; reasons that no clip has any more are left out."""
    # Of a shard indexed in place nobody knows which of its clips are synthetic.
    clips = {
        f"{name.removesuffix('.synthetic')}.clips": name
        for name in counts
        if name.endswith(".synthetic")
    }
    left = {name: count - gone.get(name, 0) for name, count in counts.items()}
    for name, synthetic in clips.items():
        left[synthetic] = min(left[synthetic], left.get(name, 0))
    return {name: count for name, count in left.items() if count or ": " not in name}


def _labels(dropped: pa.Table, prefix: str) -> Counter[str]:
    """What the truth table of composed clips counts."""
    gone: Counter[str] = Counter()
    for field in dropped.schema:
        if field.type == pa.int8():
            gone[f"{prefix}{field.name}"] += int(dropped[field.name].to_numpy().sum())
    broken = dropped["broken"].to_pylist()
    gone.update(f"{prefix}broken.{kind}" for kind in broken if kind)
    return gone


def _empty_rendered(target: Path, files: Sequence[str], dropped: pa.Table) -> Counter[str]:
    """Empty what people were shown of the one clip of a part; see `vlmae.handoff.stage`."""
    for name in files:
        if not name.endswith(".parquet"):
            (target / name).write_bytes(b"")
    changed = [row["method"] for row in dropped.to_pylist() if row["parameters"] != "{}"]
    return Counter(f"anonymised by {method}" for method in changed)


def _blank(source: Path, target: Path, part: str, files: Sequence[str], dropped: pa.Table) -> int:
    """Take clips out of the part's tar, where it has one; returns how many are synthetic."""
    tar = f"{part}.tar"
    if tar not in files:
        return 0
    rows, synthetic = dropped.to_pylist(), 0
    with open(source / tar, "rb") as old, open(target / tar, "wb") as new:
        for row in rows:
            old.seek(row["offset"])
            try:
                told = json.loads(tar_members(old.read(row["size"]), row["key"])["json"])
                synthetic += told.get("synthetic") is True
            except BadClipError as error:
                raise StageError(
                    f"{source / tar} is damaged ({error}): delete this file and run the command "
                    "that made it again, then take down"
                ) from error
        old.seek(0)
        copy_blanked(old, new, [(row["offset"], row["size"]) for row in rows])
    return synthetic


def _cut_tokens(
    source: Path,
    target: Path,
    part: str,
    files: Sequence[str],
    table: pa.Table,
    out: npt.NDArray[np.bool_],
) -> pa.Table:
    """Take the tokens of some rows out of every array of a cache's part; returns the other rows."""
    left = table.filter(pa.array(~out))
    streams = [name.removesuffix("_start") for name in table.column_names if _is_start(name)]
    for stream in streams:
        starts = table[f"{stream}_start"].to_numpy()[~out]
        lengths = table[f"{stream}_length"].to_numpy()[~out]
        spans = list(zip(starts.tolist(), (starts + lengths).tolist(), strict=True))
        for name in files:
            if name.startswith(f"{part}.{stream}.") and name.endswith(".npy"):
                _cut_rows(source / name, target / name, spans)
        moved = np.concatenate([[0], np.cumsum(lengths)])[: len(lengths)]
        place = left.schema.get_field_index(f"{stream}_start")
        left = left.set_column(place, left.schema.field(place), pa.array(moved, pa.int64()))
    return left


def _is_start(column: str) -> bool:
    return column.endswith("_start")


def _spans(kept: npt.NDArray[np.bool_]) -> list[tuple[int, int]]:
    return [(int(row), int(row) + 1) for row in np.flatnonzero(kept)]


def _cut_rows(source: Path, target: Path, spans: Sequence[tuple[int, int]]) -> None:
    """Write the spans of an array's first axis end to end, as `numpy.save` would."""
    array = map_array(source)
    shape = (sum(stop - start for start, stop in spans), *array.shape[1:])
    joined: list[list[int]] = []
    for start, stop in spans:
        if joined and joined[-1][1] == start:
            joined[-1][1] = stop
        elif stop > start:
            joined.append([start, stop])
    rows = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    with open(target, "wb") as stream:
        header = {
            "descr": np.lib.format.dtype_to_descr(array.dtype),
            "fortran_order": False,
            "shape": shape,
        }
        np.lib.format.write_array_header_1_0(stream, header)
        for start, stop in joined:
            for first in range(start, stop, rows):
                block = np.ascontiguousarray(array[first : min(stop, first + rows)])
                stream.write(block.tobytes())


def _write_like(table: pa.Table, old: Path, new: Path) -> None:
    """Write a table as the old file was written."""
    told = pq.read_metadata(old)
    groups = told.num_row_groups
    compression: Any = told.row_group(0).column(0).compression.lower() if groups else "snappy"
    compression = "none" if compression == "uncompressed" else compression
    rows = told.row_group(0).num_rows if groups > 1 else None
    pq.write_table(table.combine_chunks(), new, compression=compression, row_group_size=rows)


Write = Callable[..., Counts]


def part_edit(
    kind: str,
    part: str,
    clips: Iterable[bytes],
    *,
    key: str | None = None,
    write: Write = redact_part,
) -> Edit:
    """The edit that takes clips out of one part of a finished stage.

    Args:
        kind: of the stage, one of `KINDS`.
        part: its name.
        clips: ids; there may be none, where only the key changes.
        key: the part's new key, None for the one it has.
        write: writes the part's files, as `redact_part` does.
    """
    return partial(_edit, kind, part, sorted(clips), key, write)


def _edit(
    kind: str,
    part: str,
    clips: list[bytes],
    key: str | None,
    write: Write,
    source: Path,
    target: Path,
    entry: Mapping[str, Any],
) -> Edited:
    counts: Counts = dict(entry["counts"])
    if clips:
        ids = sample_ids.from_bytes(clips)
        files = list(entry["files"])
        counts = fewer(counts, write(source, target, kind=kind, part=part, files=files, ids=ids))
    return Edited(counts, key or entry.get("key"), tuple(clip.hex() for clip in clips))


@dataclass(frozen=True)
class GuardedMaker:
    """Makes one part of a data set and takes out what was taken down, before anyone sees it.

    Attributes:
        root: folder of all stages.
        part: name and files of the part, and how it is made.
    """

    root: Path
    part: Part

    def __call__(self, folder: Path) -> Counts:
        """Make the part in `folder`."""
        counts = self.part.make(folder)
        ids = tombstone_ids(self.root)
        files = self.part.files
        if not len(ids) or not any(name.endswith(INDEX_ENDING) for name in files):
            return counts
        clips = held_clips(folder, files, ids)
        if not clips:
            return counts
        new = folder / ".redacted"
        new.mkdir()
        gone = redact_part(
            folder,
            new,
            kind="prepare",
            part=self.part.name,
            files=files,
            ids=sample_ids.from_bytes(sorted(clips)),
        )
        for file in new.iterdir():
            os.replace(file, folder / file.name)
        shutil.rmtree(new)
        return fewer(counts, gone)


def guarded(root: Path, parts: Iterable[Part]) -> list[Part]:
    """Parts of a data set, none of which brings back a clip that was taken down."""
    return [replace(part, make=GuardedMaker(root, part)) for part in parts]


def redacted(root: Path, data: Stage) -> Stage:
    """A data set without the clips that were taken down; the same one where it holds none.

    For data sets that were made before, and met by no finished takedown.
    """
    held = _held(root, data)
    if not held:
        return data
    edits = {part: part_edit("prepare", part, clips) for part, clips in held.items()}
    return replace(data, manifest=redact_stage(data.path, edits, wait=True).manifest)


def require_redacted(root: Path, data: Stage) -> Stage:
    """Refuse a data set with clips that were taken down.

    Raises:
        ValueError: names the first and the remedy.
    """
    held = _held(root, data)
    if held:
        part, clips = next(iter(held.items()))
        raise ValueError(
            f"{data.path} holds clips that were taken down, first {min(clips).hex()} in {part}: "
            "run python -m vlmae.takedown with the same runs (without keys it goes on where it "
            "was stopped), or with the runs that the data set belongs to"
        )
    return data


def _held(root: Path, data: Stage) -> dict[str, set[bytes]]:
    """Part -> ids of clips in it that were taken down."""
    ids = tombstone_ids(root)
    if not len(ids):
        return {}
    found = {}
    for part, entry in data.manifest["parts"].items():
        if clips := held_clips(data.path, entry["files"], ids):
            found[part] = clips
    return found
