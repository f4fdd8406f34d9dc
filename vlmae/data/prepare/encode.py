"""Clips as mp4: H.264 and AAC by PyAV, one thread and bit-exact, and the kinds that are broken.

Broken clips exist so that decoding is tested on what production streams hold:

    no_audio_track      a video stream only
    truncated           cut in the middle; the index (`moov`) of our files is at their end, so it is
                        lost and the file cannot be opened
    one_frame           a single picture under the whole sound
    zero_length_audio   an audio stream without a packet. The mp4 muxer drops empty tracks, except
                        in a fragmented file, whose header lists all tracks first; so this kind
                        is fragmented
"""

from __future__ import annotations

import io
from fractions import Fraction

import av
import numpy as np
from av.codec.context import Flags

from vlmae.data.prepare.bank import RATE
from vlmae.data.prepare.config import PrepareConfig
from vlmae.data.prepare.render import FrameArray, Wave

AUDIO_BITS_PER_SECOND = 48_000
REPEATABLE = {"x264-params": "mbtree=0"}
"""For x264: its macroblock tree reads memory beside a picture that nobody set, so that equal frames
of most widths gave other bytes in another process."""
SET_WIDTHS = 128
"""With widths that are multiples of this there is nothing beside the picture."""
FRAGMENTED = "empty_moov+default_base_moof+frag_keyframe"


def encode(
    frames: FrameArray, sound: Wave, config: PrepareConfig, broken: str | None = None
) -> bytes:
    """One mp4 file.

    Args:
        frames: (frames, size * 3 / 2, size) uint8, yuv420p.
        sound: (samples,) float32 in [-1, 1] at 16 kHz, mono.
        config: frame rate; a key frame starts every second.
        broken: one of `compose.BROKEN_KINDS`, or None for a sound file.
    """
    if broken == "one_frame":
        frames = frames[:1]
    options = {"fflags": "+bitexact"}
    if broken == "zero_length_audio":
        options["movflags"] = FRAGMENTED
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", container_options=options) as container:
        video = container.add_stream(
            "libx264",
            rate=config.fps,
            options={
                "preset": "veryfast",
                "crf": "21",
                "g": str(config.fps),
                "keyint_min": str(config.fps),
                "sc_threshold": "0",
                "threads": "1",
                **(REPEATABLE if config.frame_size % SET_WIDTHS else {}),
            },
        )
        video.width = video.height = config.frame_size
        video.pix_fmt = "yuv420p"
        video.codec_context.flags |= Flags.bitexact
        audio = None
        if broken != "no_audio_track":
            # The fast coder: FFmpeg's default one takes twice as long for no audible gain.
            audio = container.add_stream(
                "aac", rate=RATE, layout="mono", options={"aac_coder": "fast"}
            )
            audio.bit_rate = AUDIO_BITS_PER_SECOND
            audio.codec_context.flags |= Flags.bitexact
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, config.fps)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if audio is not None and broken != "zero_length_audio":
            heard = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(sound[None]), format="fltp", layout="mono"
            )
            heard.sample_rate, heard.pts, heard.time_base = RATE, 0, Fraction(1, RATE)
            container.mux(audio.encode(heard))
            container.mux(audio.encode(None))
    data = buffer.getvalue()
    return data[: len(data) // 2] if broken == "truncated" else data
