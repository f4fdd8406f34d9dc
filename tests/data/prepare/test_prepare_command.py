"""The command: its config groups fit the dataclass, its table names what was made."""

from __future__ import annotations

import io
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from rich.console import Console

from lsb.artifact import Stage
from vlmae.config import as_dict, build, compose_config
from vlmae.data.prepare import PrepareConfig
from vlmae.prepare import summarise


@pytest.mark.parametrize("size", ["tiny", "demo", "small", "full"])
@pytest.mark.parametrize("data", ["generated", "avt_compose"])
def test_config_groups_are_exactly_the_fields(data: str, size: str) -> None:
    node = as_dict(compose_config("prepare", [f"data={data}", f"size={size}"]).data)
    assert set(node) == {field.name for field in fields(PrepareConfig)}
    config = build("data", PrepareConfig, node)
    assert config.synthetic == (data == "generated")
    assert (
        sum(config.sizes.values())
        == {
            "tiny": 216,
            "demo": 2000,
            "small": 6000,
            "full": 60_000,
        }[size]
    )


def test_table_names_splits_and_says_what_the_media_are(mini: Stage) -> None:
    for name, bank, words in (
        ("mini", "avt_compose", "composed labels"),
        ("generated", "generated", "SYNTHETIC"),
    ):
        console = Console(width=80, record=True, file=io.StringIO())
        console.print(summarise(mini, PrepareConfig(name=name, bank=bank)))
        text = console.export_text()
        assert words in text
        for expected in ("first", "pool", "gold", "test", "relevance %", "truncated", "MB"):
            assert expected in text


def test_command_makes_then_reuses_and_fails_in_one_line(tmp_path: Path, sources: Path) -> None:
    def run(*overrides: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [
                *(sys.executable, "-m", "vlmae.prepare", "data=avt_compose", f"runs={tmp_path}"),
                *("data.first=16", "data.pool=0", "data.gold=0", "data.test=0"),
                *("data.clip_seconds=1.0", *overrides),
            ],
            capture_output=True,
            text=True,
            check=False,
        )

    made, again = (run(f"data.sources={sources}") for _ in range(2))
    assert made.returncode == again.returncode == 0, made.stderr + again.stderr
    assert ": made," in made.stdout
    assert ": reused," in again.stdout
    failed = run("data.sources=/nosuch")
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: data.sources: there is no folder /nosuch")
    assert failed.stderr.count("\n") == 1
