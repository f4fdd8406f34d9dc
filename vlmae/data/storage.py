"""Places of files: local paths and the URLs that fsspec reaches, read in one way.

File systems are looked up when needed, never kept: fsspec keeps its own instances and drops them in
a forked process, where those of an asynchronous file system such as s3fs would hang.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec

# What file systems call the thing that changes when a file does, best first.
VERSIONS = ("ETag", "etag", "LastModified", "last_modified", "updated", "mtime", "created")


@dataclass(frozen=True)
class FileInfo:
    """A file as a listing names it.

    Attributes:
        place: local path or URL.
        size: bytes.
        version: changes when the file does: modification time in ns, an etag.
    """

    place: str
    size: int
    version: str


def is_remote(place: str) -> bool:
    """Whether a place is a URL other than `file://`."""
    return "://" in place and not place.startswith("file://")


def local_path(place: str) -> Path:
    """Path of a local place, whether or not it is a `file://` URL."""
    return Path(place.removeprefix("file://"))


@dataclass(frozen=True)
class Storage:
    """Access to places.

    Attributes:
        options: of fsspec, e.g. `endpoint_url`; credentials belong in the environment.
    """

    options: Mapping[str, Any] | None = field(default=None)

    def file_system(self, url: str) -> Any:
        """The fsspec file system of a URL.

        Raises:
            ValueError: its protocol is unknown, or the package that speaks it is absent.
        """
        protocol = url.split("://", 1)[0]
        try:
            return fsspec.filesystem(protocol, **dict(self.options or {}))
        except ImportError as error:
            raise ValueError(f"{url}: {error}") from error
        except ValueError as error:
            raise ValueError(
                f"{url}: {error}; give a local path or a URL that fsspec knows"
            ) from error

    def ranges(
        self, places: Sequence[str], starts: Sequence[int], stops: Sequence[int]
    ) -> list[bytes | BaseException]:
        """Bytes of each range of remote places, or the error that reading it raised."""
        found: dict[int, bytes | BaseException] = {}
        by_protocol: dict[str, list[int]] = {}
        for number, place in enumerate(places):
            if starts[number] == stops[number]:  # an empty HTTP range means the whole file
                found[number] = b""
            else:
                by_protocol.setdefault(place.split("://", 1)[0], []).append(number)
        for numbers in by_protocol.values():
            fetched = self.file_system(places[numbers[0]]).cat_ranges(
                [places[number] for number in numbers],
                [starts[number] for number in numbers],
                [stops[number] for number in numbers],
                on_error="return",
            )
            found.update(zip(numbers, fetched, strict=True))
        return [found[number] for number in range(len(places))]

    def read(self, place: str) -> bytes:
        """A whole file.

        Raises:
            OSError: it is absent or cannot be read.
        """
        if not is_remote(place):
            return local_path(place).read_bytes()
        data: bytes = self.file_system(place).cat_file(place)
        return data

    def describe(self, place: str) -> FileInfo:
        """Size and version of one file.

        Raises:
            OSError: it is absent or cannot be reached.
        """
        if not is_remote(place):
            told = local_path(place).stat()
            return FileInfo(place, told.st_size, str(told.st_mtime_ns))
        return _described(place, self.file_system(place).info(place))

    def find(self, folder: str) -> list[FileInfo]:
        """All files below a folder, in order of path; hidden ones are left out.

        Links to files are followed, links to folders are not: they can run in circles.

        Raises:
            ValueError: there is no such folder.
        """
        folder = folder if is_remote(folder) else str(local_path(folder).expanduser())
        if is_remote(folder):
            file_system, protocol = self.file_system(folder), folder.split("://", 1)[0]
            found = [
                _described(f"{protocol}://{name.split('://', 1)[-1]}", told)
                for name, told in file_system.find(folder, detail=True).items()
            ]
        else:
            found = [self.describe(name) for name in _walk(folder)]
        if not found:
            raise ValueError(f"there are no files in {folder}: check data.path")
        start = len(folder.rstrip("/")) + 1
        seen = (file for file in found if not _is_hidden(file.place[start:]))
        return sorted(seen, key=lambda file: file.place)


def _described(place: str, told: Mapping[str, Any]) -> FileInfo:
    version = next((str(told[name]) for name in VERSIONS if told.get(name)), "")
    return FileInfo(place, int(told.get("size") or 0), version)


def _walk(folder: str) -> Iterator[str]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(parent) / name
            if path.is_file():
                yield str(path)


def _is_hidden(relative: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(relative).parts)
