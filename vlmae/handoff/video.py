"""A clip as one mp4 that every browser plays: H.264 and AAC, without any of the old metadata.

The picture is encoded anew (`vlmae.data.prepare.ingest.reencode`), so that titles, places and
devices that a file may name stay behind; the sound is replaced by what is handed in. Images become
a slide show, and a clip that is sound alone shows a picture of it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from fractions import Fraction

import av
import numpy as np
import numpy.typing as npt
from av.codec.context import Flags
from PIL import Image

from vlmae.data.decode.clip import Clip
from vlmae.data.decode.members import find_media
from vlmae.data.prepare.encode import REPEATABLE
from vlmae.data.prepare.ingest.reencode import reencode, target_size
from vlmae.handoff.pictures import waveform
from vlmae.handoff.voice import SAMPLE_RATE, Wave

AUDIO_BITS_PER_SECOND = 64_000
STILL_RATE = 10  # frames a second of a slide show
STILL_SECONDS = 4.0  # of a slide show without sound
CONTAINER = {"fflags": "+bitexact"}


def clip_video(members: Mapping[str, bytes], clip: Clip, wave: Wave, short_side: int) -> bytes:
    """One mp4 of a clip.

    Args:
        members: of the clip, ending -> bytes.
        clip: decoded, for its images and whether it has a picture.
        wave: (S,) float32 at 16 kHz, its sound; (0,) for none.
        short_side: larger pictures are made smaller to this.

    Raises:
        BadClipError: the video cannot be decoded.
    """
    video = find_media(members, clip.key).video
    if video is not None and clip.video_missing is None:
        shown = reencode(video, short_side, clip.key).media
    else:
        shown = _slide_show(clip, wave, short_side)
    return _with_sound(shown, wave)


def _with_sound(shown: bytes, wave: Wave) -> bytes:
    """The picture of an mp4 as it is, packet for packet, over another sound."""
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(shown), mode="r") as source,
        av.open(buffer, "w", format="mp4", container_options=CONTAINER) as target,
    ):
        picture = source.streams.video[0]
        heard = next(iter(source.streams.audio), None)
        start = 0
        if heard is not None and heard.start_time and heard.time_base:
            start = max(0, round(heard.start_time * heard.time_base * SAMPLE_RATE))
        copied = target.add_stream_from_template(picture)
        sound = None
        if len(wave):
            # The fast coder: FFmpeg's default one takes twice as long for no audible gain.
            sound = target.add_stream(
                "aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"}
            )
            sound.bit_rate = AUDIO_BITS_PER_SECOND
            sound.codec_context.flags |= Flags.bitexact
        for packet in source.demux(picture):
            if packet.dts is not None:
                packet.stream = copied
                target.mux(packet)
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(
                np.ascontiguousarray(wave[None], dtype=np.float32), format="fltp", layout="mono"
            )
            frame.sample_rate, frame.pts = SAMPLE_RATE, start
            frame.time_base = Fraction(1, SAMPLE_RATE)
            target.mux(sound.encode(frame))
            target.mux(sound.encode(None))
    return buffer.getvalue()


def _slide_show(clip: Clip, wave: Wave, short_side: int) -> bytes:
    """Frames of a clip, or its waveform, one after the other for as long as it sounds."""
    frames = clip.frames
    if not len(frames):
        with Image.open(io.BytesIO(waveform(wave))) as picture:
            frames = np.asarray(picture.convert("RGB"), np.uint8)[None]
    width, height = target_size(frames.shape[2], frames.shape[1], short_side)
    seconds = len(wave) / SAMPLE_RATE or STILL_SECONDS
    count = max(len(frames), round(seconds * STILL_RATE))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4", container_options=CONTAINER) as target:
        video = target.add_stream(
            "libx264",
            rate=STILL_RATE,
            options={"preset": "veryfast", "crf": "21", "threads": "1", **REPEATABLE},
        )
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.codec_context.flags |= Flags.bitexact
        for number in range(count):
            frame = _picture(frames[number * len(frames) // count], width, height)
            frame.pts, frame.time_base = number, Fraction(1, STILL_RATE)
            target.mux(video.encode(frame))
        target.mux(video.encode(None))
    return buffer.getvalue()


def _picture(frame: npt.NDArray[np.uint8], width: int, height: int) -> av.VideoFrame:
    small = Image.fromarray(frame).resize((width, height), Image.Resampling.LANCZOS)
    return av.VideoFrame.from_ndarray(np.asarray(small), format="rgb24").reformat(
        format="yuv420p", threads=1
    )
