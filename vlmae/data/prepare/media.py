"""Which files make up a clip: their endings, and which of them are the picture and the sound.

The endings, and what counts where there are several, are those of `vlmae.data.decode`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from vlmae.data.decode import IMAGE_ENDINGS, SOUND_ENDINGS, VIDEO_ENDINGS

TITLES = ("json", "txt")
_IMAGE = rf"(?:\d+\.)?(?:{'|'.join(sorted(IMAGE_ENDINGS))})"
_FILE = re.compile(rf"(.+?)\.({_IMAGE})", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class ClipMembers:
    """Endings of a clip's members by their part in it.

    Attributes:
        video: the video file, or None.
        images: pictures in the order of their numbers; empty where there is a video, beside which a
            picture is taken for its thumbnail.
        sound: a sound file, or None; beside a video it replaces the video's own track.
        titles: the members that may have the title.
        rivals: two members of which a clip can have only one, or None.
    """

    video: str | None
    images: tuple[str, ...]
    sound: str | None
    titles: tuple[str, ...]
    rivals: tuple[str, str] | None

    @property
    def media(self) -> tuple[str, ...]:
        """Endings of all members but the titles."""
        video = (self.video,) if self.video else self.images
        return (*video, self.sound) if self.sound else video

    @property
    def kind(self) -> str:
        """What the index calls the media: the video's ending, "images" or "audio"."""
        return self.video or ("images" if self.images else "audio")


def clip_members(endings: Iterable[str]) -> ClipMembers | None:
    """Sort a sample's endings, lower case; None where there are no media among them."""
    names = sorted(endings, key=_natural)
    videos = [name for name in names if name in VIDEO_ENDINGS]
    sounds = [name for name in names if name in SOUND_ENDINGS]
    images = [] if videos else [name for name in names if re.fullmatch(_IMAGE, name)]
    if not (videos or images or sounds):
        return None
    rivals = next(((found[0], found[1]) for found in (videos, sounds) if len(found) > 1), None)
    return ClipMembers(
        video=videos[0] if videos else None,
        images=tuple(images),
        sound=sounds[0] if sounds else None,
        titles=tuple(name for name in TITLES if name in names),
        rivals=rivals,
    )


def _natural(ending: str) -> tuple[int, str]:
    number = ending.split(".", 1)[0]
    return (int(number) if number.isdecimal() else -1, ending)


def split_file_name(name: str) -> tuple[str, str] | None:
    """Stem and ending of a file that can be part of a clip; None for any other.

    Unlike in a tar, a stem may hold dots: the ending starts at the last one, or before the number
    of a picture (`x.001.jpg`).
    """
    match = _FILE.fullmatch(name)
    stem, ending = match.groups() if match else (name.rpartition(".")[0], name.rpartition(".")[2])
    ending = ending.lower()
    known = match or ending in VIDEO_ENDINGS | SOUND_ENDINGS or ending in TITLES
    return (stem, ending) if known and stem else None
