"""Finding and reading recordings: archives, folders, downloads, and the errors when absent."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lsb.artifact import run_stage
from vlmae.data.prepare import PrepareConfig, prepare
from vlmae.data.prepare import archives as archives_module
from vlmae.data.prepare.archives import MNIST, branch_url, download, locate
from vlmae.data.prepare.avt_compose import AvtComposeSources, make_pictures, make_titles

ConfigMaker = Callable[..., PrepareConfig]
Pack = Callable[[Path, str, str, dict[str, bytes]], None]
Repositories = dict[str, dict[str, bytes]]


def unpack(folder: Path, repositories: Repositories) -> None:
    for name, files in repositories.items():
        for path, data in files.items():
            target = folder / name / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def bank_content(root: Path, sources: AvtComposeSources) -> str:
    return run_stage(
        root, "sources", config=sources.identity(), inputs={}, parts=sources.parts()
    ).content


def test_sources_not_set(tmp_path: Path, make_config: ConfigMaker) -> None:
    with pytest.raises(
        ValueError, match=r"data\.sources is not set: set data\.sources to a folder"
    ):
        prepare(tmp_path, make_config(sources=None))


def test_absent_folder_is_named_with_the_remedy(tmp_path: Path, make_config: ConfigMaker) -> None:
    with pytest.raises(ValueError, match=r"no folder .*/nosuch: set .*download"):
        prepare(tmp_path, make_config(sources=str(tmp_path / "nosuch")))
    assert not list(tmp_path.iterdir())


def test_all_absent_archives_are_named_at_once(
    tmp_path: Path, pack: Pack, repositories: Repositories
) -> None:
    pack(tmp_path / "ESC-10.tar", "w", "ESC-10", repositories["ESC-10"])
    with pytest.raises(
        ValueError, match="mnist-pngs, free-spoken-digit-dataset, clickbait"
    ) as caught:
        locate(str(tmp_path), "")
    assert str(tmp_path) in str(caught.value)


def test_archives_and_folders_give_the_same_bank(
    tmp_path: Path, sources: Path, repositories: Repositories
) -> None:
    unpack(tmp_path / "unpacked", repositories)
    packed = AvtComposeSources.find(str(sources), "", 5)
    folders = AvtComposeSources.find(str(tmp_path / "unpacked"), "", 5)
    assert bank_content(tmp_path / "stages", packed) == bank_content(tmp_path / "stages", folders)


def test_changed_sources_are_another_stage(tmp_path: Path, repositories: Repositories) -> None:
    unpack(tmp_path, repositories)
    before = AvtComposeSources.find(str(tmp_path), "", None).identity()
    (tmp_path / "clickbait" / "LICENSE").write_text("another")
    assert AvtComposeSources.find(str(tmp_path), "", None).identity() != before


def test_damaged_archive_is_named(tmp_path: Path, sources: Path) -> None:
    cut = tmp_path / "mnist-pngs.tar.xz"
    whole = (sources / cut.name).read_bytes()
    cut.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"mnist-pngs\.tar\.xz is damaged"):
        make_pictures(cut, None, tmp_path)


def test_foreign_archive_is_named(tmp_path: Path, pack: Pack) -> None:
    other = tmp_path / "mnist-pngs.tar"
    pack(other, "w", "other", {"README.md": b"hello"})
    with pytest.raises(ValueError, match="not the expected repository"):
        make_pictures(other, None, tmp_path)


def test_pictures_are_capped_by_hash_not_by_order(
    tmp_path: Path, pack: Pack, repositories: Repositories
) -> None:
    files = repositories["mnist-pngs"]
    pack(tmp_path / "a.tar", "w", "mnist-pngs", files)
    pack(tmp_path / "b.tar", "w", "mnist-pngs-main", dict(reversed(files.items())))
    chosen = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        assert make_pictures(tmp_path / f"{name}.tar", 4, folder) == {"pictures": 40}
        chosen.append((folder / "pictures.npy").read_bytes())
    assert chosen[0] == chosen[1]


def test_titles_are_kept_once_and_ambiguous_ones_dropped(tmp_path: Path, pack: Pack) -> None:
    archive = tmp_path / "clickbait.tar"
    bait = "You Won\u2019t Guess\n\nyou won\u2019t  guess\nIn Both\n"
    files = {
        "dataset/clickbait_data.gz": gzip.compress(bait.encode()),
        "dataset/non_clickbait_data.gz": gzip.compress(b"News of the day\nIn both\n"),
    }
    pack(archive, "w", "clickbait", files)
    make_titles(archive, tmp_path)
    rows = pq.read_table(tmp_path / "titles.parquet").to_pylist()
    assert {(row["title"], row["clickbait"]) for row in rows} == {
        ("You Won\u2019t Guess", True),
        ("News of the day", False),
    }


def test_download_fills_the_cache_with_whole_archives_only(
    tmp_path: Path, pack: Pack, repositories: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert (
        branch_url(MNIST) == "https://codeload.github.com/rasbt/mnist-pngs/tar.gz/refs/heads/main"
    )
    server, cache = tmp_path / "server", tmp_path / "cache"
    server.mkdir()
    for name, files in repositories.items():
        pack(server / f"{name}.tar.gz", "w:gz", f"{name}-main", files)
    monkeypatch.setattr(
        archives_module,
        "branch_url",
        lambda repository: f"file://{server}/{repository.name}.tar.gz",
    )
    paths = locate("download", str(cache))
    assert sorted(path.name for path in cache.iterdir()) == sorted(
        f"{name}.tar.gz" for name in repositories
    )
    for path in server.iterdir():
        path.unlink()
    assert locate("download", str(cache)) == paths, "nothing is fetched twice"
    stage = AvtComposeSources(paths, 5)
    assert stage.identity()["pictures_per_digit"] == 5


def test_cut_download_leaves_nothing(
    tmp_path: Path, pack: Pack, repositories: Repositories, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "mnist.tar.gz"
    pack(archive, "w:gz", "mnist-pngs-main", repositories["mnist-pngs"])
    archive.write_bytes(archive.read_bytes()[:-4000])
    monkeypatch.setattr(archives_module, "branch_url", lambda repository: f"file://{archive}")
    cache = tmp_path / "cache"
    cache.mkdir()
    with pytest.raises(ValueError, match="could not download file://"):
        download(MNIST, cache)
    assert not list(cache.iterdir())


def test_unreachable_server_is_an_error_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        archives_module, "branch_url", lambda repository: f"file://{tmp_path}/nosuch.tar.gz"
    )
    with pytest.raises(ValueError, match="check the network"):
        locate("download", str(tmp_path / "cache"))
