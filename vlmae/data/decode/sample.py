"""Decode one sample: the members of a clip in, frames, sound and title out."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vlmae.data.decode import pyav, torchcodec_pictures
from vlmae.data.decode.clip import BadClipError, Clip, Frames, Wave
from vlmae.data.decode.container import opened, scan
from vlmae.data.decode.images import read_images
from vlmae.data.decode.members import Media, find_media, read_title
from vlmae.data.decode.policy import DecodePolicy

NO_FRAMES: tuple[int, ...] = (0, 0, 0, 3)


def decode_sample(
    members: Mapping[str, bytes],
    *,
    key: str,
    policy: DecodePolicy,
    sample_rate: int,
    seed: int = 0,
) -> Clip:
    """Decode a clip. Every decoder is opened and closed in here and has one thread.

    Args:
        members: ending (after the first dot of the member's name, lower case) -> bytes.
        key: the clip's key.
        policy: which frames, and with what.
        sample_rate: of the returned audio, in Hz.
        seed: for `segment_random` only; the same seed and key give the same frames.

    Raises:
        BadClipError: the clip cannot be used (docs/decode.md lists the reasons). A clip without
            sound, or one that is sound alone, is returned and says what is missing.
        ValueError: the policy's backend does not load here.
    """
    policy = policy.resolved()
    title = read_title(members, key)
    media = find_media(members, key)
    if media.video is not None:
        frames, video_missing, audio, audio_missing = _video(media, key, policy, sample_rate, seed)
    else:
        audio, audio_missing = _sound(media.sound, key, policy, sample_rate)
        frames, video_missing = np.zeros(NO_FRAMES, np.uint8), "no video stream"
        if media.images:
            frames, video_missing = read_images(media.images, policy, key=key, seed=seed), None
    if video_missing and audio_missing:
        reason = "empty file" if media.sound == b"" else "neither picture nor sound"
        raise BadClipError(key, reason, f"{video_missing}, {audio_missing}")
    return Clip(key, title, frames, audio, audio_missing, video_missing)


def _video(
    media: Media, key: str, policy: DecodePolicy, sample_rate: int, seed: int
) -> tuple[Frames, str | None, Wave, str | None]:
    """Frames and why they are missing, sound and why it is missing, of a video file."""
    assert media.video is not None
    nothing = np.zeros(NO_FRAMES, np.uint8)
    with opened(media.video, key) as container:
        found = scan(
            container,
            key,
            sample_rate=sample_rate,
            max_seconds=policy.max_seconds,
            sound=media.sound is None,
        )
        audio, audio_missing = found.audio, found.audio_missing
        if media.sound is not None:
            audio, audio_missing = _sound(media.sound, key, policy, sample_rate)
        index = found.pictures
        if index is None:
            return nothing, "no video stream", audio, audio_missing
        shown = index.frames
        if not shown:
            return nothing, "zero-length video", audio, audio_missing
        chosen = policy.choose([is_key for _, is_key in shown], key=key, seed=seed)
        times = [shown[position][0] for position in chosen]
        frames = None
        if policy.backend == "torchcodec":
            frames = torchcodec_pictures.read_pictures(media.video, index, times)
        if frames is None:
            frames = pyav.read_pictures(container, media.video, index, times, key)
    return frames, None, audio, audio_missing


def _sound(
    sound: bytes | None, key: str, policy: DecodePolicy, sample_rate: int
) -> tuple[Wave, str | None]:
    """A sound file of its own. Damage masks it: what else the clip has can be used."""
    nothing = np.zeros(0, np.float32)
    if sound is None:
        return nothing, "no audio track"
    if not sound:
        return nothing, "zero-length audio"
    try:
        with opened(sound, key) as container:
            found = scan(
                container,
                key,
                sample_rate=sample_rate,
                max_seconds=policy.max_seconds,
                picture=False,
            )
    except BadClipError:
        return nothing, "undecodable audio"
    return found.audio, found.audio_missing
