"""When a training grows, by how much, and from which clips."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from lsb.expand import ExpandConfig
from lsb.expansion_files import identity_of
from lsb.files import fingerprint
from lsb.ids import IdArray, to_hex
from lsb.ledger import require_no_password
from lsb.search.faiss_config import FaissConfig
from lsb.shortlist.config import EVERY, ShortlistConfig
from vlmae.growing.labels import LabelSource

ORACLE, LEDGER = "oracle", "ledger"
SOURCES = (ORACLE, LEDGER)


@dataclass(frozen=True)
class GrowingConfig:
    """Fields are the keys of the config group `growing`.

    Attributes:
        every_epochs: epochs between two expansions; 0 never grows.
        rounds: how many expansions at most.
        budget: clips asked for in each.
        split: which clips may be asked for.
        labels: "oracle" asks the simulated annotator; "ledger" takes what people have answered.
        ledger: path or URL, without a password, in which rounds, candidates and labels are
            recorded; None for the oracle records none.
        truth: table of the oracle's answers, parquet or CSV with `key` and `label_<task>`; None
            where the command knows them.
        exclude: table with `key` of clips that are never asked for, e.g. those of a test; None
            where the split has none.
    """

    every_epochs: int = 0
    rounds: int = 1
    budget: int = 200
    split: str = "pool"
    labels: str = ORACLE
    ledger: str | None = None
    truth: str | None = None
    exclude: str | None = None

    def __post_init__(self) -> None:
        if self.every_epochs < 0 or self.rounds < 1 or self.budget < 1:
            raise ValueError(
                f"growing has every_epochs {self.every_epochs}, rounds {self.rounds}, budget "
                f"{self.budget}: give at least 0, 1 and 1"
            )
        if self.labels not in SOURCES:
            raise ValueError(f"growing.labels is {self.labels!r}: use {' or '.join(SOURCES)}")
        if self.ledger:
            require_no_password("growing.ledger", self.ledger)
        if self.on and self.labels == LEDGER and not self.ledger:
            raise ValueError(
                "growing.labels is ledger and growing.ledger is not set: give the path or URL of "
                "the ledger that people answer into"
            )

    @property
    def on(self) -> bool:
        """Whether a training grows."""
        return self.every_epochs > 0

    def epochs(self, total: int) -> tuple[int, ...]:
        """The epochs before which a training of `total` epochs grows.

        Raises:
            ValueError: there is none.
        """
        if not self.on:
            return ()
        found = tuple(range(self.every_epochs, total, self.every_epochs))[: self.rounds]
        if not found:
            raise ValueError(
                f"growing.every_epochs is {self.every_epochs} and trainer.epochs {total}: no epoch "
                "would follow an expansion; train longer, expand earlier, or use growing=none"
            )
        return found


@dataclass(frozen=True)
class Growing:
    """All that a training needs to grow.

    Attributes:
        config: when, how much, from where.
        expand: acquisition, broadening, LT, search, selection; the budget is that of `config`.
        labels: who answers; only the first rank asks.
        arm: name of the preset, for the ledger.
        exclude: ids of clips that are never asked for.
    """

    config: GrowingConfig
    expand: ExpandConfig
    labels: LabelSource
    arm: str = "custom"
    exclude: IdArray = field(default_factory=lambda: np.empty(0, "S16"))

    def __post_init__(self) -> None:
        if isinstance(self.expand.search, FaissConfig):
            raise ValueError(
                "growing searches exactly over all ranks and search=faiss needs an index of the "
                "pool, which a training does not build: use search=exact"
            )
        for name, lacks in (
            ("carry_labels", "would label no copy; drop copies with selection.near_duplicate"),
            ("media_hashes", "has no hashes of media; use selection.near_duplicate"),
        ):
            if getattr(self.expand.selection, name):
                raise ValueError(
                    f"selection.{name} is true, and a training that grows {lacks} and set "
                    f"selection.{name}=false, or grow between rounds (growing=none)"
                )
        selection = replace(self.expand.selection, budget=self.config.budget)
        object.__setattr__(self, "expand", replace(self.expand, selection=selection))

    def hashed(self) -> dict[str, Any]:
        """What changes results."""
        kept = ("every_epochs", "rounds", "split", "labels")
        values = asdict(self.config)
        return {
            **{name: values[name] for name in kept},
            "expand": identity_of(self.expand),
            "answers": self.labels.identity,
            "exclude": fingerprint(to_hex(self.exclude)),
        }


def require_whole_pool(shortlist: ShortlistConfig) -> None:
    """Refuse a shortlist, which a training that grows would not make under the arm's name.

    Args:
        shortlist: of the arm. What it would do within a scoring budget matters to nobody while
            everything may be scored.

    Raises:
        ValueError: it scores less than the whole pool; names the key and the remedy.
    """
    if shortlist.method == EVERY:
        return
    told, remedy = f"name is {shortlist.name!r}", "name=all"
    if shortlist.share < 1:
        told, remedy = f"share is {shortlist.share}", "share=1"
    raise ValueError(
        f"shortlist.{told}, and a training that grows scores its whole pool: take an arm that "
        f"does so too (arm=lsb_lt, arm=entropy), set shortlist.{remedy}, or grow between rounds of "
        "launch.round (growing=none rounds=<n>)"
    )
