from __future__ import annotations

import pytest
from planner_costs import COSTS

from lsb import plan as command


def test_it_prints_choice_assumptions_and_sizes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "costs_here", lambda recalibrate: COSTS)
    arguments = ["--rows", "1e9", "--dimension", "768", "--seeds", "100000", "--nodes", "4"]
    assert command.main([*arguments, "--gpus", "8", "--gpu", "h100"]) == 0
    told = capsys.readouterr().out
    for words in ("chosen: avx512", "reasons", "[measured here]", "[assumed]", "10B rows", "H100"):
        assert words in told
    assert max(map(len, told.splitlines())) <= 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--gpu", "h300", "--gpus", "1"], "gpu is 'h300': known are"),
        (["--rows", "-5"], "rows is -5"),
        (["--seeds-from", "x.parquet"], "--seeds-from needs --store"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "costs_here", lambda recalibrate: COSTS)
    assert command.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
