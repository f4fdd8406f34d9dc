"""The folder of a store: a local one, or one behind a URL that fsspec reaches.

File systems are looked up when needed, never kept: fsspec keeps its own instances and drops them in
a forked process, where those of an asynchronous file system such as s3fs would hang.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from lsb.arrays import ArrayHeader, array_header, map_array
from lsb.files import StageError, link
from lsb.store.format import VectorArray
from lsb.store.remote import RemoteArray

HEAD_BYTES = 4096
"""Read at once from the start of an .npy file; headers of vectors have 128 bytes."""
STREAM_BYTES = 1 << 23
MOST_HEADER_BYTES = 10 + (1 << 16)


class Folder(Protocol):
    """Access to the files of a store by name."""

    @property
    def place(self) -> str:
        """Path or URL."""
        ...

    def file(self, name: str) -> str:
        """Path or URL of a file."""
        ...

    def local(self, name: str) -> Path | None:
        """Path of a file, None where the folder is remote."""
        ...

    def sizes(self) -> dict[str, int]:
        """Bytes of each file, by one listing; empty where there is no folder."""
        ...

    def read(self, name: str) -> bytes:
        """A whole file."""
        ...

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """A file to be read from its start to its end."""
        ...

    @contextmanager
    def parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """A table of which the footer was read.

        Raises:
            ValueError: the file is no parquet file.
        """
        ...

    def header(self, name: str) -> ArrayHeader:
        """Header of an .npy file."""
        ...

    def array(self, name: str) -> VectorArray:
        """The array of an .npy file: mapped, or a `RemoteArray`, which is indexed alike."""
        ...

    def give(self, name: str, target: Path) -> None:
        """Link a file, or copy it from afar, to a local path."""
        ...


def open_folder(place: Path | str, options: Mapping[str, Any] | None = None) -> Folder:
    """The folder at a path or URL.

    Args:
        place: local path, `file://...`, or a URL that fsspec knows.
        options: of fsspec, e.g. `endpoint_url`; credentials belong in the environment.
    """
    text = str(place)
    if "://" not in text or text.startswith("file://"):
        return LocalFolder(Path(text.removeprefix("file://")))
    return RemoteFolder(text.rstrip("/"), dict(options or {}))


@contextmanager
def _parquet(source: Any, place: str, *, pre_buffer: bool) -> Iterator[pq.ParquetFile]:
    try:
        file = pq.ParquetFile(source, pre_buffer=pre_buffer)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{place} is not a parquet file ({error}): delete it and run the command that made it "
            "again, only this part is redone"
        ) from error
    with file:
        yield file


@dataclass(frozen=True)
class LocalFolder:
    """A folder of this machine's file systems."""

    path: Path

    @property
    def place(self) -> str:
        """See `Folder`, here and below."""
        return str(self.path)

    def file(self, name: str) -> str:
        """Path."""
        return str(self.path / name)

    def local(self, name: str) -> Path | None:
        """Path."""
        return self.path / name

    def sizes(self) -> dict[str, int]:
        """By one listing."""
        try:
            with os.scandir(self.path) as entries:
                return {entry.name: entry.stat().st_size for entry in entries if entry.is_file()}
        except (FileNotFoundError, NotADirectoryError):
            return {}

    def read(self, name: str) -> bytes:
        """A whole file."""
        return (self.path / name).read_bytes()

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """A file."""
        with open(self.path / name, "rb") as stream:
            yield stream

    @contextmanager
    def parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """A table."""
        with _parquet(self.path / name, self.file(name), pre_buffer=False) as file:
            yield file

    def header(self, name: str) -> ArrayHeader:
        """Header of an array."""
        with self.stream(name) as stream:
            return array_header(stream, self.file(name))

    def array(self, name: str) -> VectorArray:
        """A mapped array."""
        return map_array(self.path / name)

    def give(self, name: str, target: Path) -> None:
        """A second name."""
        link(self.path / name, target)


@dataclass(frozen=True)
class RemoteFolder:
    """A folder behind a URL.

    Errors of its file system become a `StageError` that names the URL.
    """

    url: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def place(self) -> str:
        """URL."""
        return self.url

    def file(self, name: str) -> str:
        """URL."""
        return f"{self.url}/{name}"

    def local(self, name: str) -> Path | None:
        """None."""
        return None

    def _system(self) -> Any:
        try:
            return fsspec.filesystem(self.url.split("://", 1)[0], **self.options)
        except (ImportError, ValueError) as error:
            raise StageError(
                f"{self.url}: {error}; give a local path or a URL that fsspec knows, and install "
                "the package that speaks it (s3://: pip install vlmae[s3])"
            ) from error

    @contextmanager
    def _named(self, place: str) -> Iterator[None]:
        """Give an error of the file system the URL and a remedy."""
        try:
            yield
        except ValueError:
            raise
        except Exception as error:  # each file system has exceptions of its own
            raise StageError(
                f"{place} cannot be read ({type(error).__name__}: {error}): check the URL, the "
                "credentials in the environment, and that the store was copied whole"
            ) from error

    def sizes(self) -> dict[str, int]:
        """By one listing, never a remembered one."""
        system = self._system()
        with self._named(self.url):
            system.invalidate_cache()
            try:
                listed = system.ls(self.url, detail=True)
            except FileNotFoundError:
                return {}
        return {
            told["name"].rstrip("/").rsplit("/", 1)[-1]: int(told["size"] or 0)
            for told in listed
            if told["type"] == "file"
        }

    def read(self, name: str) -> bytes:
        """A whole file."""
        system = self._system()
        with self._named(self.file(name)):
            return bytes(system.cat_file(self.file(name)))

    def _ranges(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Bytes of (start, stop), fetched side by side."""
        place, system = self.file(name), self._system()
        filled = [(start, stop) for start, stop in ranges if stop > start]
        with self._named(place):
            fetched = system.cat_ranges(
                [place] * len(filled),
                [start for start, _ in filled],
                [stop for _, stop in filled],
                on_error="raise",
            )
        found = dict(zip(filled, fetched, strict=True))
        for (start, stop), data in found.items():
            if len(data) != stop - start:
                raise StageError(
                    f"{place} gives {len(data)} of the bytes {start} to {stop}: the file is cut "
                    "short; copy the store again"
                )
        return [bytes(found.get(span, b"")) for span in ranges]

    @contextmanager
    def stream(self, name: str) -> Iterator[BinaryIO]:
        """A file, read ahead."""
        system = self._system()
        with (
            self._named(self.file(name)),
            system.open(
                self.file(name), "rb", block_size=STREAM_BYTES, cache_type="readahead"
            ) as stream,
        ):
            yield cast(BinaryIO, stream)

    @contextmanager
    def parquet(self, name: str) -> Iterator[pq.ParquetFile]:
        """A table of which only the columns and row groups that are asked for are fetched."""
        system = self._system()
        with (
            self._named(self.file(name)),
            system.open(self.file(name), "rb", cache_type="none") as stream,
            _parquet(stream, self.file(name), pre_buffer=True) as file,
        ):
            yield file

    def header(self, name: str) -> ArrayHeader:
        """Header of an array."""
        place, system = self.file(name), self._system()
        with self._named(place):
            head = system.cat_file(place, start=0, end=HEAD_BYTES)
            if len(head) == HEAD_BYTES and 10 + int.from_bytes(head[8:10], "little") > HEAD_BYTES:
                head = system.cat_file(place, start=0, end=MOST_HEADER_BYTES)
        return array_header(BytesIO(head), place)

    def array(self, name: str) -> VectorArray:
        """An array that is indexed as a mapped one is."""
        return cast(VectorArray, RemoteArray(self.header(name), partial(self._ranges, name)))

    def give(self, name: str, target: Path) -> None:
        """A copy."""
        with self.stream(name) as stream, open(target, "wb") as copy:
            shutil.copyfileobj(stream, copy, STREAM_BYTES)
