"""Which frames of a clip are read, and with what: the decode policy, part of every cache key."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from vlmae.data.decode.torchcodec_pictures import why_torchcodec_fails

Sampling = Literal["uniform", "keyframe", "segment_random"]
Backend = Literal["auto", "torchcodec", "pyav"]

# Raise it when the same policy gives other arrays, so that no cache of the old ones is used.
REVISION = 1


@dataclass(frozen=True)
class DecodePolicy:
    """What is read from a clip.

    Attributes:
        frames: frames read per clip; a clip with fewer repeats some.
        sampling: `uniform`: the midpoints of equal runs of the clip's own frames, counted in frames
            and not in seconds. `keyframe`: the uniform choice, each moved to the last keyframe at
            or before it, so that nothing else is decoded; repeats where keyframes are fewer.
            `segment_random`: one random frame in each of the equal runs (Wang et al. 2016,
            Temporal Segment Networks), a pure function of seed and key; for training.
        backend: what decodes pictures. `auto` is torchcodec where it loads, else PyAV. Sound is
            always decoded by PyAV, in the pass that finds the frames.
        max_seconds: picture and sound are read up to here, counted from their own beginnings; None
            reads all. With it, memory does not grow with the length of a clip.
    """

    frames: int
    sampling: Sampling = "uniform"
    backend: Backend = "auto"
    max_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise ValueError(f"decode.frames is {self.frames}: give at least 1")
        for name, allowed in (("sampling", get_args(Sampling)), ("backend", get_args(Backend))):
            if getattr(self, name) not in allowed:
                raise ValueError(
                    f"decode.{name} is {getattr(self, name)!r}: give one of {', '.join(allowed)}"
                )
        if self.max_seconds is not None and not 0 < self.max_seconds < math.inf:
            raise ValueError(
                f"decode.max_seconds is {self.max_seconds}: give seconds above 0, or null for all"
            )

    @property
    def repeatable(self) -> bool:
        """Whether every call gives the same frames whatever the seed: only then may one cache."""
        return self.sampling != "segment_random"

    def resolved(self) -> DecodePolicy:
        """The same policy with the backend that is used here instead of `auto`.

        Raises:
            ValueError: torchcodec is asked for and does not load.
        """
        if self.backend == "pyav":
            return self
        failure = why_torchcodec_fails()
        if self.backend == "auto":
            return replace(self, backend="pyav" if failure else "torchcodec")
        if failure:
            raise ValueError(
                f"decode.backend is torchcodec, which does not load here ({failure}): install "
                "FFmpeg's shared libraries (apt-get install ffmpeg) and torchcodec, or set "
                "decode.backend=pyav"
            )
        return self

    def hashed(self) -> dict[str, Any]:
        """What determines the decoded arrays besides the media and the sample rate.

        Versions of the backends are left out: like an instruction set they change last bits only.
        """
        policy = self.resolved()
        return {
            "frames": policy.frames,
            "sampling": policy.sampling,
            "backend": policy.backend,
            "max_seconds": policy.max_seconds,
            "revision": REVISION,
        }

    def choose(self, keyframes: Sequence[bool], *, key: str, seed: int = 0) -> list[int]:
        """Positions of the frames to read, ascending.

        Args:
            keyframes: for each frame of the clip, in the order shown, whether it is a keyframe; at
                least one frame.
            key: the clip's key.
            seed: of `segment_random`; the others ignore it.
        """
        total = len(keyframes)
        uniform = [int((run + 0.5) / self.frames * total) for run in range(self.frames)]
        if self.sampling == "uniform":
            return uniform
        if self.sampling == "keyframe":
            positions = np.flatnonzero(np.asarray(keyframes, bool))
            if positions.size == 0:
                return uniform
            # A file trimmed without encoding may begin before its first shown keyframe.
            last = np.searchsorted(positions, uniform, side="right") - 1
            return [int(positions[max(0, index)]) for index in last]
        return [
            _random_frame(run * total // self.frames, (run + 1) * total // self.frames, draw)
            if total >= self.frames
            else uniform[run]
            for run, draw in enumerate(_draws(f"{seed}\0{key}", self.frames))
        ]


def _random_frame(start: int, stop: int, draw: int) -> int:
    return start + draw % (stop - start)


def _draws(name: str, count: int) -> list[int]:
    """64-bit numbers from a hash: the same on every machine, numpy version and worker."""
    return [
        int.from_bytes(
            hashlib.blake2b(f"{run}\0{name}".encode(errors="replace"), digest_size=8).digest()
        )
        for run in range(count)
    ]
