"""Clips as people get them to judge: an mp4, a contact sheet and two pictures of the sound.

Sound may be anonymised before it leaves, and every picture of it is made of what is left
(docs/annotation.md). `lsb.annotate` asks the questions; this package makes what they show.
"""

from vlmae.handoff.anonymise import AnonymiseConfig, Anonymised, anonymise
from vlmae.handoff.stage import MediaConfig, hand_off_media, media_files, read_rendered

__all__ = [
    "AnonymiseConfig",
    "Anonymised",
    "MediaConfig",
    "anonymise",
    "hand_off_media",
    "media_files",
    "read_rendered",
]
