"""Codes kept beside vectors: written, read, cut, refused, searched."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from lsb.ids import sample_ids
from lsb.search.backends import open_scan
from lsb.search.codes import PartCodes, cut_codes, make_codes, write_codes
from lsb.search.config import SearchConfig
from lsb.search.kernel import library
from lsb.search.scan import Block, Seeds

RUNNING = [
    name
    for name, (needed, _) in library.INSTRUCTION_SETS.items()
    if library.processor_flags() >= set(needed)
]


def rows_of(count: int, dimension: int = 128) -> np.ndarray:
    random = np.random.default_rng(0)
    centres = random.normal(size=(40, dimension)) * np.arange(1, dimension + 1) ** -0.5
    x = centres[random.integers(40, size=count)] + 0.1 * random.normal(size=(count, dimension))
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def part(tmp_path: Path) -> tuple[Path, Path, np.ndarray]:
    vectors = rows_of(3000).astype(np.float16)
    np.save(tmp_path / "part.npy", vectors)
    write_codes(tmp_path / "part.codes.safetensors", vectors)
    return tmp_path / "part.codes.safetensors", tmp_path / "part.npy", vectors


def test_what_is_read_is_what_was_made(part: tuple[Path, Path, np.ndarray]) -> None:
    path, vectors_path, vectors = part
    codes = PartCodes.open(path, vectors_path)
    assert codes.rows == 3000
    block = codes.block(1000, 1500)
    made = make_codes(codes.projection, vectors[1000:1500].astype(np.float32))
    assert np.array_equal(block.codes, made.codes)
    np.testing.assert_allclose(block.code_error, made.code_error, rtol=1e-4)


def test_the_same_bytes_again(part: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    write_codes(tmp_path / "again", part[2])
    assert (tmp_path / "again").read_bytes() == part[0].read_bytes()


@pytest.mark.parametrize("name", ["knn", "int_mm", *RUNNING])
def test_a_search_with_kept_codes_finds_the_same(
    part: tuple[Path, Path, np.ndarray], name: str
) -> None:
    path, vectors_path, vectors = part
    codes = PartCodes.open(path, vectors_path)
    ids = sample_ids([str(row) for row in range(3000)])
    seeds = Seeds(sample_ids([f"seed {n}" for n in range(100)]), rows_of(100))
    found = []
    for kept in (False, True):
        scan = open_scan(seeds, 20, 0.6, SearchConfig(backend=name))
        for start in range(0, 3000, 700):
            end = min(start + 700, 3000)
            reader = partial(codes.block, start, end) if kept else None
            scan.add(Block(ids[start:end], vectors[start:end], start, None, reader))
        found.append(scan.lists())
    assert len(found[0].row) > 500
    for field in ("query", "score", "id", "row"):
        assert np.array_equal(getattr(found[0], field), getattr(found[1], field))


def test_rows_can_be_cut_out(part: tuple[Path, Path, np.ndarray], tmp_path: Path) -> None:
    keep = np.arange(3000) % 7 != 0
    cut_codes(part[0], tmp_path / "cut", keep)
    np.save(tmp_path / "cut.npy", part[2][keep])
    codes = PartCodes.open(tmp_path / "cut", tmp_path / "cut.npy")
    assert codes.rows == keep.sum()


def test_an_empty_part(tmp_path: Path) -> None:
    empty = np.zeros((0, 64), np.float32)
    np.save(tmp_path / "empty.npy", empty)
    write_codes(tmp_path / "empty.codes", empty)
    assert PartCodes.open(tmp_path / "empty.codes", tmp_path / "empty.npy").rows == 0


def test_codes_of_other_vectors_are_refused(
    part: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    path, _, vectors = part
    np.save(tmp_path / "other.npy", vectors[::-1])
    with pytest.raises(
        ValueError, match=r"row \d+ has codes of another vector .* delete the codes"
    ):
        PartCodes.open(path, tmp_path / "other.npy")
    np.save(tmp_path / "fewer.npy", vectors[:-1])
    with pytest.raises(ValueError, match=r"codes of shape \(3000, 128\), fewer.npy vectors of"):
        PartCodes.open(path, tmp_path / "fewer.npy")


def test_a_damaged_or_foreign_file_is_refused(
    part: tuple[Path, Path, np.ndarray], tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "cut").write_bytes(part[0].read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"cut is damaged .* delete the file"):
        PartCodes.open(tmp_path / "cut")
    save_file({"codes": np.zeros((1, 64), np.int8)}, tmp_path / "foreign")
    with pytest.raises(ValueError, match="foreign has format None version None"):
        PartCodes.open(tmp_path / "foreign")
