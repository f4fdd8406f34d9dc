"""Criteria are judged by the careful end of their interval; the page says what was found."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from launch.pilot import settle_criteria
from launch.piloting.criteria import (
    GO,
    MORE_DATA,
    NO,
    NO_GO,
    NOT_MEASURED,
    YES,
    above,
    at_least,
    at_most,
    not_measured,
    verdict,
)
from launch.piloting.evidence import PilotConfig
from launch.piloting.page import numbers

ASKED = PilotConfig(
    tasks=[],
    steps={"dozens": 0, "limited": 2},
    lookalike_precision=0.5,
    label_noise=0.05,
    gain=0.0,
    cost_per_positive=None,
    gold_items=10,
    price=None,
    seconds=0.0,
)


@pytest.mark.parametrize(
    ("make", "interval", "answer", "still_open"),
    [
        (at_least, (0.6, 0.5, 0.7), YES, True),
        (at_least, (0.6, 0.4, 0.7), NO, True),
        (at_least, (0.3, 0.2, 0.4), NO, False),
        (at_least, (None, 0.6, None), YES, True),
        (at_least, (None, None, None), NO, True),
        (above, (0.6, 0.5, 0.7), NO, True),
        (above, (0.5, 0.5, 0.5), NO, False),
        (above, (0.7, 0.51, 0.9), YES, True),
        (at_most, (0.4, 0.3, 0.5), YES, True),
        (at_most, (0.4, 0.3, 0.6), NO, True),
        (at_most, (0.7, 0.6, 0.8), NO, False),
        (at_most, (None, None, None), NO, True),
    ],
)
def test_the_careful_end_decides(
    make: object, interval: tuple[float | None, ...], answer: str, still_open: bool
) -> None:
    assert callable(make)
    found = make("x", "wanted", 0.5, interval, "evidence")
    assert (found.answer, found.open) == (answer, still_open)


def test_verdicts() -> None:
    yes = at_least("a", "", 0.5, (0.9, 0.8, 1.0), "")
    no = at_least("b", "", 0.5, (0.2, 0.1, 0.3), "")
    unsure = at_least("c", "", 0.5, (0.5, 0.4, 0.6), "")
    unknown = not_measured("d", "", "why")
    assert unknown.answer == NOT_MEASURED
    assert verdict([yes, yes]) == GO
    assert verdict([yes, unsure]) == MORE_DATA
    assert verdict([yes, unknown]) == MORE_DATA
    assert verdict([yes, unsure, unknown, no]) == NO_GO
    with pytest.raises(ValueError, match="pilot has no criterion"):
        verdict([])


def test_numbers_of_a_criterion() -> None:
    def told(name: str, *ends: float | None) -> str:
        return numbers(at_least(name, "", 0.0, ends, "").as_dict())

    assert told("gain", 0.1, -0.05, 0.2) == "10.0 % [-5.0 to 20.0]"
    assert told("gain", None, 0.5, None) == ">= 50.0 %"
    assert told("gain", None, None, None) == "-"
    assert told("cost per positive", 1.5, 1.0, 2.0) == "1.50 [1.00 to 2.00]"


def test_criteria_are_settled_before_the_run(tmp_path: Path) -> None:
    settle_criteria(tmp_path / "pilot", ASKED)
    settle_criteria(tmp_path / "pilot", ASKED)
    easier = replace(ASKED, label_noise=0.2)
    with pytest.raises(ValueError, match=r"label_noise: 0.05 -> 0.2.*name=<name>"):
        settle_criteria(tmp_path / "pilot", easier)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": {}}, "pilot.steps is {}"),
        ({"steps": {"a": 2, "b": 1}}, "ascending from 0"),
        ({"label_noise": 1.5}, "pilot.label_noise is 1.5"),
        ({"price": -1.0}, "pilot.price is -1.0"),
        ({"gold_items": 0}, "pilot.gold_items is 0"),
        ({"lookalike_precision": None, "label_noise": None, "gain": None}, "pilot asks nothing"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(ASKED, **settings)


class Page(HTMLParser):
    """Collects tags and text, and fails on tags that do not close."""

    VOID = ("meta", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)
