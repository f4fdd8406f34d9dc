"""SpecAugment: spans of time and bands of frequency hidden from a log-mel spectrogram.

Source: Park et al. 2019 (arXiv 1904.08779), without its time warping; the masks are torchaudio's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from torch import Tensor, nn
from torchaudio.transforms import FrequencyMasking, TimeMasking

SETTINGS = ("time", "frequency", "masks")
LARGEST_SHARE = 0.5
"""Of a sound that one mask of time may cover: short clips keep something to hear."""


class SpecAugment(nn.Module):
    """Masks drawn anew for every clip from torch's global generator.

    What is masked takes the clip's mean, as in the paper, whose features have mean zero.

    Args:
        time: frames a mask covers at most; 0 for no masks of time.
        frequency: mel bands a mask covers at most; 0 for no masks of frequency.
        masks: how many of each.

    Raises:
        ValueError: a negative number, or no mask.
    """

    def __init__(self, time: int, frequency: int, masks: int = 1) -> None:
        super().__init__()
        for name, value, least in zip(SETTINGS, (time, frequency, masks), (0, 0, 1), strict=True):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"spec_augment.{name} must be at least {least}, got {value!r}")
        self.time, self.frequency, self.masks = time, frequency, masks
        self.parts = nn.ModuleList()
        for _ in range(masks):
            if time:
                self.parts.append(TimeMasking(time, iid_masks=True, p=LARGEST_SHARE))
            if frequency:
                self.parts.append(FrequencyMasking(frequency, iid_masks=True))

    @classmethod
    def of(cls, settings: Mapping[str, int] | None, bands: int) -> Self | None:
        """From the `spec_augment` of a tower's configuration; None where it masks nothing.

        Args:
            settings: some of "time", "frequency" and "masks".
            bands: how many mel bands there are.

        Raises:
            ValueError: an unknown name, a negative number, or masks as high as the spectrogram.
        """
        if settings is None:
            return None
        unknown = sorted(set(settings) - set(SETTINGS))
        if unknown:
            raise ValueError(f"spec_augment has no setting {unknown}: use {', '.join(SETTINGS)}")
        made = cls(settings.get("time", 0), settings.get("frequency", 0), settings.get("masks", 1))
        if made.frequency >= bands:
            raise ValueError(
                f"spec_augment.frequency is {made.frequency}, the spectrogram has {bands} bands: "
                "choose fewer, such as a quarter of them"
            )
        return made if made.time or made.frequency else None

    def forward(self, features: Tensor) -> Tensor:
        """Masks (B, T, bands) features; every clip has masks of its own."""
        mean = features.mean(dim=(1, 2), keepdim=True)
        spectrogram = (features - mean).transpose(1, 2)
        for part in self.parts:
            spectrogram = part(spectrogram)
        return spectrogram.transpose(1, 2) + mean
