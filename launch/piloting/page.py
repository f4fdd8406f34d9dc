"""The go/no-go page: one HTML file, nothing fetched from anywhere."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch.rounds.account_report import saved_labels
from vlmae.metrics import percentage, percentage_interval

TEMPLATES = Path(__file__).resolve().parents[1] / "templates"
COSTS = ("cost per positive",)


def numbers(criterion: Mapping[str, Any]) -> str:
    """Value and interval of a criterion: in percent, costs as they are; a dash for none."""
    plain = criterion["name"] in COSTS
    ends = [criterion[name] for name in ("value", "low", "high")]
    value, low, high = (
        None if end is None else f"{end:.2f}" if plain else percentage(end) for end in ends
    )
    unit = "" if plain else " %"
    if value is None and low is None and high is None:
        return "-"
    if value is None:
        return f">= {low}{unit}" if high is None else f"{low} to {high}{unit}"
    return f"{value}{unit} [{low or ''} to {high or ''}]"


def _saved_money(saved: Mapping[str, Any] | None, task: str) -> str:
    told = saved[task] if saved else None
    value = told["saved_money"] if told else None
    return "-" if value is None else f"{value:.2f}"


def pilot_page(pilot: Mapping[str, Any], picture: bytes) -> str:
    """The page as text.

    Args:
        pilot: see `launch.pilot.run_pilot`.
        picture: PNG of the account.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["numbers"] = numbers
    environment.filters["saved"] = saved_labels
    environment.filters["money"] = _saved_money
    environment.filters["interval"] = percentage_interval
    environment.filters["percentage"] = percentage
    template = environment.get_template("pilot.html.j2")
    return template.render(
        pilot=pilot,
        account=pilot["account"],
        tasks=list(pilot["account"]["rounds"][0]["found"]),
        picture=base64.b64encode(picture).decode(),
    )
