"""What a training refuses before anything is submitted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from launch.jobs.training_job import train_by_ranks
from vlmae.config import as_dict, compose_config


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trainer.batch_size=-1", "batch_size -1"),
        ("strategy=zero2_offload", "use strategy=zero2, or trainer=gpu"),
        ("labels=lables.csv", "labels is lables.csv, which is no file"),
        ("task.names=[relevance,policy]", "no column 'label_policy'"),
        ("data.path=prepare-1", "prepare-1 has no manifest.json"),
        ("trainer.batch_size=64", "500 draws of 500 clips cannot fill one step of 8 ranks with 64"),
    ],
)
def test_a_slip_is_told_before_nodes_are_waited_for(
    override: str, message: str, tmp_path: Path
) -> None:
    table = tmp_path / "labels.csv"
    table.write_text("key,label_relevance\n" + "".join(f"clip-{n},1\n" for n in range(500)))
    given = {"labels": table, "validation": table, "data": "prepared", "runs": tmp_path / "runs"}
    overrides = [f"{key}={value}" for key, value in given.items()]
    overrides += ["launcher=slurm", "launcher.nodes=8", "task.names=[relevance]", override]
    values = cast(dict[str, Any], as_dict(compose_config("launch_train", overrides)))
    with pytest.raises(ValueError, match=message):
        train_by_ranks(values, overrides)
    assert not (tmp_path / "runs").exists()
