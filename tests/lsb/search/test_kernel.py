"""Building the compiled kernel, and its codes against the numpy reference."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lsb.search import int_mm
from lsb.search.kernel import library
from lsb.search.kernel.encode import encode
from lsb.search.projection import encode_prefix, encode_whole, fit, passing_share, quantised
from lsb.search.rescore import similarity

RUNNING = [
    name
    for name, (needed, _) in library.INSTRUCTION_SETS.items()
    if library.processor_flags() >= set(needed)
]


@pytest.fixture
def uncached(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache of kernels, and none loaded."""
    monkeypatch.setenv("VLMAE_CACHE", str(tmp_path / "kernels"))
    library.load.cache_clear()
    library.compiled.cache_clear()
    yield tmp_path / "kernels"
    library.load.cache_clear()
    library.compiled.cache_clear()


def vectors(count: int, dimension: int) -> np.ndarray:
    x = np.random.default_rng(0).normal(size=(count, dimension)) * (
        np.arange(1, dimension + 1) ** -0.5
    )
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.skipif(not RUNNING, reason="no kernel for this processor: AVX2 or AVX-512 is needed")
def test_it_is_built_once(uncached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    library.load(RUNNING[0])
    (built,) = uncached.iterdir()
    assert built.name.startswith(f"scan-{RUNNING[0]}-")
    assert built.suffix == ".so"
    monkeypatch.setattr(library, "_build", None)  # a second build would fail
    library.load.cache_clear()
    assert library.load(RUNNING[0]).name == RUNNING[0]


@pytest.mark.skipif(not RUNNING, reason="no kernel for this processor: AVX2 or AVX-512 is needed")
def test_no_compiler_is_one_line_and_auto_does_without(
    uncached: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(library.KernelError, match=r"no C\+\+ compiler 'no-such-compiler'.*CXX"):
        library.load(RUNNING[0])
    assert library.compiled() is None
    assert "searches use int_mm" in caplog.text


@pytest.mark.skipif(not RUNNING, reason="no kernel for this processor: AVX2 or AVX-512 is needed")
def test_a_compiler_that_fails_says_why_and_leaves_nothing(
    uncached: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-std=c++98"))
    with pytest.raises(library.KernelError, match=r"could not build scan\.cpp \(.*error.*C\+\+20"):
        library.load(RUNNING[0])
    assert list(uncached.iterdir()) == []


def test_a_processor_without_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "processor_flags", lambda: frozenset({"avx2", "fma", "f16c"}))
    with pytest.raises(library.KernelError, match=r"this processor has no avx512_vnni.*auto"):
        library.load.__wrapped__("avx512")


def test_a_cache_that_cannot_be_written_is_no_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("VLMAE_CACHE", str(tmp_path / "file" / "below"))
    assert library.cache_folder().is_dir()


@pytest.mark.parametrize("name", RUNNING)
@pytest.mark.parametrize("dimension", [64, 100, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_codes_are_those_of_the_reference(name: str, dimension: int, dtype: type) -> None:
    rows = vectors(1001, dimension).astype(dtype)
    wide = rows.astype(np.float32)
    projection = fit(wide, wide[:100], wanted=0.8, prefixes=(32,), seeds=10**6)
    assert projection.prefix == 32
    codes, error, prefix, prefix_error = encode(projection, rows, library.load(name), threads=2)
    expected, expected_error = encode_whole(projection, wide)
    assert np.array_equal(codes[:, :dimension], expected)
    assert not codes[:, dimension:].any()
    np.testing.assert_allclose(error, expected_error, rtol=1e-4)
    expected, expected_error = encode_prefix(projection, wide)
    # A coordinate at half a step may be rounded either way; the measured error goes with it.
    assert np.mean(prefix != expected) < 1e-3
    np.testing.assert_allclose(prefix_error, expected_error, rtol=1e-2)
    assert (error >= np.linalg.norm(wide - codes[:, :dimension] * projection.step, axis=1)).all()


def test_prefixes_bound_every_product_from_above() -> None:
    rows, seeds = vectors(400, 256), vectors(50, 256)[::-1].copy()
    projection = fit(rows, seeds, wanted=0.8, seeds=10**6)
    assert projection.prefix
    score = seeds.astype(np.float64) @ rows.T.astype(np.float64)
    for wanted in (-0.5, 0.2, 0.6, 0.9):
        assert passing_share(projection, rows, seeds, wanted) >= np.mean(score >= wanted)
    largest = np.linalg.svd(projection.weights * np.float64(projection.weight_scale))[1].max()
    assert largest <= 1


def test_longer_prefixes_are_chosen_for_more_seeds_and_none_for_low_thresholds() -> None:
    rows = vectors(4000, 256)
    assert fit(rows, rows[:100], wanted=-1.0, seeds=10_000).prefix == 0
    few = fit(rows, rows[:100], wanted=0.8, seeds=10).prefix
    many = fit(rows, rows[:100], wanted=0.8, seeds=100_000).prefix
    assert many >= few
    assert many > 0


def test_quantised_stays_within_its_range() -> None:
    assert quantised(np.asarray([[1e9, -1e9, 0.0]]), 1e-3).tolist() == [[127, -127, 0]]


@pytest.mark.parametrize("dimension", [1, 2, 3, 7, 64, 100, 768])
def test_rescoring_in_torch_has_the_same_bits(dimension: int) -> None:
    import torch

    a, b = vectors(200, dimension), vectors(200, dimension)[::-1].copy()
    mine = int_mm._rescored(torch.from_numpy(a), torch.from_numpy(b)).numpy()
    assert mine.tobytes() == similarity(a, b).tobytes()
