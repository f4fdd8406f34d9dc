"""The published comparison's own command on a handful of its clips (experiment=avt_policy)."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tiny_run import run_python

from vlmae.config import conf_dir

SOURCES = Path(__file__).parents[3] / "shared" / "data" / "sources"
SMALL = (
    "size=tiny",
    "data.gold=40",
    "data.unsafe_rate=0.2",
    "data.policy_pairs=25",
    "rounds=1",
    "clips.first=40",
    "clips.gold=24",
    "trainer.epochs=1",
    "selection.budget=16",
    "seeds.entropy=4",
    "seeds.confident_error=4",
    "compare.scoring_share=0.4",
    "compare.resamples=20",
    "evaluation.resamples=20",
)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # forty units
@pytest.mark.skipif(not SOURCES.is_dir(), reason=f"{SOURCES} is missing: docs/data.md names them")
def test_it_ends_with_both_tables_for_seen_and_unseen_speakers(tmp_path: Path) -> None:
    done = run_python(
        "-m",
        "launch.compare",
        "experiment=avt_policy",
        "arm=all",
        "seed=1",
        f"data.sources={SOURCES}",
        *SMALL,
        cwd=tmp_path,
        timeout=1400,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "runs" / "avt_policy_compare" / "compare.json").read_text())
    assert list(summary["arms"]) == ["labels", "scoring"]
    every = sorted(path.stem for path in Path(conf_dir(), "arm").iterdir())
    pool = summary["arms"]["labels"]["entropy"]["scored"]
    for protocol, arms in summary["arms"].items():
        assert sorted(arms) == every
        for name, arm in arms.items():
            assert arm["labels"] == 56
            assert arm["scored"] <= (round(0.4 * pool) if protocol == "scoring" else pool), name
            assert set(arm["cells"]) == {"policy, seen", "policy, unseen", "unsafe"}
    assert None not in summary["claims"].values()
    assert "equal labels and equal scoring budget; 56 labels" in done.stdout
