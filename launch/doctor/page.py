"""What the doctor prints and keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from launch.doctor.finding import HERE
from launch.doctor.verdict import Verdict

FORMAT = "vlmae-doctor-findings"
VERSION = 1
NAMED = 6


@dataclass(frozen=True)
class Diagnosis:
    """What a visit has come to.

    Attributes:
        head: which nodes were looked at, and where it is written.
        verdicts: by check.
        left: node -> why it was not looked at, though nothing is wrong with it.
        seconds: that it took.
    """

    head: str
    verdicts: tuple[Verdict, ...]
    left: dict[str, str]
    seconds: float

    @property
    def well(self) -> bool:
        """Whether nothing is to be mended."""
        return not any(one.failed for one in self.verdicts)


def page(told: Diagnosis) -> Group:
    """The page: a line a check, then what is to be mended, and how."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("check", "ok", "fails", ""):
        table.add_column(name, justify="right" if name == "ok" else "left", no_wrap=True)
    for one in told.verdicts:
        of = len(one.fine) + len(one.failed)
        ok = "ok" if not one.failed else f"{len(one.fine)} of {of}"
        table.add_row(one.check, ok, some(list(one.failed)), one.told)
    lines = []
    for verdict in told.verdicts:
        for cause, remedy, nodes in _grouped(verdict):
            lines += [f"{some(nodes)}: {verdict.check}: {cause}", f"    -> {remedy}"]
    notes = [f"{node} {why}" for node, why in told.left.items()]
    if len(notes) > NAMED:
        notes = [*notes[:NAMED], f"... and {len(notes) - NAMED} more"]
    end = "all is well" if told.well else "mend the first line first: others may follow from it"
    return Group(told.head, table, *lines, *notes, f"{end} ({told.seconds:.0f} s)")


def some(nodes: Sequence[str]) -> str:
    """Names of nodes, cut where they are many."""
    names = ["this host" if node == HERE else node for node in nodes]
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _grouped(verdict: Verdict) -> list[tuple[str, str, list[str]]]:
    """Cause, remedy and the nodes that have both."""
    found: dict[tuple[str, str], list[str]] = {}
    for node, findings in verdict.failed.items():
        for one in findings:
            found.setdefault((one.cause, one.remedy), []).append(node)
    return [(cause, remedy, nodes) for (cause, remedy), nodes in found.items()]


def as_json(told: Diagnosis, findings: Mapping[str, Any]) -> dict[str, Any]:
    """The record `doctor.json`.

    Args:
        told: see `Diagnosis`.
        findings: node -> its findings.
    """
    return {
        "format": FORMAT,
        "version": VERSION,
        "well": told.well,
        "seconds": round(told.seconds, 1),
        "nodes": {node: [asdict(one) for one in found] for node, found in findings.items()},
        "not looked at": told.left,
    }
