"""What all nodes have found, as one list of what is to be mended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from launch.doctor.finding import HERE, Finding

CHECKS = (
    "settings",
    "accepted",
    "time limit",
    "arrays",
    "answers",
    "route",
    "torch",
    "all-reduce",
    "weights and data",
    "folders",
    "renames",
    "locks",
    "clock",
    "versions",
    "gpus",
    "names",
    "memory",
    "shared memory",
    "open files",
)
"""In the order in which they are shown, and should be mended."""


@dataclass(frozen=True)
class Verdict:
    """One check over all nodes.

    Attributes:
        check: its name.
        fine: nodes where all is well.
        failed: node -> what is to be mended.
        told: what the first node found where all is well.
    """

    check: str
    fine: tuple[str, ...]
    failed: dict[str, tuple[Finding, ...]]
    told: str


def verdicts(found: Mapping[str, Sequence[Finding]]) -> list[Verdict]:
    """Checks in their order.

    Args:
        found: node, or `HERE` for the host of the command -> its findings.
    """
    rows = []
    others = {one.check for findings in found.values() for one in findings} - set(CHECKS)
    for check in (*CHECKS, *sorted(others)):  # nothing that was found is left out
        by_node = {
            node: [one for one in findings if one.check == check]
            for node, findings in found.items()
        }
        by_node = {node: findings for node, findings in by_node.items() if findings}
        if not by_node:
            continue
        failed = {
            node: tuple(one for one in findings if not one.fine)
            for node, findings in by_node.items()
        }
        failed = {node: findings for node, findings in failed.items() if findings}
        fine = tuple(node for node in by_node if node not in failed)
        told = next((one.told for node in fine for one in by_node[node] if one.told), "")
        rows.append(Verdict(check, fine, failed, told))
    return rows


def blamed(found: Mapping[str, Sequence[Finding]], first: str) -> dict[str, list[Finding]]:
    """Findings where they belong: what no node reaches is the fault of that one.

    Args:
        found: node -> its findings.
        first: the node that is rank 0.
    """
    others = [node for node in found if node not in (first, HERE)]
    cut = [
        node
        for node in others
        if any(one.check == "route" and "rank 0" in one.cause for one in found[node])
    ]
    kept = {node: list(findings) for node, findings in found.items()}
    if len(others) < 2 or len(cut) < len(others):
        return kept
    example = next(one for one in found[cut[0]] if one.check == "route" and not one.fine)
    for node in cut:
        kept[node] = [one for one in kept[node] if one.check != "route"]
    cause = f"no other node reaches it: {example.cause}"
    kept[first] = [one for one in kept[first] if one.check != "route" or not one.fine]
    kept[first].append(replace(example, cause=cause))
    return kept
