"""JSON Lines with a schema: one object a line, checked by pydantic, bad lines named by number."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from lsb.files import write_bytes

ClipId = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""A clip's id in the 32 hexadecimal digits of `lsb.ids.to_hex`."""


class Line(BaseModel):
    """What every line of ours is: strict kinds, no field that nobody knows, never changed."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


Kind = TypeVar("Kind", bound=Line)


def read_lines(path: Path, kind: type[Kind]) -> list[Kind]:
    """Every line of a file.

    Raises:
        ValueError: the file cannot be read, or a line is not of this kind; names file, line number,
            what is wrong and how many lines are.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(
            f"{path} cannot be read ({error.strerror}): give a file in JSON Lines"
        ) from error
    # Not `splitlines`, which also cuts at characters that JSON text may hold.
    pieces = content.removesuffix(b"\n").split(b"\n") if content else []
    lines: list[Kind] = []
    bad: list[str] = []
    for number, piece in enumerate(pieces, start=1):
        try:
            lines.append(kind.model_validate_json(piece))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(map(str, first["loc"]))
            told = f"{place}: {first['msg']}" if place else first["msg"]
            bad.append(f"{path}, line {number}: {told}")
    if bad:
        raise ValueError(
            f"{bad[0]} ({len(bad)} of {len(pieces)} lines are bad): mend them and run it again; "
            "nothing of the file was taken"
        )
    return lines


def write_lines(path: Path, lines: Iterable[Line]) -> None:
    """Write a file whole or not at all; fields in the order of the class."""
    text = "".join(f"{line.model_dump_json()}\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, text.encode("utf-8"))
