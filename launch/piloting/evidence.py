"""What is asked of a pilot, and how its run answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import binomtest

from launch.piloting.criteria import Criterion, above, at_least, at_most, not_measured
from launch.rounds.account import RANDOM, recalls
from launch.rounds.arms import Arms
from launch.rounds.growth import GrowthRound
from launch.stages.shortlist import THRESHOLD_FILE, broadened_of
from lsb.artifact import read_json
from lsb.ledger import AnnotatorQuality, TaskThreshold
from lsb.ledger.task_threshold import NONE, REFUSED
from vlmae.metrics import percentage, percentile_interval

Ends = tuple[float, float, float]


@dataclass(frozen=True)
class PilotConfig:
    """The group `pilot`: steps, and what is asked of the pilot; None asks nothing.

    Attributes:
        tasks: whose recall is averaged and whose positives are counted; none named: all.
        steps: name -> its last round, ascending.
        lookalike_precision: wanted lower bound of lookalike precision at LT.
        label_noise: largest upper bound of the share of wrong answers on gold clips.
        gain: recall at the target precision over random sampling, mean over tasks; the lower end of
            its interval must be above.
        cost_per_positive: largest upper bound, in the units of the prices.
        gold_items: gold clips that simulated annotators answer too.
        price: of an answer where the ledger has no costs; None leaves costs unmeasured there.
        seconds: of work for an answer, likewise.
    """

    tasks: list[str]
    steps: dict[str, int]
    lookalike_precision: float | None
    label_noise: float | None
    gain: float | None
    cost_per_positive: float | None
    gold_items: int
    price: float | None
    seconds: float

    def __post_init__(self) -> None:
        ends = list(self.steps.values())
        if not ends or min(ends) < 0 or ends != sorted(set(ends)):
            raise ValueError(
                f"pilot.steps is {self.steps}: give the last round of each step, ascending from 0"
            )
        for name in ("lookalike_precision", "label_noise"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                raise ValueError(f"pilot.{name} is {value}: give a share in (0, 1), or null")
        for name in ("cost_per_positive", "price", "seconds"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < float("inf"):
                raise ValueError(f"pilot.{name} is {value}: give 0 or more")
        if self.gold_items < 1:
            raise ValueError(f"pilot.gold_items is {self.gold_items}: give 1 or more")
        asked = (self.lookalike_precision, self.label_noise, self.gain, self.cost_per_positive)
        if all(limit is None for limit in asked):
            raise ValueError(
                "pilot asks nothing: set one of pilot.lookalike_precision, label_noise, gain and "
                "cost_per_positive"
            )


@dataclass(frozen=True)
class Evidence:
    """A finished run, as criteria see it.

    Attributes:
        config: what is asked.
        arms: the run.
        account: of it, see `launch.rounds.account.account`.
        quality: last round of a step -> of the annotators, on gold clips, by then.
    """

    config: PilotConfig
    arms: Arms
    account: Mapping[str, Any]
    quality: Mapping[int, Sequence[AnnotatorQuality]]

    @property
    def tasks(self) -> Sequence[str]:
        """Tasks whose recall and positives count."""
        return self.config.tasks or self.arms.settings.tasks

    def criteria(self, last: int) -> list[Criterion]:
        """All that were asked, answered from what was known after round `last`."""
        limits = (
            (self.config.lookalike_precision, self._lookalikes),
            (self.config.label_noise, self._noise),
            (self.config.gain, self._gain),
            (self.config.cost_per_positive, self._cost),
        )
        return [answer(limit, last) for limit, answer in limits if limit is not None]

    def _lookalikes(self, limit: float, last: int) -> Criterion:
        name = "lookalike precision"
        wanted = f"lower bound >= {percentage(limit)} %"
        rounds = self.arms.rounds[self.arms.settings.arm]
        told = [entry for entry in rounds[: last + 1] if entry.threshold or _of_tasks(entry)]
        if not told:
            return not_measured(name, wanted, "no round has set LT yet, or the arm has none")
        entry, threshold = told[-1], told[-1].threshold
        if threshold is None:
            return _by_task(name, wanted, limit, entry)
        if threshold["mode"] == "calibrated":
            pairs = f"{threshold['pairs']} labelled pairs of {threshold['seeds']} seeds"
            evidence = f"round {entry.round}: LT {threshold['value']:.3f}, {pairs}"
            bound = threshold["precision"]
            return at_least(name, wanted, limit, (None, bound, None), evidence)
        if threshold["mode"] == "fallback":
            why = _refusal(self.arms, entry.round)
            evidence = f"round {entry.round}: LT could not be set: {why}"
            return at_least(name, wanted, limit, (None, None, None), evidence)
        return not_measured(name, wanted, f"LT was given ({threshold['value']:g}), not measured")

    def _noise(self, limit: float, last: int) -> Criterion:
        name, wanted = "label noise", f"upper bound <= {percentage(limit)} %"
        quality = [one for one in self.quality[last] if one.gold]
        gold = sum(one.gold for one in quality)
        if not gold:
            return not_measured(name, wanted, "no annotator has answered a gold clip")
        wrong = gold - sum(one.correct for one in quality)
        people = len({one.labeller for one in quality})
        evidence = f"{wrong} of {gold} answers on gold clips are wrong, {people} annotator(s)"
        return at_most(name, wanted, limit, _share(wrong, gold), evidence)

    def _gain(self, limit: float, last: int) -> Criterion:
        settings = self.arms.settings
        percent = f"{100 * settings.evaluate.target_precision:.0f}"
        name = f"gain in R@P{percent} over random"
        wanted = f"interval > {percentage(limit)} %"
        if RANDOM not in self.arms.rounds or settings.arm == RANDOM:
            return not_measured(
                name, wanted, "the arm random was not run beside: set arms=[random]"
            )
        if not last:
            return not_measured(name, wanted, "both arms start from the same labels")
        arm, random = (self.arms.rounds[one][last] for one in (settings.arm, RANDOM))
        drawn = [
            recalls(self.arms, arm, task) - recalls(self.arms, random, task) for task in self.tasks
        ]
        gain = percentile_interval(np.mean(drawn, axis=0))
        if np.isnan(gain.value):
            return not_measured(name, wanted, "a task has no positive test clip")
        tasks = ", ".join(self.tasks)
        evidence = f"{arm.labels} labels against {random.labels}, mean over {tasks}, test clips"
        return above(name, wanted, limit, (gain.value, gain.low, gain.high), evidence)

    def _cost(self, limit: float, last: int) -> Criterion:
        name, wanted = "cost per positive", f"upper bound <= {limit:g}"
        rounds = self.account["rounds"][: last + 1]
        cost = rounds[-1]["cost"]
        if cost is None:
            return not_measured(name, wanted, "no costs are recorded, and pilot.price is not given")
        found = sum(entry["found"][task]["positives"] for entry in rounds for task in self.tasks)
        answers = sum(entry["found"][task]["answers"] for entry in rounds for task in self.tasks)
        spent = cost["all_money"]
        how = "assumed price" if self.account["assumed"] else "recorded costs"
        evidence = f"{spent:.2f} ({how}) for {found} positives in {', '.join(self.tasks)}"
        if not found:
            return at_most(name, wanted, limit, (None, None, None), evidence)
        _, low, high = _share(found, answers)
        ends = (spent / found, spent / (high * answers), spent / (low * answers))
        return at_most(name, wanted, limit, ends, f"{evidence}, {answers} answers")


def _of_tasks(entry: GrowthRound) -> list[TaskThreshold]:
    """LT of the tasks that were to have one."""
    return [one for one in entry.task_thresholds if one.mode != NONE]


def _by_task(name: str, wanted: str, limit: float, entry: GrowthRound) -> Criterion:
    """The criterion where every task has its own LT: all of them have to reach the limit."""
    told = _of_tasks(entry)
    refused = [f"{one.task}: {one.refusal}" for one in told if one.mode == REFUSED]
    if refused:
        evidence = f"round {entry.round}: LT could not be set: {'; '.join(refused)}"
        return at_least(name, wanted, limit, (None, None, None), evidence)
    bounds = [one.precision for one in told if one.precision is not None]
    if len(bounds) < len(told):
        values = ", ".join(f"{one.task} {one.value:g}" for one in told)
        return not_measured(name, wanted, f"LT was given ({values}), not measured")
    each = "; ".join(
        f"{one.task} LT {one.value:.3f} in {one.view}, {one.pairs} labelled pairs of {one.seeds} "
        f"seeds, >= {percentage(one.precision)} %"
        for one in told
    )
    return at_least(name, wanted, limit, (None, min(bounds), None), f"round {entry.round}: {each}")


def _refusal(arms: Arms, number: int) -> str:
    """Why LT could not be set by the choice that brought a round's labels."""
    settings = arms.settings
    made = arms.rounds[settings.arm][number - 1].stages
    # An arm that broadens within a scoring budget sets LT in its shortlist.
    stages = [*made.get("shortlist", ()), *made.get("expand", ())]
    if "expand" not in made:  # the round was taken from the ledger, after a takedown
        with settings.ledger.open(create=False) as ledger:
            held = next(one for one in ledger.rounds() if one.round == number)
        stage = broadened_of(settings.in_round(number), held)
        stages = [] if stage is None else [stage]
    files = (stage.path / THRESHOLD_FILE for stage in stages)
    return next(str(read_json(file)["refusal"]) for file in files if file.is_file())


def _share(hits: int, count: int) -> Ends:
    """A share and Wilson's 95 % interval."""
    interval = binomtest(hits, count).proportion_ci(0.95, method="wilson")
    return hits / count, float(interval.low), float(interval.high)
