"""What `.ci/run` may not skip is there: a name that was changed is seen before an hour of tests."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
LISTED = [
    line
    for line in (TESTS / "must_run.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith("#")
]


@pytest.mark.parametrize("listed", LISTED)
def test_a_listed_test_exists(listed: str) -> None:
    file, *classes, name = listed.split("::")
    assert not classes, f"{listed}: tests here are functions"
    tree = ast.parse((TESTS.parent / file).read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_none_is_listed_twice() -> None:
    assert len(set(LISTED)) == len(LISTED)
