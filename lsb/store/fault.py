"""What is wrong with a store, where, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One fault of a store.

    Attributes:
        file: path or URL.
        found: what is wrong, with the value.
        remedy: what to do.
        row: of the file, where it is one row's fault.
        key: of the clip in that row, where it is known.
    """

    file: str
    found: str
    remedy: str
    row: int | None = None
    key: str | None = None

    def __str__(self) -> str:
        place = self.file if self.row is None else f"{self.file}: row {self.row}"
        clip = "" if self.key is None else f", clip {self.key!r}"
        return f"{place} {self.found}{clip}: {self.remedy}"
