"""Units of a comparison: one arm under one protocol with one seed, each in one process.

runs/<name>/run.json                          every stage that the comparison rests on
runs/<name>/units/<protocol>.<arm>.<seed>/    ledger.sqlite, and unit.json once it is finished
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

from launch.found import answers_of, found_in_round, scored_pool
from launch.growth import GrowthRound, grow
from launch.run_folder import RunFolder
from launch.settings import Settings
from launch.shared import Shared
from launch.shortlist import embed_scored
from lsb.artifact import fingerprint, read_json, waiting_for_others, write_json
from lsb.ids import from_hex
from lsb.ledger import Ledger
from lsb.store import Store
from vlmae.config import compose_config

UNIT_FILE = "unit.json"
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


@dataclass(frozen=True)
class Comparison:
    """What all units of a comparison share. Picklable.

    Attributes:
        folder: of the comparison.
        identity: of its run.json.
        overrides: of the command line, without arm and seed.
        scoring_share: see `unit_settings`.
        shared: data and tokens.
    """

    folder: Path
    identity: Mapping[str, Any]
    overrides: Sequence[str]
    scoring_share: float
    shared: Shared

    def run(self, unit: Unit) -> dict[str, Any]:
        """The result of a unit, read where it is finished; see `result_of`."""
        settings = unit_settings(unit, self.overrides, self.scoring_share)
        place = self.folder / "units" / unit.name
        made_of = fingerprint([settings.identity, settings.rounds])
        file = place / UNIT_FILE
        if file.is_file():
            held: dict[str, Any] = read_json(file)
            if held["made_of"] == made_of:
                return held
        run_folder = RunFolder(self.folder, self.identity)
        with waiting_for_others():  # arms share the first model of a seed, and more
            rounds = grow(settings, self.shared, run_folder, _silent, place)
            found = self._found(settings, place, rounds)
        told = [{**result_of(one), "found": what} for one, what in zip(rounds, found, strict=True)]
        result = {"made_of": made_of, **asdict(unit), "rounds": told}
        write_json(file, result)
        return result

    def _found(
        self, settings: Settings, place: Path, rounds: Sequence[GrowthRound]
    ) -> list[dict[str, dict[str, int | None]]]:
        """Round -> task -> what asking found.

        Arms that score nothing are measured alike: their models score what was asked, afterwards.
        That spends no scoring budget, since nothing is chosen by it.
        """
        confidence = settings.expand.broadening.confidence
        found = []
        with Ledger.open(place / "ledger.sqlite", create=False) as ledger:
            for number in range(len(rounds)):
                answers = answers_of(ledger, number)
                before = rounds[number - 1] if number else None
                pool = None
                if before is not None:
                    pool = scored_pool(before)
                    if pool is None:
                        asked = from_hex(sorted({clip for clip, _ in answers}))
                        model = before.stages["train"][0]
                        stage = embed_scored(settings, self.shared, model, "pool", asked)
                        pool = Store.open(stage.path)
                found.append(
                    {
                        task: found_in_round(answers, before, pool, task, confidence)
                        for task in settings.tasks
                    }
                )
        return found


def result_of(entry: GrowthRound) -> dict[str, Any]:
    """What is kept of a round: numbers, and the stage with the predictions of measured clips."""
    return {
        "round": entry.round,
        "labels": entry.labels,
        "positives": entry.positives,
        "counts": entry.counts,
        "threshold": entry.threshold,
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
    with ProcessPoolExecutor(
        processes, mp_context=get_context("spawn"), initializer=_begin, initargs=(comparison,)
    ) as pool:
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
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A worker whose command was killed would go on with its unit, unseen, beside the next try."""
    command = parent_process()
    if command is not None:
        command.join()
        os._exit(1)


def _run(unit: Unit) -> dict[str, Any]:
    return _COMPARISON[0].run(unit)


def _silent(line: str) -> None:
    """Units run side by side; the command says what is finished."""
