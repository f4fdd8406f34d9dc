"""What a unit of a comparison leaves when it is finished: `units/<name>/unit.json`.

It tells what the unit was made of, and is believed only by who asks for that.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lsb.artifact import read_json

UNIT_FILE = "unit.json"


def read_unit(place: Path, made_of: str) -> dict[str, Any] | None:
    """The result in a unit's folder; None where there is none, or it is of another configuration.

    Args:
        place: folder of the unit.
        made_of: hash of what determines its result.
    """
    file = place / UNIT_FILE
    if not file.is_file():
        return None
    held: dict[str, Any] = read_json(file)
    return held if held.get("made_of") == made_of else None
