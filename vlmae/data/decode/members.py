"""The members of a clip, sorted by what they are: picture, sound and title."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from vlmae.data.decode.clip import BadClipError

# fmt: off
VIDEO_ENDINGS = frozenset({
    "mp4", "m4v", "mov", "mkv", "webm", "avi", "ts", "mts", "m2ts", "mpg", "mpeg", "flv", "wmv",
    "asf", "3gp", "ogv", "mxf", "gif",
})
SOUND_ENDINGS = frozenset({
    "wav", "flac", "ogg", "oga", "opus", "mp3", "m4a", "aac", "ac3", "wma", "amr", "aiff", "aif",
    "caf",
})
IMAGE_ENDINGS = frozenset({"jpg", "jpeg", "png", "webp", "bmp"})
# fmt: on


@dataclass(frozen=True)
class Media:
    """The media of a clip: a video file or images, with or without a sound file.

    Attributes:
        video: a whole file, or None.
        images: whole files in the order of their numbers (`2.jpg` before `10.jpg`); empty if there
            is a video, beside which an image is taken for its thumbnail.
        sound: a whole file, or None; beside a video it replaces the video's own track.
    """

    video: bytes | None
    images: tuple[bytes, ...]
    sound: bytes | None


def find_media(members: Mapping[str, bytes], key: str) -> Media:
    """Sort the members of a clip by their endings; unknown endings are left alone.

    Raises:
        BadClipError: no media at all, or more than one video or sound file.
    """
    kinds: dict[str, list[str]] = {"video": [], "image": [], "sound": []}
    for name in sorted(members, key=_natural):
        ending = name.rsplit(".", 1)[-1].lower()
        for kind, endings in (
            ("video", VIDEO_ENDINGS),
            ("image", IMAGE_ENDINGS),
            ("sound", SOUND_ENDINGS),
        ):
            if ending in endings:
                kinds[kind].append(name)
    if not any(kinds.values()):
        raise BadClipError(key, "no media member", f"it has {', '.join(sorted(members)) or 'none'}")
    for kind in ("video", "sound"):
        if len(kinds[kind]) > 1:
            raise BadClipError(key, f"several {kind} members", ", ".join(kinds[kind]))
    video = members[kinds["video"][0]] if kinds["video"] else None
    images = () if kinds["video"] else tuple(members[name] for name in kinds["image"])
    return Media(video, images, members[kinds["sound"][0]] if kinds["sound"] else None)


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sorts by the numbers in a name, then by its letters."""
    parts = re.findall(r"[0-9]+|[^0-9]+", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts]


def read_title(members: Mapping[str, bytes], key: str) -> str:
    """The clip's title: field `title` of member `json`, else member `txt`, else "".

    Text is UTF-8; what is not is read as UTF-16 if it says so and as Windows-1252 if not, because a
    title in an old encoding is no reason to lose a clip. Surrogates without a partner, which no
    tokenizer and no parquet file takes, become U+FFFD.

    Raises:
        BadClipError: `json` is no JSON object, or its title is no text: the member is damaged, and
            nothing says that the media belong to it.
    """
    if "json" not in members:
        return _clean(_text(members.get("txt", b"")).strip())
    try:
        fields = json.loads(_text(members["json"]))
    except (ValueError, RecursionError) as error:
        raise BadClipError(key, "undecodable title", str(error)[:200]) from None
    if not isinstance(fields, dict):
        raise BadClipError(key, "undecodable title", f"json holds a {type(fields).__name__}")
    title = fields.get("title")
    if title is None:
        return _clean(_text(members.get("txt", b"")).strip())
    if not isinstance(title, str):
        raise BadClipError(key, "undecodable title", f"title is a {type(title).__name__}")
    return _clean(title)


def _text(content: bytes) -> str:
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", errors="replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("cp1252", errors="replace")


def _clean(text: str) -> str:
    return text.encode("utf-16-le", errors="surrogatepass").decode("utf-16-le", errors="replace")
