"""The decode seam: members of a clip in, frames, sound and title out (docs/decode.md).

    clip = decode_sample(members, key=key, policy=DecodePolicy(frames=8), sample_rate=16_000)

A clip that cannot be used is a `BadClipError` with a reason to count; a clip without sound, or
without a picture, is decoded and says what is missing (design, contract 12).
"""

from vlmae.data.decode.clip import BadClipError, Clip
from vlmae.data.decode.members import IMAGE_ENDINGS, SOUND_ENDINGS, VIDEO_ENDINGS
from vlmae.data.decode.policy import DecodePolicy
from vlmae.data.decode.sample import decode_sample
from vlmae.data.decode.sound import MINIMUM_AUDIO_SECONDS
from vlmae.data.decode.torchcodec_pictures import why_torchcodec_fails

__all__ = [
    "IMAGE_ENDINGS",
    "MINIMUM_AUDIO_SECONDS",
    "SOUND_ENDINGS",
    "VIDEO_ENDINGS",
    "BadClipError",
    "Clip",
    "DecodePolicy",
    "decode_sample",
    "why_torchcodec_fails",
]
