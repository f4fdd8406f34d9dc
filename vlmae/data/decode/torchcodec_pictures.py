"""Pictures by torchcodec, which uses the FFmpeg of the system and is imported only when used.

PyAV has read the packets before (container.py): torchcodec gets its frame index from there, so it
does not scan the file again and cannot choose other frames.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from vlmae.data.decode.clip import Frames

if TYPE_CHECKING:
    from vlmae.data.decode.container import PictureIndex

DECODERS = "torchcodec.decoders"


@cache
def why_torchcodec_fails() -> str:
    """Why torchcodec cannot be used here, "" if it can. The first call imports it (seconds)."""
    try:
        import_module(DECODERS)
    except (ImportError, OSError, RuntimeError) as error:
        # Its message lists every FFmpeg version it tried; the first line says what is wrong.
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return ""


def read_pictures(media: bytes, index: PictureIndex, times: Sequence[int]) -> Frames | None:
    """Frames shown at `times`, upright.

    Args:
        media: a whole file.
        index: its packets, from PyAV.
        times: presentation times, in units of the stream's time base.

    Returns:
        (len(times), H, W, 3) uint8 RGB. None if torchcodec refuses the file or gives frames of
        other times: it stops at the first damaged packet and at a change of size, and PyAV is asked
        to judge, so that both backends call the same clips bad and for the same reasons.
    """
    if not index.has_times:
        return None
    order = sorted(set(index.times))
    keys = {time for time, is_key in zip(index.times, index.keyframes, strict=True) if is_key}
    mappings = [{"pts": time, "duration": 1, "key_frame": int(time in keys)} for time in order]
    position = {time: number for number, time in enumerate(order)}
    try:
        # The decoder has no `close`: it is freed with its last name, at the end of this function.
        batch = (
            import_module(DECODERS)
            .VideoDecoder(
                media,
                stream_index=index.stream,
                dimension_order="NHWC",
                num_ffmpeg_threads=1,
                device="cpu",
                custom_frame_mappings=json.dumps({"frames": mappings}),
            )
            .get_frames_at([position[time] for time in times])
        )
    except (RuntimeError, IndexError, ValueError):
        return None
    wanted = np.array(times) * float(index.time_base)
    if not np.allclose(batch.pts_seconds.numpy(), wanted, rtol=0, atol=float(index.time_base) / 2):
        return None
    frames: Frames = batch.data.numpy()
    return frames
