"""Clips that lie as files in a folder or a list: what belongs to one, and how it is decoded.

Grouping, keys and titles are those of `vlmae.prepare` with data=folder, so that scores of a folder
and of a data set made from it have the same keys. Here nothing stops at a bad file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from vlmae.data.decode import BadClipError, Clip, DecodePolicy, decode_sample
from vlmae.data.prepare.ingest.clips import clip_key
from vlmae.data.prepare.media import clip_members, split_file_name
from vlmae.data.storage import FileInfo, Storage, is_remote, local_path

LIST_ENDINGS = (".txt", ".lst")
UNREADABLE = "unreadable file"
TOO_LARGE = "file too large"


@dataclass(frozen=True)
class MediaClip:
    """One clip in files.

    Attributes:
        key: as `vlmae.prepare` gives it.
        path: of its medium, relative to the folder, or as it was named.
        files: ending -> its place.
        size: bytes of all of them.
        problem: reason and detail why it cannot be used, where the listing already shows it.
    """

    key: str
    path: str
    files: Mapping[str, str]
    size: int
    problem: tuple[str, str] | None = None


def clips_of(places: Sequence[str]) -> list[MediaClip]:
    """Clips of folders, media files, and text files (.txt, .lst) that name one of them a line.

    Args:
        places: local paths or URLs. Relative paths in a text file are relative to it.

    Raises:
        ValueError: the one place that is given does not exist, a folder holds no media, a list is
            empty or cannot be read.
    """
    only = places[0] if len(places) == 1 and not is_remote(places[0]) else None
    if only is not None and not local_path(only).expanduser().exists():
        raise ValueError(f"media: there is no {only}: give a folder, a file or a list")
    clips: list[MediaClip] = []
    seen: set[tuple[str, ...]] = set()
    listed: dict[str, dict[str, list[tuple[str, FileInfo]]]] = {}
    for place in _places(places):
        found = _folder_clips(place) if _is_folder(place) else [_file_clip(place, listed)]
        for clip in found:
            # Picture and sound of one clip may both be named.
            files = tuple(sorted(clip.files.values())) or (clip.path,)
            if files not in seen:
                seen.add(files)
                clips.append(clip)
    return clips


def decode_clip(
    clip: MediaClip, policy: DecodePolicy, sample_rate: int, largest: int | None = None
) -> Clip:
    """Read and decode one clip.

    Args:
        clip: where its files are.
        policy: which frames are read.
        sample_rate: of the sound, in Hz.
        largest: bytes of files that are read at most; None for any.

    Raises:
        BadClipError: it cannot be used, or its files cannot be read.
    """
    if clip.problem is not None:
        raise BadClipError(clip.key, *clip.problem)
    if largest is not None and clip.size > largest:
        raise BadClipError(clip.key, TOO_LARGE, f"{clip.size} bytes")
    storage = Storage()
    try:
        members = {ending: storage.read(place) for ending, place in clip.files.items()}
    except OSError as error:
        raise BadClipError(clip.key, UNREADABLE, error.strerror or str(error)) from error
    return decode_sample(members, key=clip.key, policy=policy, sample_rate=sample_rate)


def _places(places: Sequence[str]) -> Iterator[str]:
    """The places, with those that lists name in place of the lists."""
    for place in places:
        if not place.endswith(LIST_ENDINGS) or _is_folder(place):
            yield place
            continue
        try:
            lines = Storage().read(place).decode("utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(
                f"media: {place} cannot be read ({error}): give a text file in UTF-8 with a path a "
                "line"
            ) from error
        named = [line.strip() for line in lines if line.strip()]
        if not named:
            raise ValueError(f"media: {place} names no file: give one with a path a line")
        home = place.rpartition("/")[0]
        for name in named:
            absolute = "://" in name or PurePosixPath(name).is_absolute() or not home
            yield name if absolute else f"{home}/{name}"


def _is_folder(place: str) -> bool:
    if not is_remote(place):
        return local_path(place).expanduser().is_dir()
    return split_file_name(place) is None and not place.endswith(LIST_ENDINGS)


def _folder_clips(folder: str) -> list[MediaClip]:
    home = folder if is_remote(folder) else str(local_path(folder).expanduser())
    try:
        groups = _grouped(home)
    except ValueError:  # no files at all
        groups = {}
    clips = [_clip(stem, stem, found, len(home.rstrip("/")) + 1) for stem, found in groups.items()]
    media = [clip for clip in clips if clip is not None]
    if not media:
        raise ValueError(
            f"media: there are no media of a known ending in {folder} (docs/data.md names them)"
        )
    return media


def _file_clip(place: str, listed: dict[str, dict[str, list[tuple[str, FileInfo]]]]) -> MediaClip:
    """A file that was named, with what lies beside it under the same name."""
    home, _, name = place.rpartition("/")
    split = split_file_name(name)
    stem = (f"{home}/" if home else "") + (split[0] if split else name)
    key = clip_key(stem.split("://", 1)[-1], ["json"])
    if split is None or clip_members([split[1]]) is None:
        return MediaClip(key, place, {}, 0, ("no media member", f"{name} has no known ending"))
    folder = home or "."
    if folder not in listed:
        listed[folder] = _beside(folder)
    found = listed[folder].get(split[0], [])
    if not any(file.place.rpartition("/")[2] == name for _, file in found):
        return MediaClip(key, place, {}, 0, ("absent file", place))
    clip = _clip(split[0], stem, found, 0)
    assert clip is not None, "it has the medium that was named"
    return MediaClip(clip.key, place, clip.files, clip.size, clip.problem)


def _clip(
    stem: str, keyed: str, found: Sequence[tuple[str, FileInfo]], start: int
) -> MediaClip | None:
    """The clip of files that share a stem; None if none of them is a medium."""
    endings = [ending for ending, _ in found]
    parts = clip_members(endings)
    if parts is None:
        return None
    key = clip_key(keyed.split("://", 1)[-1], [*parts.media, *parts.titles, "json"])
    medium = next(file for ending, file in found if ending == parts.media[0])
    problem = None
    if len(set(endings)) < len(endings):
        problem = ("duplicate member", ", ".join(endings))
    elif parts.rivals is not None:
        problem = ("several media of one name", ", ".join(parts.rivals))
    return MediaClip(
        key,
        medium.place[start:],
        {ending: file.place for ending, file in found},
        sum(file.size for _, file in found),
        problem,
    )


def _grouped(folder: str) -> dict[str, list[tuple[str, FileInfo]]]:
    """Stem, relative to a folder -> ending and file of all files below it that can be of clips."""
    groups: dict[str, list[tuple[str, FileInfo]]] = {}
    for file in Storage().find(folder):
        name = split_file_name(file.place[len(folder.rstrip("/")) + 1 :])
        if name is not None:
            groups.setdefault(name[0], []).append((name[1], file))
    return groups


def _beside(folder: str) -> dict[str, list[tuple[str, FileInfo]]]:
    """The same for the files right in a folder; empty if it is not there."""
    if is_remote(folder):
        return {stem: found for stem, found in _grouped(folder).items() if "/" not in stem}
    home = local_path(folder).expanduser()
    groups: dict[str, list[tuple[str, FileInfo]]] = {}
    for path in sorted(home.iterdir()) if home.is_dir() else []:
        name = split_file_name(path.name)
        if name is not None and path.is_file():
            groups.setdefault(name[0], []).append((name[1], Storage().describe(str(path))))
    return groups
