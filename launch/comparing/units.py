"""Units of a comparison: one arm under one protocol with one seed, each in one process.

Side by side they are processes of the command, or tasks (`launch.comparing.unit_tasks`).

runs/<name>/run.json                          every stage that the comparison rests on
runs/<name>/units/<protocol>.<arm>.<seed>/    ledger.sqlite (or ledger.location, which says where
                                              it is), and unit.json once the unit is finished
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launch.jobs.unit_result import UNIT_FILE, read_unit
from launch.rounds.found import answers_by_round, found_in_round, scored_pool
from launch.rounds.growth import GrowthRound, grow
from launch.stages.ledgers import ArmLedger, LedgerConfig
from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from launch.stages.shared import Shared
from launch.stages.shortlist import embed_scored
from lsb.artifact import fingerprint, waiting_for_others, write_json
from lsb.ids import from_hex
from lsb.store import Store
from lsb.waiting import waited_for
from lsb.workers import worker_pool
from vlmae.config import compose_config

LOCK = ".unit.lock"
UNITS = "units"
PROTOCOLS = ("labels", "scoring")
"""Equal labels; equal labels and an equal scoring budget (docs/methods.md)."""


@dataclass(frozen=True)
class Unit:
    """One run of a comparison.

    Attributes:
        protocol: one of `PROTOCOLS`.
        arm: a preset of conf/arm.
        seed: of the first labels, of training, and of chance.
    """

    protocol: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its folder."""
        return f"{self.protocol}.{self.arm}.{self.seed}"

    def overrides(self, scoring_share: float) -> list[str]:
        """What it changes in the composed config."""
        share = scoring_share if self.protocol == "scoring" else 1.0
        return [f"arm={self.arm}", f"seed={self.seed}", f"shortlist.share={share}"]


def unit_settings(unit: Unit, overrides: Sequence[str], scoring_share: float) -> Settings:
    """Settings of one unit.

    Args:
        unit: of the comparison.
        overrides: of the command line, without arm and seed.
        scoring_share: share of the pool that protocol "scoring" scores a round.
    """
    return Settings.from_config(
        compose_config("round", [*overrides, *unit.overrides(scoring_share)])
    )


def unit_ledger(ledgers: LedgerConfig, run: Path, unit: Unit) -> ArmLedger:
    """Where a unit's labels are.

    Args:
        ledgers: of the comparison.
        run: folder of the comparison.
        unit: of it.
    """
    return ledgers.of_arm(run, unit.arm, unit.name, run / UNITS / unit.name)


@dataclass(frozen=True)
class Comparison:
    """What all units of a comparison share. Picklable.

    Attributes:
        folder: of the comparison.
        identity: of its run.json.
        overrides: of the command line, without arm and seed.
        scoring_share: see `unit_settings`.
        confidence: see `launch.rounds.found.found_in_round`; one for all arms, whichever their own
            seeds have.
        shared: data and tokens.
    """

    folder: Path
    identity: Mapping[str, Any]
    overrides: Sequence[str]
    scoring_share: float
    confidence: float
    shared: Shared

    @property
    def units(self) -> Path:
        """Folder of the units' folders."""
        return self.folder / UNITS

    def place(self, unit: Unit) -> Path:
        """Folder of a unit."""
        return self.units / unit.name

    def made_of(self, unit: Unit) -> str:
        """Hash of what determines a unit's result beside the data."""
        return self._made_of(self._settings(unit))

    def finished(self, unit: Unit, made_of: str) -> dict[str, Any] | None:
        """The result of a unit that is finished; None for one that is not."""
        return read_unit(self.place(unit), made_of)

    def run(self, unit: Unit) -> dict[str, Any]:
        """The result of a unit, read where it is finished; see `result_of`."""
        settings = self._settings(unit)
        place, made_of = self.place(unit), self._made_of(settings)
        held = self.finished(unit, made_of)
        if held is not None:
            return held
        place.mkdir(parents=True, exist_ok=True)
        # A task may come to a unit that another one has not left yet.
        with waited_for(place / LOCK, f"unit {unit.name}"):
            held = self.finished(unit, made_of)
            if held is None:
                held = self._run(unit, settings, made_of)
                write_json(place / UNIT_FILE, held)
        return held

    def _made_of(self, settings: Settings) -> str:
        made_of = [settings.identity, settings.rounds, self.confidence]
        return fingerprint([*made_of, self.shared.labels] if self.shared.labels else made_of)

    def _settings(self, unit: Unit) -> Settings:
        return unit_settings(unit, self.overrides, self.scoring_share)

    def _run(self, unit: Unit, settings: Settings, made_of: str) -> dict[str, Any]:
        ledger = unit_ledger(settings.ledgers, self.folder, unit)
        run_folder = RunFolder(self.folder, self.identity)
        with waiting_for_others():  # arms share the first model of a seed, and more
            grown = (settings, self.shared, run_folder, _silent, ledger)
            rounds = grow(*grown, measure_all=False)  # the table tells of the last models
            found = self._found(settings, ledger, rounds)
        told = [{**result_of(one), "found": what} for one, what in zip(rounds, found, strict=True)]
        return {"made_of": made_of, **asdict(unit), "rounds": told}

    def _found(
        self, settings: Settings, place: ArmLedger, rounds: Sequence[GrowthRound]
    ) -> list[dict[str, dict[str, int | None]]]:
        """Round -> task -> what asking found.

        Arms that score nothing are measured alike: their models score what was asked, afterwards.
        That spends no scoring budget, since nothing is chosen by it.
        """
        found = []
        with place.open(create=False) as ledger:
            for number, answers in enumerate(answers_by_round(ledger, len(rounds))):
                before = rounds[number - 1] if number else None
                pool = None
                if before is not None:
                    pool = scored_pool(before)
                    if pool is None:
                        asked = from_hex(sorted({clip for clip, _ in answers}))
                        model = before.stages["train"][0]
                        stage = embed_scored(settings, self.shared, model, "pool", asked)
                        pool = Store.open(stage.path)
                found.append(found_in_round(answers, before, pool, settings.tasks, self.confidence))
        return found


def result_of(entry: GrowthRound) -> dict[str, Any]:
    """What is kept of a round: numbers, its model, and of the last round the stage with the
    predictions of the measured clips."""
    return {
        "round": entry.round,
        "labels": entry.labels,
        "positives": entry.positives,
        "counts": entry.counts,
        "threshold": entry.threshold,
        "task_thresholds": [asdict(one) for one in entry.task_thresholds],
        "trained": entry.stages["train"][-1].path.name,
        "evaluated": entry.evaluated,
        "seconds": entry.seconds,
    }


def run_units(
    comparison: Comparison, units: Sequence[Unit], processes: int
) -> Iterator[tuple[Unit, dict[str, Any]]]:
    """Units with their results, as they finish; each process runs one after the other.

    Args:
        comparison: what they share.
        units: in the order in which they start.
        processes: units at a time; changes no result.
    """
    if processes == 1:
        for unit in units:
            yield unit, comparison.run(unit)
        return
    with worker_pool(processes, _begin, comparison) as pool:
        waiting = {pool.submit(_run, unit): unit for unit in units}
        try:
            for done in as_completed(waiting):
                yield waiting[done], done.result()
        except BaseException:
            for future in waiting:
                future.cancel()
            raise


_COMPARISON: list[Comparison] = []  # of a worker process, set once: it holds the data's index


def _begin(comparison: Comparison) -> None:
    _COMPARISON.append(comparison)


def _run(unit: Unit) -> dict[str, Any]:
    return _COMPARISON[0].run(unit)


def _silent(line: str) -> None:
    """Units run side by side; the command says what is finished."""
