"""What asking cost and what it brought, round by round, against the arm `random` at equal R@P."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console

from launch.rounds.account_report import account_table, draw_account, errors_table
from launch.rounds.arms import Arms
from launch.rounds.found import (
    Item,
    answers_by_round,
    found_in_round,
    operating_threshold,
    scored_pool,
)
from launch.rounds.growth import GrowthRound
from lsb import ids as sample_ids
from lsb.artifact import write_bytes, write_json
from lsb.error_account import ModelAnswers, error_change
from lsb.labelled import LABEL, PROBABILITY, UNLABELLED
from lsb.labels_saved import LabelsSaved, labels_saved
from lsb.ledger import HOURS, Ledger, Row
from vlmae.metrics import seed_means

FloatArray = npt.NDArray[np.float64]
RANDOM = "random"
COUNTED = {
    "labels": "clips that people or the oracle have labelled so far; those of the model are free "
    "and not counted",
    "asked": "clips asked in the round; answers: labels that came of it, one a task",
    "positives": "clips asked in the round whose label is 1",
    "confident errors found": "clips asked in the round whose label the model that chose them, not "
    "trained on them, had denied with at least the given confidence; scored: how many of them it "
    "had scored",
    "cost": "money and hours that the ledger's costs add up to; null where it has none",
    "test, gold": "confident errors of the last round's model on clips that no model is trained "
    "on: fixed (right now), unsure (wrong, not surely), kept, and new ones. Gold clips also choose "
    "the operating thresholds, test clips nothing",
    "saved": "labels that random sampling needs for the same recall at the target precision, less "
    "those of the arm; its curve is made monotone and is linear between rounds; interval over test "
    "clips, null for 'not reached'",
}


@dataclass(frozen=True)
class Prices:
    """What an answer (a clip in a task) is taken to cost, where a ledger has no costs.

    Attributes:
        price: money.
        seconds: of work.
    """

    price: float
    seconds: float

    def costs(self, answers: Sequence[int]) -> list[Row]:
        """Rows as `Ledger.costs` has them, for the answers of each round."""
        return [
            {"round": number, "entry": entry, "unit_price": price, "count": count}
            for number, count in enumerate(answers)
            for entry, price in (("", self.price), (HOURS, self.seconds / 3600))
        ]


def account(arms: Arms, assumed: Prices | None = None) -> dict[str, Any]:
    """The account of a finished run's main arm.

    Args:
        arms: what `run_arms` returned.
        assumed: prices for ledgers without costs; None leaves costs out there.

    Returns:
        What account.json holds: "experiment", "arm", "data", "evidence", "counted" (what is counted
        how), "confidence", "target_precision", "assumed" (prices, where they were used), "random"
        (the curve of that arm, or None), and "rounds".
    """
    settings = arms.settings
    rounds = arms.rounds[settings.arm]
    confidence = settings.expand.broadening.confidence
    with _ledger(arms, settings.arm) as ledger:
        answers = answers_by_round(ledger, len(rounds))
        recorded = ledger.costs()
        costs = cumulative_costs(recorded or _assumed(assumed, answers), len(rounds))
        chosen = Counter(row["round"] for row in ledger.candidacies())
    entries = []
    for number, (entry, given) in enumerate(zip(rounds, answers, strict=True)):
        before = rounds[number - 1] if number else None
        pool = None if before is None else scored_pool(before)
        entries.append(
            {
                "round": entry.round,
                "labels": entry.labels,
                "asked": chosen[number] if number else len({clip for clip, _ in given}),
                "answers": len(given),
                "found": found_in_round(given, before, pool, settings.tasks, confidence),
                **{
                    clips: _changes(clips, before, entry, settings.tasks, confidence)
                    for clips in ("test", "gold")
                },
                "recall": {task: entry.metrics[task]["recall_at_p80"] for task in settings.tasks},
                "cost": costs[number],
            }
        )
    curve = _random_curve(arms, assumed)
    for entry, told in zip(rounds, entries, strict=True):
        told["saved"] = _saved(arms, entry, costs[entry.round], curve)
    return {
        "experiment": settings.name,
        "arm": settings.arm,
        "data": settings.data.media,
        "evidence": "one seed; intervals are over test clips",
        "counted": COUNTED,
        "confidence": confidence,
        "target_precision": settings.evaluate.target_precision,
        "assumed": None if recorded or assumed is None else asdict(assumed),
        "random": curve,
        "rounds": entries,
    }


def cumulative_costs(costs: Sequence[Row], rounds: int) -> list[dict[str, float] | None]:
    """Money and hours of each round and of all rounds to it, from a ledger's costs.

    Args:
        costs: see `Ledger.costs`.
        rounds: how many there are, from round 0.

    Returns:
        "money", "hours", "all_money", "all_hours" for each round; all None where the ledger has no
        costs: nothing was recorded, which is not the same as free.
    """
    if not costs:
        return [None] * rounds
    spent = {kind: [0.0] * rounds for kind in ("money", HOURS)}
    for row in costs:
        kind = HOURS if row["entry"].endswith(HOURS) else "money"
        if row["round"] < rounds:
            spent[kind][row["round"]] += row["unit_price"] * row["count"]
    return [
        {kind: values[number] for kind, values in spent.items()}
        | {f"all_{kind}": sum(values[: number + 1]) for kind, values in spent.items()}
        for number in range(rounds)
    ]


def _assumed(prices: Prices | None, answers: Sequence[Mapping[Item, int]]) -> list[Row]:
    return [] if prices is None else prices.costs([len(given) for given in answers])


def _ledger(arms: Arms, arm: str) -> Ledger:
    return arms.settings.ledgers.of_arm(arms.folder.path, arm).open(create=False)


def _changes(
    clips: str,
    before: GrowthRound | None,
    entry: GrowthRound,
    tasks: Sequence[str],
    confidence: float,
) -> dict[str, dict[str, int]] | None:
    """Task -> what became of confident errors on test or gold clips since the round before."""
    if before is None:
        return None
    old, new = _common(_predictions(clips, before), _predictions(clips, entry))
    changes = {}
    for task in tasks:
        label_N = new[LABEL + task].fill_null(pa.scalar(UNLABELLED, pa.int8())).to_numpy()
        earlier, later = (
            ModelAnswers(
                table[PROBABILITY + task].to_numpy().astype(np.float64),
                operating_threshold(of, task),
            )
            for table, of in ((old, before), (new, entry))
        )
        changes[task] = error_change(label_N, earlier, later, confidence).as_dict()
    return changes


def _predictions(clips: str, entry: GrowthRound) -> pa.Table:
    """id, labels and probabilities of test or gold clips by a round's model."""
    stage, name = {"test": ("evaluate", "predictions"), "gold": ("train", "validation")}[clips]
    return pq.read_table(entry.stages[stage][0].path / f"{name}.parquet")


def _common(left: pa.Table, right: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The clips of both tables, by id."""
    ids = [sample_ids.from_arrow(table["id"]) for table in (left, right)]
    both = np.intersect1d(ids[0], ids[1])
    rows = [np.argsort(names)[np.searchsorted(np.sort(names), both)] for names in ids]
    return left.take(rows[0]), right.take(rows[1])


def recalls(arms: Arms, entry: GrowthRound, task: str) -> FloatArray:
    """(1 + R,) R@P of a round's model on the test clips and on resamples of them."""
    table = _predictions("test", entry)
    label = table[LABEL + task]
    table = table.filter(label.is_valid())
    table = table.take(np.argsort(sample_ids.from_arrow(table["id"]), kind="stable"))
    options = arms.settings.evaluate
    values = seed_means(
        "recall_at_precision",
        table[PROBABILITY + task].to_numpy().astype(np.float64)[None],
        table[LABEL + task].to_numpy() == 1,
        target=options.target_precision,
        resamples=options.resamples,
        seed=options.seed,
    )
    return np.asarray(values, dtype=np.float64)


def _random_curve(arms: Arms, assumed: Prices | None) -> dict[str, Any] | None:
    """Labels and costs of the arm `random`, and its R@P by task; None where it was not run."""
    if RANDOM not in arms.rounds:
        return None
    rounds = arms.rounds[RANDOM]
    with _ledger(arms, RANDOM) as ledger:
        answers = answers_by_round(ledger, len(rounds))
        costs = cumulative_costs(ledger.costs() or _assumed(assumed, answers), len(rounds))
    return {
        "labels": [entry.labels for entry in rounds],
        "cost": costs,
        "recall": {
            task: [entry.metrics[task]["recall_at_p80"] for entry in rounds]
            for task in arms.settings.tasks
        },
    }


def _saved(
    arms: Arms, entry: GrowthRound, cost: dict[str, float] | None, curve: dict[str, Any] | None
) -> dict[str, Any] | None:
    """Task -> labels and money saved against random sampling; None without such a curve."""
    if curve is None or entry.round == 0:
        return None
    # Once the pool has run out, rounds bring no label, and there is one value for each number.
    kept = more_labels(curve["labels"])
    random = [arms.rounds[RANDOM][number] for number in kept]
    labels_Q = np.asarray(curve["labels"])[kept]
    costs = [curve["cost"][number] for number in kept]
    found: dict[str, Any] = {}
    for task in arms.settings.tasks:
        values = recalls(arms, entry, task)
        others = np.stack([recalls(arms, other, task) for other in random], axis=1)
        known = ~np.isnan(values)
        if not known[0]:  # no test clip is positive
            found[task] = None
            continue
        saved = labels_saved(entry.labels, values[known], labels_Q, others[known])
        found[task] = {**saved.as_dict(), **_money_saved(saved, cost, labels_Q, costs)}
    return found


def more_labels(labels: Sequence[int]) -> list[int]:
    """Numbers of the rounds with more labels than all before."""
    return [n for n, count in enumerate(labels) if count > max(labels[:n], default=-1)]


def _money_saved(
    saved: LabelsSaved,
    cost: dict[str, float] | None,
    labels_Q: npt.NDArray[np.int64],
    costs: Sequence[dict[str, float] | None],
) -> dict[str, Any]:
    """What random sampling would have cost for as much, less what the arm did."""
    paid = [one for one in costs if one is not None]
    known = len(paid) == len(costs)
    found: dict[str, Any] = {}
    for kind in ("money", HOURS):
        ends: list[float | None] = [None, None, None]
        if known and cost is not None:
            spent = [one[f"all_{kind}"] for one in paid]
            needed = (saved.random_labels, saved.low, saved.high)
            ends = [
                None
                if labels is None
                else float(np.interp(labels, labels_Q, spent)) - cost[f"all_{kind}"]
                for labels in needed
            ]
        found |= {f"saved_{kind}": ends[0], f"saved_{kind}_interval": ends[1:]}
    return found


def write_account(arms: Arms, console: Console, assumed: Prices | None = None) -> dict[str, Any]:
    """Write account.json and account.png of a finished run, and print the table."""
    found = account(arms, assumed)
    folder = arms.folder.path
    write_json(folder / "account.json", found)
    write_bytes(folder / "account.png", draw_account(found))
    console.print(account_table(found))
    console.print(errors_table(found))
    console.print(f"{folder}/account.json, {folder}/account.png", soft_wrap=True)
    return found
