"""Pictures of a clip that is images: `jpg` or `png` members in place of a video."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps

from vlmae.data.decode.clip import BadClipError, Frames
from vlmae.data.decode.container import LARGEST_PICTURE
from vlmae.data.decode.policy import DecodePolicy

SIDEWAYS = {5, 6, 7, 8}  # EXIF orientations that swap width and height
ORIENTATION = 0x0112


def read_images(images: Sequence[bytes], policy: DecodePolicy, *, key: str, seed: int) -> Frames:
    """The chosen images; they count as the frames of the clip, each a keyframe.

    Args:
        images: whole files, in order; at least one.
        policy: how many, and which.
        key: for messages.
        seed: of `segment_random`.

    Returns:
        (policy.frames, H, W, 3) uint8 RGB, upright.

    Raises:
        BadClipError: any image has another size than the first, is too large or is damaged. Of
            those that are not chosen only the header is read.
    """
    sizes = {_size(image, key) for image in images}
    if len(sizes) > 1:
        named = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
        raise BadClipError(key, "images of several sizes", named)
    chosen = policy.choose([True] * len(images), key=key, seed=seed)
    pictures = {number: _picture(images[number], key) for number in set(chosen)}
    return np.stack([pictures[number] for number in chosen])


def _size(content: bytes, key: str) -> tuple[int, int]:
    with _opened(content, key) as image:
        width, height = image.size
        if width * height > LARGEST_PICTURE:
            raise BadClipError(key, "picture too large", f"{width} x {height}")
        sideways = image.getexif().get(ORIENTATION) in SIDEWAYS
        return (height, width) if sideways else (width, height)


def _picture(content: bytes, key: str) -> Frames:
    with _opened(content, key) as image:
        upright: Image.Image = ImageOps.exif_transpose(image)
        return np.array(upright.convert("RGB"), np.uint8)


@contextmanager
def _opened(content: bytes, key: str) -> Iterator[Image.Image]:
    """An image, closed at the end; whatever its decoder raises on bad bytes is a bad clip."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(content)) as image:
            # `LARGEST_PICTURE` is checked before any pixel is read; odd EXIF is no news to users.
            warnings.simplefilter("ignore")
            yield image
    except BadClipError:
        raise
    # Pillow's plugins raise what they like on damage: OSError, SyntaxError, struct.error and more.
    except Exception as error:
        raise BadClipError(key, "undecodable image", f"{type(error).__name__}: {error}") from None
