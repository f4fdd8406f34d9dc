"""SpecAugment: what it masks, that it repeats by seed, and that towers use it when told only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_audio_models as tiny
import torch

from vlmae.backbones.audio_stream import AudioTower
from vlmae.backbones.clap import Clap
from vlmae.backbones.spec_augment import SpecAugment
from vlmae.backbones.spectrogram_transformer import SpectrogramTransformer
from vlmae.backbones.waveform import Waveform
from vlmae.backbones.whisper import Whisper
from vlmae.data.decode import Clip

SETTINGS = {"time": 20, "frequency": 8}
TOWERS: dict[str, Callable[..., AudioTower]] = {
    "whisper": Whisper,
    "ast": SpectrogramTransformer,
    "clap": Clap,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("augmented")
    return {family: tiny.FAMILIES[family](root / family) for family in TOWERS}


def clips(rate: int) -> list[Clip]:
    rng = np.random.default_rng(0)
    sounds = [rng.normal(0, 0.1, rate).astype(np.float32) for _ in range(2)]
    return [Clip("clip", "", np.zeros((0, 0, 0, 3), np.uint8), sound, None) for sound in sounds]


def masked(time: int, frequency: int, masks: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Where (B, T, bands) features changed; every one is unlike its clip's mean."""
    features = torch.arange(torch.tensor(shape).prod().item()).reshape(shape).float() ** 1.01
    result = SpecAugment(time, frequency, masks)(features)
    changed = (result - features).abs() > 1e-2
    mean = features.mean(dim=(1, 2), keepdim=True).expand(shape)
    torch.testing.assert_close(result[changed], mean[changed])
    return changed


def test_masks_of_time_cover_whole_frames_and_at_most_their_width() -> None:
    torch.manual_seed(0)
    changed = masked(20, 0, 1, (400, 100, 5))
    rows = changed.any(dim=2)
    assert torch.equal(rows, changed.all(dim=2)), "all bands of a frame"
    widths = rows.sum(dim=1)
    assert int(widths.max()) == 19, "drawn from [0, 20)"
    assert int(widths.min()) == 0
    assert 8 < float(widths.float().mean()) < 11
    assert len({tuple(row.tolist()) for row in rows}) > 300, "every clip has a mask of its own"
    assert rows.any(dim=0)[:-1].all(), "everywhere"


def test_masks_of_frequency_cover_whole_bands_and_several_are_drawn() -> None:
    torch.manual_seed(0)
    one, three = (masked(0, 8, masks, (300, 7, 40)).all(dim=1).sum(dim=1) for masks in (1, 3))
    assert int(one.max()) == 7
    assert float(three.float().mean()) > 2 * float(one.float().mean())


def test_a_mask_of_time_leaves_half_of_a_short_sound() -> None:
    torch.manual_seed(0)
    changed = masked(100, 0, 1, (300, 10, 5)).any(dim=2).sum(dim=1)
    assert int(changed.max()) == 4


def test_the_global_generator_decides() -> None:
    features = torch.randn(3, 50, 20)
    augment = SpecAugment(10, 5, 2)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(augment(features))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


@pytest.mark.parametrize("family", TOWERS)
def test_towers_augment_when_told_and_repeat_by_seed(folders: dict[str, str], family: str) -> None:
    plain = TOWERS[family](folders[family])
    tower = TOWERS[family](folders[family], spec_augment=SETTINGS)
    both = clips(plain.sample_rate)
    expected = plain.prefix(both)["audio"]
    assert not tower.augment
    assert all(map(torch.equal, tower.prefix(both)["audio"], expected))
    tower.augment = True
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(torch.cat(tower.prefix(both)["audio"]))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
    assert not torch.allclose(drawn[0], torch.cat(expected))
    assert drawn[0].isfinite().all()
    tower.augment = False
    assert all(map(torch.equal, tower.prefix(both)["audio"], expected))
    # What is not augmented is the same, so tokens of the two towers may be mixed in evaluation.
    assert tower.identity() == plain.identity()


@pytest.mark.parametrize("family", TOWERS)
def test_only_towers_that_augment_are_random(folders: dict[str, str], family: str) -> None:
    assert TOWERS[family](folders[family]).random == ""
    off = TOWERS[family](folders[family], spec_augment={"time": 0, "frequency": 0})
    assert off.random == ""
    off.augment = True
    both = clips(off.sample_rate)
    off.prefix(both)
    assert "spec_augment" in TOWERS[family](folders[family], spec_augment={"time": 5}).random


def test_waveforms_have_no_spectrogram_to_augment(tmp_path: Path) -> None:
    folder = tiny.hubert(tmp_path / "hubert")
    with pytest.raises(TypeError, match="spec_augment"):
        Waveform(folder, spec_augment=SETTINGS)  # type: ignore[call-arg]
    assert Waveform(folder).random == ""


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"time": -1}, "spec_augment.time must be at least 0, got -1"),
        ({"time": 5, "masks": 0}, "spec_augment.masks must be at least 1, got 0"),
        ({"frequency": 24}, "frequency is 24, the spectrogram has 24 bands: choose fewer"),
        ({"freq": 4}, r"spec_augment has no setting \['freq'\]: use time, frequency, masks"),
        ({"time": 0.5}, "spec_augment.time must be at least 0, got 0.5"),
    ],
)
def test_settings_out_of_range(
    folders: dict[str, str], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Whisper(folders["whisper"], spec_augment=settings)
