"""Where the ledgers of a run are: one of each arm, in its folder or wherever the config says.

A ledger belongs to one arm of one run. An arm whose ledger is elsewhere keeps the location in its
folder (`lsb.ledger.LOCATION_FILE`), so that neither a forgotten `ledger.location` nor one that
another arm or run has taken can make it go on with other labels.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from lsb.artifact import write_bytes
from lsb.ledger import LOCATION_FILE, Ledger, kept_location, require_no_password

FILE = "ledger.sqlite"
PLACEHOLDERS = ("name", "arm", "unit")


@dataclass(frozen=True)
class LedgerConfig:
    """Of the group `ledger` what says where ledgers are; changes no result.

    Attributes:
        location: None for a file in the folder of each arm. Else a path or a URL without a
            password, in which {name} stands for the run, {arm} for the arm, and {unit} for all that
            tells ledgers of a run apart: the arm, in launch.compare <protocol>.<arm>.<seed>.
    """

    location: str | None = None

    def __post_init__(self) -> None:
        if self.location is None:
            return
        require_no_password("ledger.location", self.location)
        unknown = sorted(set(re.findall(r"\{([^{}]*)\}", self.location)) - set(PLACEHOLDERS))
        if unknown:
            known = ", ".join(f"{{{name}}}" for name in PLACEHOLDERS)
            raise ValueError(
                f"ledger.location has {{{unknown[0]}}} in {self.location}: use {known}, or none"
            )

    def require_arms(self, arms: Iterable[str]) -> None:
        """Refuse one ledger for several arms.

        Raises:
            ValueError: names the arms and the remedy.
        """
        several = list(dict.fromkeys(arms))
        if len(several) > 1 and not self._tells("arm", "unit"):
            raise ValueError(
                f"ledger.location is {self.location}, one ledger for the arms "
                f"{', '.join(several)}: a ledger belongs to one arm of one run; put {{arm}} into "
                "it, as the name of a database or behind options=-csearch_path%3D"
            )

    def require_units(self) -> None:
        """Refuse one ledger for several units of a comparison.

        Raises:
            ValueError: names the remedy.
        """
        if not self._tells("unit"):
            raise ValueError(
                f"ledger.location is {self.location}, and a comparison has a ledger for each "
                "protocol, arm and seed: put {unit} into it, as the name of a database or behind "
                "options=-csearch_path%3D"
            )

    def of_arm(
        self, run: Path, arm: str, unit: str | None = None, folder: Path | None = None
    ) -> ArmLedger:
        """The ledger of an arm.

        Args:
            run: folder of the run.
            arm: its name.
            unit: of a comparison, see `location`; None for a run's arm.
            folder: of the unit; None for the arm's in `run`.
        """
        given = self.location
        if given is not None:
            for name, value in zip(PLACEHOLDERS, (run.name, arm, unit or arm), strict=True):
                given = given.replace(f"{{{name}}}", value)
            if "://" not in given:
                given = str(Path(given).resolve())
        return ArmLedger(folder or run / arm, arm, given)

    def _tells(self, *names: str) -> bool:
        return self.location is None or any(f"{{{name}}}" in self.location for name in names)


@dataclass(frozen=True)
class ArmLedger:
    """The ledger of one arm of a run, or of a unit of a comparison. Picklable.

    Attributes:
        folder: of the arm.
        arm: its name.
        given: path or URL of the ledger where it is elsewhere; None for a file in `folder`.
    """

    folder: Path
    arm: str
    given: str | None = None

    @property
    def location(self) -> str:
        """Path or URL, as commands of `lsb` take it."""
        return self.given or str(self.folder / FILE)

    @property
    def exists(self) -> bool:
        """Whether the arm has begun to write it.

        Raises:
            ValueError: the arm has written another one.
        """
        return self._kept() is not None or (self.folder / FILE).is_file()

    def open(self, *, create: bool = True, migrate: bool | None = None) -> Ledger:
        """Open it; see `Ledger.open`.

        Raises:
            ValueError: it cannot be opened, the arm has written another one, or another arm or run
                has written this one; says what to do.
        """
        kept = self._kept()
        if self.given is None:
            return Ledger.open(self.location, create=create, migrate=migrate)
        if kept is None and not create:
            raise ValueError(f"{self.folder} has no ledger yet: run launch.round first")
        ledger = Ledger.open(self.given, create=create, migrate=migrate)
        try:
            self._require_own(ledger, kept)
            if kept is None:
                self.folder.mkdir(parents=True, exist_ok=True)
                write_bytes(self.folder / LOCATION_FILE, f"{self.given}\n".encode())
        except BaseException:
            ledger.close()
            raise
        return ledger

    def claim(self) -> None:
        """Open one that is elsewhere and close it, before work is done whose labels it will hold.

        Raises:
            ValueError: see `open`.
        """
        if self.given is None:
            self._kept()
        else:
            self.open().close()

    def _kept(self) -> str | None:
        """Where the arm's folder says that its ledger is, which is `given`."""
        kept, note = kept_location(self.folder), self.folder / LOCATION_FILE
        held = kept
        if kept is None and self.given is not None and (self.folder / FILE).is_file():
            held = str(self.folder / FILE)
        if held is not None and held != self.given:
            moved = f"delete {note}" if self.given is None else f"write the new one into {note}"
            raise ValueError(
                f"ledger.location is {self.given or 'null'}, but arm {self.arm} keeps its ledger "
                f"at {held}: give the location of before; or, where the ledger was moved, "
                f"{moved}"
            )
        return kept

    def _require_own(self, ledger: Ledger, kept: str | None) -> None:
        """Refuse a ledger that another arm or run has written.

        The first labels carry no arm's name, so an arm that has kept nothing takes only a ledger
        without rounds.
        """
        rounds = ledger.rounds()
        others = sorted({held.arm for held in rounds if held.round} - {self.arm})
        if others:
            whose, own = f"arm {others[0]}", ""
        elif kept is None and rounds:
            whose, note = "another run", self.folder / LOCATION_FILE
            own = f"; or, if it is this run's, write the line {self.given} into {note}"
        else:
            return
        raise ValueError(
            f"the ledger {ledger.name} holds rounds of {whose}, and a ledger belongs to one arm of "
            f"one run: give another ledger.location, e.g. with {{name}} and {{arm}} in it{own}"
        )
