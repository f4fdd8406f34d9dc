"""Labels that a clip has because it is a copy: the labeller is "carried from <id>"."""

from __future__ import annotations

PREFIX = "carried from "


def carried_labeller(representative_id: bytes) -> str:
    """Labeller of a label that came from the clip with this id."""
    return PREFIX + representative_id.hex()


def representative_of(labeller: str) -> str | None:
    """Id in hexadecimal digits of the clip that a label was carried from, None for its own."""
    return labeller.removeprefix(PREFIX) if labeller.startswith(PREFIX) else None
