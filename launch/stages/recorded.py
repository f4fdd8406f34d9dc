"""Rounds that a ledger holds, in a run that goes on after a takedown.

A ledger is history: what was asked and answered stays, and was paid for. After a takedown the
models of earlier rounds may be trained anew, on fewer labels, and would ask for other clips; so
rounds that are recorded are taken from the ledger, and only those to come are chosen by new models.
Without tombstones nothing here has an effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from launch.stages.expansion import identity_of
from lsb.artifact import Stage, fingerprint, open_stage
from lsb.expand import ExpandConfig
from lsb.ledger import Ledger, Round
from vlmae.data.tombstones import read_tombstones, without_tombstones


def recorded_round(root: Path, ledger: Ledger, number: int) -> Round | None:
    """A round that must stay as it is recorded; None if it is still to be made.

    Args:
        root: folder of all stages.
        ledger: of the arm.
        number: of the round.
    """
    if not read_tombstones(root):
        return None
    return next((held for held in ledger.rounds() if held.round == number), None)


def record_without_tombstones(
    root: Path, ledger: Ledger, round: Round, candidates: pa.Table, annotations: pa.Table | None
) -> None:
    """Write a round without the clips that were taken down; one that is recorded stays.

    Args:
        root: folder of all stages.
        ledger: of the arm.
        round: of the candidates.
        candidates: see `Ledger.record_round`.
        annotations: see `Ledger.record_round`.
    """
    if recorded_round(root, ledger, round.round) is None:
        labels = None if annotations is None else without_tombstones(root, annotations)
        ledger.record_round(round, without_tombstones(root, candidates), labels)


def expansion_of(root: Path, held: Round, config: ExpandConfig) -> Stage | None:
    """The expansion that brought a recorded round, None if it was deleted."""
    wanted = {"round": held.round, "expand": fingerprint(identity_of(config))}
    for file in sorted(root.glob("expand-*/manifest.json")):
        stage = open_stage(file.parent, verify=False)
        found: Mapping[str, Any] = stage.manifest["config"]
        same = {"round": found["round"], "expand": fingerprint(found["expand"])} == wanted
        if same and stage.manifest["inputs"]["pool"] == held.store_hash:
            return stage
    return None
