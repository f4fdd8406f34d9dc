"""What one check has found on one machine."""

from __future__ import annotations

from dataclasses import dataclass

HERE = "here"
"""Stands for the host of the command, beside names of nodes."""


@dataclass(frozen=True)
class Finding:
    """What one check has found on one machine.

    Attributes:
        check: its name, see `launch.doctor.page.CHECKS`.
        cause: what is wrong, in one line; empty where all is well.
        remedy: what to do about it, or to type.
        told: what was found where all is well, in a few words.
    """

    check: str
    cause: str = ""
    remedy: str = ""
    told: str = ""

    @property
    def fine(self) -> bool:
        """Whether nothing has to be mended."""
        return not self.cause


def one_line(error: BaseException) -> str:
    """An error in one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words}" if words else type(error).__name__
