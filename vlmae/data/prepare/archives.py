"""The four public repositories of AVT-compose: finding them on disk, downloading and reading them.

A repository may lie in the sources folder as an archive (`{name}.tar`, `.tar.gz` or `.tar.xz`) or
unpacked (`{name}/`). Archives are read once, front to back, and decompressed once.

The download path has been tested against local files only: no network was at hand when it was
written.
"""

from __future__ import annotations

import hashlib
import lzma
import os
import shutil
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path, PurePosixPath
from urllib.request import urlopen

from lsb.artifact import file_sha256

DOWNLOAD = "download"
ARCHIVE_ENDINGS = (".tar", ".tar.xz", ".tar.gz")


@dataclass(frozen=True)
class Repository:
    """One public GitHub repository of recordings.

    Attributes:
        name: of its archive, and of its folder when unpacked.
        address: `owner/name` on GitHub.
        branch: that is downloaded.
        archive: the archive's file name as we distribute it, for error messages.
    """

    name: str
    address: str
    branch: str
    archive: str

    @property
    def page(self) -> str:
        """Address of the repository's page."""
        return f"https://github.com/{self.address}"


MNIST = Repository("mnist-pngs", "rasbt/mnist-pngs", "main", "mnist-pngs.tar.xz")
FSDD = Repository(
    "free-spoken-digit-dataset",
    "Jakobovski/free-spoken-digit-dataset",
    "master",
    "free-spoken-digit-dataset.tar.xz",
)
ESC10 = Repository("ESC-10", "karolpiczak/ESC-10", "master", "ESC-10.tar")
CLICKBAIT = Repository("clickbait", "bhargaviparanjape/clickbait", "master", "clickbait.tar.xz")
REPOSITORIES = (MNIST, FSDD, ESC10, CLICKBAIT)


def branch_url(repository: Repository) -> str:
    """Where GitHub serves the tar archive of a branch."""
    return f"https://codeload.github.com/{repository.address}/tar.gz/refs/heads/{repository.branch}"


def locate(sources: str | None, cache: str) -> dict[str, Path]:
    """Find each repository's archive or folder, downloading what the cache lacks if so asked.

    Args:
        sources: a folder, or "download".
        cache: folder that downloads are kept in.

    Returns:
        Repository name -> archive or folder.

    Raises:
        ValueError: `sources` is not given, or a repository is not in it; names the path and remedy.
    """
    remedy = (
        "set data.sources to a folder holding "
        + ", ".join(repository.archive for repository in REPOSITORIES)
        + f" or their unpacked folders, or data.sources={DOWNLOAD} to fetch them from GitHub"
    )
    if not sources:
        raise ValueError(f"data.sources is not set: {remedy}")
    if sources == DOWNLOAD:
        folder = Path(cache).expanduser()
        folder.mkdir(parents=True, exist_ok=True)
        for repository in REPOSITORIES:
            if _find(folder, repository) is None:
                download(repository, folder)
    else:
        folder = Path(sources).expanduser()
        if not folder.is_dir():
            raise ValueError(f"data.sources: there is no folder {folder.absolute()}: {remedy}")
    found = {repository.name: _find(folder, repository) for repository in REPOSITORIES}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        raise ValueError(f"data.sources: {', '.join(missing)} not in {folder.absolute()}: {remedy}")
    return {name: path for name, path in found.items() if path is not None}


def _find(folder: Path, repository: Repository) -> Path | None:
    if (folder / repository.name).is_dir():
        return folder / repository.name
    for ending in ARCHIVE_ENDINGS:
        if (folder / f"{repository.name}{ending}").is_file():
            return folder / f"{repository.name}{ending}"
    return None


def download(repository: Repository, folder: Path) -> Path:
    """Fetch one repository's branch as `{folder}/{name}.tar.gz`; whole or not at all.

    Raises:
        ValueError: the server cannot be reached, or what came is not a whole archive.
    """
    target = folder / f"{repository.name}.tar.gz"
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    url = branch_url(repository)
    try:
        with urlopen(url, timeout=60) as remote, open(temporary, "wb") as local:
            shutil.copyfileobj(remote, local, 1 << 20)
        list(read(temporary, lambda path: False))  # walks to the end: a cut archive is refused
        os.replace(temporary, target)
    except (OSError, HTTPException, ValueError) as error:
        raise ValueError(
            f"could not download {url} ({error}): check the network, or give the archives as "
            "a folder in data.sources"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
    return target


def content_hash(path: Path) -> str:
    """Hash of an archive's bytes, or of all names and bytes in a folder."""
    if path.is_file():
        return file_sha256(path)
    digest = hashlib.sha256()
    for entry in sorted(entry for entry in path.rglob("*") if entry.is_file()):
        name = entry.relative_to(path).as_posix()
        digest.update(f"{name}\0{file_sha256(entry)}\n".encode())
    return digest.hexdigest()


def read(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Files of a repository, as (path below its top folder, bytes), in stored order.

    Args:
        path: an archive or an unpacked folder.
        wanted: says by path which files to read.

    Raises:
        ValueError: the archive is damaged.
    """
    if path.is_dir():
        for entry in sorted(entry for entry in path.rglob("*") if entry.is_file()):
            name = entry.relative_to(path).as_posix()
            if wanted(name):
                yield name, entry.read_bytes()
        return
    try:
        with tarfile.open(path, "r|*") as archive:
            for member in archive:
                # GitHub names the top folder after the branch, our archives after the repository.
                name = "/".join(PurePosixPath(member.name).parts[1:])
                if member.isfile() and wanted(name):
                    stream = archive.extractfile(member)
                    assert stream is not None
                    yield name, stream.read()
    except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError) as error:
        raise ValueError(
            f"{path} is damaged ({error}): delete it and get it again (see data.sources)"
        ) from error
