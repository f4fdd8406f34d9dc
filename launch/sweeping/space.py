"""What a sweep goes over, in Hydra's own grammar: `fusion=late,film trainer.seed=range(3)`.

Choices, `glob`, `range` and `sort` give a list of values, in Hydra's order; `interval`, with
`tag(log, ...)` and `int(...)`, only a sampler can draw from. The override parser is Hydra's.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override

from vlmae.config import conf_dir

OF_THE_SWEEP = ("name", "runs", "launcher", "sweep", "hydra")
"""Keys that all points share."""


@dataclass(frozen=True)
class Swept:
    """One key that differs from point to point.

    Attributes:
        key: as on the command line, with its prefix, e.g. "fusion" or "+model.width".
        values: as written after "=", in order; empty for an interval.
        numbers: the same as numbers, where it is a range.
        low: of an interval.
        high: of an interval.
        log: whether an interval is drawn from by its logarithm.
        integer: whether only whole numbers are.
    """

    key: str
    values: tuple[str, ...] = ()
    numbers: tuple[float, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    integer: bool = False

    @property
    def interval(self) -> bool:
        """Whether it has no list of values."""
        return not self.values

    @property
    def first(self) -> str:
        """A value of it."""
        return number_text(self.low, self.integer) if self.interval else self.values[0]


@dataclass(frozen=True)
class Space:
    """The overrides of a command line.

    Attributes:
        overrides: in order; those that are swept over are None.
        swept: what they are, in the same order.
    """

    overrides: tuple[str | None, ...]
    swept: tuple[Swept, ...]

    def point(self, values: Mapping[str, str]) -> list[str]:
        """Overrides of the whole config of a point.

        Args:
            values: key -> value of every key that is swept over.
        """
        own = iter(f"{one.key}={values[one.key]}" for one in self.swept)
        return [next(own) if override is None else override for override in self.overrides]

    @property
    def first(self) -> list[str]:
        """Overrides of some point."""
        return self.point({one.key: one.first for one in self.swept})

    def grid(self) -> Iterator[dict[str, str]]:
        """Every combination, the last key varying fastest.

        Raises:
            ValueError: a key has no list of values.
        """
        for one in self.swept:
            if one.interval:
                raise ValueError(
                    f"{one.key} is an interval, which has no list of values: give a choice or a "
                    "range, or draw from it with sweep.sampler=optuna"
                )
        keys = [one.key for one in self.swept]
        for values in itertools.product(*(one.values for one in self.swept)):
            yield dict(zip(keys, values, strict=True))


def read_space(arguments: Sequence[str]) -> Space:
    """The overrides of a command line.

    Args:
        arguments: e.g. ["fusion=late,film", "trainer.epochs=3"].

    Raises:
        ValueError: nothing is swept over, a key is swept over that all points share, or more than
            once, or in an order left to chance.
        HydraException: an argument is not of the grammar.
    """
    overrides: list[str | None] = []
    swept: list[Swept] = []
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()  # names of a group, for glob
        for override in OverridesParser.create(config_loader=loader).parse_overrides(
            list(arguments)
        ):
            if override.is_sweep_override():
                swept.append(_swept(override))
                overrides.append(None)
            else:
                overrides.append(str(override.input_line))
    keys = [one.key for one in swept]
    if not keys:
        raise ValueError(
            "nothing is swept over: list the values of a key, e.g. fusion=late,cross_attention; "
            "launch.train makes one training"
        )
    given = [re.split("[=@]", str(one), maxsplit=1)[0] for one in overrides if one is not None]
    for key in keys:
        if keys.count(key) > 1 or key in given:
            raise ValueError(f"{key} is given more than once: list all its values in one argument")
    return Space(tuple(overrides), tuple(swept))


def number_text(value: float, integer: bool) -> str:
    """A number as an override has it, exactly."""
    return str(int(value)) if integer else repr(float(value))


def _swept(override: Override) -> Swept:
    key = str(override.get_key_element())
    if re.split("[./@]", override.key_or_group)[0] in OF_THE_SWEEP:
        raise ValueError(f"{override.input_line}: {key} is one for all points, give one value")
    value = override.value()
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        unknown = sorted(value.tags - {"log"})
        if unknown:
            raise ValueError(f"{override.input_line} has the tag {unknown[0]!r}: use log")
        log = "log" in value.tags
        if not value.start < value.end or (log and value.start <= 0):
            least = "above 0 and " if log else ""
            raise ValueError(f"{override.input_line}: the ends are to be {least}in order")
        return Swept(
            key,
            low=float(value.start),
            high=float(value.end),
            log=log,
            integer=isinstance(value.start, int),
        )
    if getattr(value, "shuffle", False):
        raise ValueError(
            f"{override.input_line} leaves the order to chance, and points are numbered: leave "
            "shuffle out"
        )
    values = tuple(override.sweep_string_iterator())
    if not values:
        raise ValueError(f"{override.input_line} gives no value: nothing matches, or it is empty")
    repeated = [text for text in values if values.count(text) > 1]
    if repeated:
        raise ValueError(f"{override.input_line} gives {repeated[0]} more than once")
    numbers = tuple(override.sweep_iterator()) if override.is_range_sweep() else ()
    return Swept(key, values, numbers)
