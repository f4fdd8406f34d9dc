"""What decoding gives: a clip, or the reason why there is none."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
Wave = npt.NDArray[np.float32]


class BadClipError(ValueError):
    """A clip that cannot be used at all. It can be pickled, so that workers may raise it.

    Attributes:
        key: the clip's key.
        reason: a short, stable phrase by which bad clips are counted (docs/decode.md lists them).
        detail: what was found, for people; "" if the reason says it all.
    """

    def __init__(self, key: str, reason: str, detail: str = "") -> None:
        super().__init__(f"clip {key}: {reason}" + (f" ({detail})" if detail else ""))
        self.key = key
        self.reason = reason
        self.detail = detail

    def __reduce__(self) -> tuple[type[BadClipError], tuple[str, str, str]]:
        return type(self), (self.key, self.reason, self.detail)


@dataclass(frozen=True)
class Clip:
    """A decoded clip. It has frames, sound or both; what is absent is masked and says why.

    Attributes:
        key: the clip's key.
        title: its title, "" if it has none.
        frames: (F, H, W, 3) uint8 RGB, upright; (0, 0, 0, 3) if there is no picture.
        audio: (S,) float32 mono, nominally in [-1, 1], at the asked rate; (0,) if missing.
        audio_missing: why there is no audio, or None if there is.
        video_missing: why there are no frames, or None if there are.
    """

    key: str
    title: str
    frames: Frames
    audio: Wave
    audio_missing: str | None
    video_missing: str | None = None
