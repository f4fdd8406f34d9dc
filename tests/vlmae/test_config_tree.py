"""Every file of conf/ composes and is accepted; a typo is one line on stderr."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from launch.stages.settings import Settings
from vlmae.config import as_dict, build, command, compose_config, conf_dir
from vlmae.data.decode import DecodePolicy
from vlmae.data.prefix_cache import PrefixConfig
from vlmae.data.prepare import PrepareConfig, data_config
from vlmae.settings import tower_nodes
from vlmae.strategy import StrategyConfig
from vlmae.trainer import TrainConfig

CONF = Path(conf_dir())
# `command` is the frame of every command, not a choice; recipes are for `vlmae.train`.
GROUPS = sorted(
    path.name for path in CONF.iterdir() if path.is_dir() and path.name not in ("command", "recipe")
)
# Data without truth: the simulated annotator of a round cannot label them.
UNLABELLED = ("folder", "manifest", "prepared", "shards")
OPTIONS = [
    f"{group}={file.stem}" for group in GROUPS for file in sorted((CONF / group).glob("*.yaml"))
]
COMMANDS = (
    "prepare",
    "cache",
    "embed",
    "train",
    "evaluate",
    "export",
    "predict",
    "variants",
    "launch_cache",
    "launch_train",
    "launch_sweep",
    "plan",
)


def composed(*overrides: str) -> Settings:
    return Settings.from_config(compose_config("round", list(overrides)))


def test_conf_dir_holds_the_roots() -> None:
    assert (CONF / "round.yaml").is_file()
    assert (CONF / "prepare.yaml").is_file()
    assert len(OPTIONS) > 30
    assert {"experiment", "debug", "fusion", "arm"} <= set(GROUPS)


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes_and_is_accepted(option: str) -> None:
    group, name = option.split("=")
    if group == "data" and name in UNLABELLED:
        with pytest.raises(ValueError, match=r"clips\.labels is not set"):
            composed(option)
        assert composed(option, "clips.labels=labels.csv").data.composed is None
        return
    if option == "task=own":
        own = composed(option, "task.names=[a,b]", "data=folder", "clips.labels=labels.csv")
        assert own.expand.acquisition.task_weights == {"a": 1.0, "b": 1.0}
        return
    # A training that grows stands in for the rounds.
    settings = composed(option, *(["rounds=0"] if option == "growing=every" else []))
    assert settings.tasks
    if group == "arm":
        assert settings.arm == name
    if group == "experiment":
        assert settings.name == name
        assert settings.folder == Path("runs") / name


@pytest.mark.parametrize("file", sorted((CONF / "recipe").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_recipe_composes_for_training(file: Path) -> None:
    values: dict[str, Any] = dict(as_dict(compose_config("train", [f"recipe={file.stem}"])))
    config = build("trainer", TrainConfig, values["trainer"])
    strategy = build("strategy", StrategyConfig, values["strategy"])
    assert config.accelerator == "gpu"
    assert strategy.name in ("ddp", "zero1", "zero2", "zero3")
    vl, audio = tower_nodes(values)
    assert vl["tuned_blocks"]
    assert audio["tuned_blocks"]


def test_recipes_are_for_rounds_and_the_doctor_too() -> None:
    assert composed("experiment=tiny", "recipe=clip_last_2").train.accelerator == "gpu"
    assert compose_config("doctor", ["recipe=clip_last_2"]).tuning.vl.mode == "last"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "launch.clean --report"),
        (OSError(errno.EROFS, "Read-only file system", "runs/x"), "'runs/x': make that folder"),
        (PermissionError(errno.EACCES, "Permission denied", "runs/x"), "set runs=<folder>"),
        (KeyboardInterrupt(), "the same command goes on"),
    ],
)
def test_what_the_system_refuses_is_one_line_with_what_to_type(
    error: BaseException,
    expected: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(config: DictConfig) -> None:
        raise error

    monkeypatch.setattr(sys, "argv", ["prepare"])
    with pytest.raises(SystemExit) as ended:
        command("prepare")(fails)()
    assert ended.value.code == (130 if isinstance(error, KeyboardInterrupt) else 1)
    (line,) = capsys.readouterr().err.splitlines()
    assert expected in line


@pytest.mark.parametrize("file", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda p: p.stem)
def test_every_experiment_composes_with_its_arms_and_every_fusion(file: Path) -> None:
    main = composed(f"experiment={file.stem}")
    for arm in main.arms:
        other = composed(f"experiment={file.stem}", f"arm={arm}")
        assert other.arm == arm
        assert other.expand.selection == main.expand.selection, "arms have equal budgets"
    chosen = [
        composed(f"experiment={file.stem}", f"fusion={fusion.stem}").model["fusion"]
        for fusion in (CONF / "fusion").glob("*.yaml")
    ]
    assert chosen.count(main.model["fusion"]) == 1, "its own, and every other is another"


@pytest.mark.parametrize("file", sorted((CONF / "debug").glob("*.yaml")), ids=lambda p: p.stem)
def test_debug_configs_override_experiments(file: Path) -> None:
    settings = composed("experiment=demo", f"debug={file.stem}")
    assert settings.name == f"debug_{file.stem}"
    assert settings.arms == ()


@pytest.mark.parametrize("data", sorted((CONF / "data").glob("*.yaml")), ids=lambda p: p.stem)
@pytest.mark.parametrize("size", sorted((CONF / "size").glob("*.yaml")), ids=lambda p: p.stem)
def test_prepare_composes(data: Path, size: Path) -> None:
    config = compose_config("prepare", [f"data={data.stem}", f"size={size.stem}"])
    if data.stem == "prepared":
        assert config.data.source == "prepared"
        return
    prepared = data_config(as_dict(config.data))
    assert prepared.name == data.stem
    if isinstance(prepared, PrepareConfig):
        assert prepared.first == OmegaConf.load(size).first
    else:
        assert prepared.shard_clips == OmegaConf.load(data).shard_clips


@pytest.mark.parametrize("name", COMMANDS)
def test_root_files_of_commands_compose(name: str) -> None:
    values = as_dict(compose_config(name, []))
    assert values["runs"] == "runs"
    for group, kind in (("decode", DecodePolicy), ("prefix", PrefixConfig)):
        if name not in ("prepare", "export", "predict"):
            build(group, kind, values[group])


def test_threshold_and_broadening_belong_to_the_arm() -> None:
    broad, plain = composed("arm=lsb_lt").expand, composed("arm=entropy").expand
    assert broad.broadening.entropy > 0
    assert broad.threshold.mode == "calibrated"
    assert plain.broadening.entropy == 0
    assert plain.threshold.mode == "none"


def test_runs_of_before_gradients_had_a_type_go_on() -> None:
    plain = composed("experiment=tiny", "strategy=zero2")
    assert plain.identity["strategy"] == {"name": "zero2", "bucket_size": 50_000_000}
    rounded = composed("experiment=tiny", "strategy.communication_data_type=bf16")
    assert rounded.identity["strategy"] == {"name": "ddp", "communication_data_type": "bf16"}


def test_identity_leaves_out_where_and_how_fast() -> None:
    base = composed("experiment=tiny").identity
    elsewhere = ["runs=/elsewhere", "prefix.processes=9", "data.processes=3", "loader.workers=4"]
    same = composed("experiment=tiny", *elsewhere, "trainer.save_every_steps=7")
    assert same.identity == base
    assert composed("experiment=tiny", "trainer.seed=1").identity != base
    assert composed("experiment=tiny", "decode.frames=4").identity != base


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("task.names=[relevance,violence]", r"task\.names has \['violence'\]"),
        ("rounds=-1", "rounds is -1"),
        ("name=a/b", "name is 'a/b'"),
        ("+acquisition.task_weights.policy=1.0", r"task_weights names \['policy'\]"),
        ("+data.colour=red", r"data .*'colour'"),
        ("data.broken=0.9", r"data\.broken is 0\.9"),
    ],
)
def test_values_out_of_range_name_the_key(override: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        composed(override)


def test_as_dict_wants_a_mapping() -> None:
    with pytest.raises(ValueError, match="expected a config mapping, got list"):
        as_dict(OmegaConf.create([1]))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("override", "expected"),
    [("arm=lsbx", "lsb_lt"), ("experiement=demo", "experiement")],
)
def test_typo_is_one_line_and_leaves_nothing(tmp_path: Path, override: str, expected: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launch.round", override],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert expected in lines[0]
    assert done.stdout == ""
    assert not list(tmp_path.iterdir())
