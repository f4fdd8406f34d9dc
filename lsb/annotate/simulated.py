"""Several simulated annotators: each with its own rates of error, share of skips, time and price.

They know the truth, as `lsb.annotate.oracle.Oracle` does, and give wrong answers by chance: a
negative is called positive at one rate, a positive negative at another. Whether they do depends on
(seed, annotator, clip, task) alone, so that asking again gives the same answers, whatever else is
asked beside. Where their answers leave an item open, others may be asked. What the work costs comes
with the answers, see `Judged`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from lsb.acquisition.random import uniform
from lsb.annotate import ANNOTATIONS, annotation_table
from lsb.annotate.oracle import Oracle
from lsb.ids import IdArray, from_bytes, to_hex

COST_FIELDS: dict[str, pa.DataType] = {
    "labeller": pa.string(),
    "judgements": pa.int64(),
    "skipped": pa.int64(),
    "seconds": pa.float64(),
    "unit_price": pa.float64(),
}
COSTS = pa.schema(COST_FIELDS)
SECONDS_PER_HOUR = 3600
FURTHER = "further_answers"
OpenItems = Callable[[pa.Table], Collection[tuple[str, str]]]
"""From the answers so far, the items (clip id in hexadecimal digits, task) that they leave open."""


@dataclass(frozen=True)
class FlipRates:
    """How often an annotator is wrong.

    Attributes:
        false_positive: share in [0, 1] of true negatives that are called positive.
        false_negative: share in [0, 1] of true positives that are called negative.
    """

    false_positive: float = 0.0
    false_negative: float = 0.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            _require_share(f"oracle.annotators.*.{name}", value)


@dataclass(frozen=True)
class SimulatedAnnotator:
    """One annotator.

    Attributes:
        false_positive: see `FlipRates`; in tasks that `tasks` does not name.
        false_negative: see above.
        tasks: task -> its own rates.
        skip: share in [0, 1] of clips that it leaves unanswered, in all tasks.
        seconds: that it takes for one judgement, a clip in a task, skipped or not.
        price: of one judgement besides its time, in units of your choice.
    """

    false_positive: float = 0.0
    false_negative: float = 0.0
    tasks: dict[str, FlipRates] = field(default_factory=dict)
    skip: float = 0.0
    seconds: float = 0.0
    price: float = 0.0

    def __post_init__(self) -> None:
        FlipRates(self.false_positive, self.false_negative)
        _require_share("oracle.annotators.*.skip", self.skip)
        require_amounts("oracle.annotators.*", seconds=self.seconds, price=self.price)

    def rates(self, task: str) -> FlipRates:
        """Its rates in a task."""
        return self.tasks.get(task, FlipRates(self.false_positive, self.false_negative))


@dataclass(frozen=True)
class SimulatedConfig:
    """All annotators, and who is asked.

    Attributes:
        annotators: name -> annotator; labels bear `oracle:<name>`.
        answers_per_clip: how many annotators are asked about a clip, drawn by the clip's id.
        further_answers: how many others are asked at most, one after the other, about items that
            the answers so far leave open.
        hourly_wage: for the time that judgements take, in the units of `price`.
        seed: of errors, skips and of who is asked.
        kind: tells this group from the others of `conf/oracle`.
    """

    annotators: dict[str, SimulatedAnnotator]
    answers_per_clip: int = 1
    further_answers: int = 0
    hourly_wage: float = 0.0
    seed: int = 0
    kind: Literal["simulated"] = "simulated"

    def __post_init__(self) -> None:
        if not 1 <= self.answers_per_clip <= len(self.annotators):
            raise ValueError(
                f"oracle.answers_per_clip is {self.answers_per_clip} of {len(self.annotators)} "
                "annotators: ask at least one, and no more than there are"
            )
        most = len(self.annotators) - self.answers_per_clip
        if not 0 <= self.further_answers <= most:
            raise ValueError(
                f"oracle.{FURTHER} is {self.further_answers}, and of {len(self.annotators)} "
                f"annotators {self.answers_per_clip} are asked anyway (oracle.answers_per_clip): "
                f"give 0 to {most}"
            )
        require_amounts("oracle", hourly_wage=self.hourly_wage)

    def identity(self) -> dict[str, Any]:
        """What a stage of their answers and costs is known by."""
        values = asdict(self)
        if not self.further_answers:  # as stages were before others could be asked
            del values[FURTHER]
        return values

    def deciding(self) -> dict[str, Any]:
        """What decides the answers: all but time and money."""
        values = self.identity()
        del values["hourly_wage"]
        for told in values["annotators"].values():
            del told["seconds"], told["price"]
        return values

    def unit_price(self, name: str) -> float:
        """What one judgement of an annotator costs."""
        told = self.annotators[name]
        return unit_price(told.price, self.hourly_wage, told.seconds)


@dataclass(frozen=True)
class Judged:
    """What a number of annotators did.

    Attributes:
        annotations: schema `lsb.annotate.ANNOTATIONS`, ordered by (id, task, labeller).
        costs: schema `COSTS`, ordered by labeller: judgements made, those of them that were
            skipped, the seconds of all and the price of each.
    """

    annotations: pa.Table
    costs: pa.Table


class SimulatedAnnotators:
    """A crowd that knows the truth, see the module; an `lsb.annotate.Annotator`.

    Args:
        truth: see `lsb.annotate.oracle.Oracle`.
        config: who they are.
    """

    source = "oracle"

    def __init__(self, truth: pa.Table, config: SimulatedConfig) -> None:
        self.config = config
        self._truth = Oracle(truth)

    @property
    def name(self) -> str:
        """Names of all; every label bears the one of its annotator."""
        return ", ".join(labeller_name(name) for name in sorted(self.config.annotators))

    def annotate(self, ids: IdArray, keys: Sequence[str], tasks: Sequence[str]) -> pa.Table:
        """Labels of clips; see `lsb.annotate.Annotator` and `judge`."""
        return self.judge(ids, keys, tasks).annotations

    def judge(
        self,
        ids: IdArray,
        keys: Sequence[str],
        tasks: Sequence[str],
        open_items: OpenItems | None = None,
    ) -> Judged:
        """Have clips labelled.

        Args:
            ids: (N,) S16.
            keys: their N keys.
            tasks: what to judge.
            open_items: says which items `further_answers` others are asked about; None asks nobody
                again.

        Raises:
            ValueError: a clip or a task is not in the truth table.
        """
        names, seed = sorted(self.config.annotators), self.config.seed
        unknown = sorted({t for told in self.config.annotators.values() for t in told.tasks})
        if absent := [task for task in unknown if task not in tasks]:
            raise ValueError(
                f"oracle.annotators gives rates of task {absent[0]!r}, asked are {list(tasks)}: "
                "name tasks of the model"
            )
        place = _places(ids, names, self.config)
        answered = [ANNOTATIONS.empty_table()]
        made: Counter[str] = Counter()
        skips: Counter[str] = Counter()

        def ask(name: str, mine: npt.NDArray[np.intp], of: Sequence[str]) -> None:
            skipped = uniform(ids[mine], "skip", seed, name) < self.config.annotators[name].skip
            kept = mine[~skipped]
            truth = self._truth.annotate(ids[kept], [keys[row] for row in kept], of)
            answered.append(self._with_errors(name, truth))
            made[name] += len(mine) * len(of)
            skips[name] += int(skipped.sum()) * len(of)

        first = self.config.answers_per_clip
        for name in names:
            ask(name, np.flatnonzero(place[name] < first), tasks)
        for turn in range(first, first + (self.config.further_answers if open_items else 0)):
            still = set(open_items(pa.concat_tables(answered)) if open_items else ())
            for task in tasks:
                wanted = np.array([(clip, task) in still for clip in to_hex(ids)], dtype=np.bool_)
                for name in names if wanted.any() else ():
                    ask(name, np.flatnonzero(wanted & (place[name] == turn)), [task])
        rows = pa.concat_tables(answered).to_pylist()
        rows.sort(key=lambda row: (row["id"], row["task"], row["labeller"]))
        costs = [
            {
                "labeller": labeller_name(name),
                "judgements": made[name],
                "skipped": skips[name],
                "seconds": made[name] * self.config.annotators[name].seconds,
                "unit_price": self.config.unit_price(name),
            }
            for name in names
        ]
        return Judged(
            pa.Table.from_pylist(rows, schema=ANNOTATIONS),
            pa.Table.from_pylist(costs, schema=COSTS),
        )

    def _with_errors(self, name: str, truth: pa.Table) -> pa.Table:
        """The same answers as this annotator gives them."""
        rows = truth.to_pylist()
        told, seed = self.config.annotators[name], self.config.seed
        places: dict[str, list[int]] = {}
        for row, answer in enumerate(rows):
            places.setdefault(answer["task"], []).append(row)
        for task, chosen in places.items():
            rates = told.rates(task)
            chance = uniform(
                from_bytes([rows[row]["id"] for row in chosen]), "answer", seed, name, task
            ).tolist()
            for row, drawn in zip(chosen, chance, strict=True):
                label = rows[row]["label"]
                wrong = rates.false_negative if label else rates.false_positive
                rows[row]["label"] = 1 - label if drawn < wrong else label
        columns = [[row[field] for row in rows] for field in ("id", "key", "task", "label")]
        labeller = labeller_name(name)
        return annotation_table(
            columns[0], columns[1], columns[2], columns[3], source=self.source, labeller=labeller
        )


def labeller_name(name: str) -> str:
    """Under which an annotator's labels are stored."""
    return f"oracle:{name}"


def unit_price(price: float, hourly_wage: float, seconds: float) -> float:
    """What one judgement costs: a price of its own and the wage of the time it takes."""
    return price + hourly_wage * seconds / SECONDS_PER_HOUR


def require_amounts(group: str, **amounts: float) -> None:
    """Refuse amounts of time or money that are negative or not finite."""
    for name, value in amounts.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{group}.{name} is {value}: give a number of 0 or more")


def _places(
    ids: IdArray, names: Sequence[str], config: SimulatedConfig
) -> dict[str, npt.NDArray[np.intp]]:
    """Annotator -> (N,) its place in the order in which each clip's annotators are asked."""
    drawn = np.stack([uniform(ids, "asked", config.seed, name) for name in names])
    place = np.argsort(np.argsort(drawn, axis=0, kind="stable"), axis=0, kind="stable")
    return {name: place[row] for row, name in enumerate(names)}


def _require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ValueError(f"{name} is {value}: give a share in [0, 1]")
