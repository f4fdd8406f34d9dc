"""One composed config as typed settings: what every stage of a round is called with."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig
from typing_extensions import TypedDict

from launch.jobs.launcher_config import LauncherConfig, launcher_config
from launch.stages.annotators import NOT_HASHED as ORACLE_NOT_HASHED
from launch.stages.annotators import HandOffConfig, OracleConfig, oracle_config
from launch.stages.data_set import DataSet
from launch.stages.ledgers import ArmLedger, LedgerConfig
from launch.stages.run_folder import run_name
from lsb.acquisition.seeds import BroadeningConfig
from lsb.annotate.simulated import FURTHER
from lsb.expand import AcquisitionConfig, ExpandConfig
from lsb.ledger import MergeConfig
from lsb.pseudo import PseudoConfig
from lsb.search.config import NOT_HASHED as SEARCH_NOT_HASHED
from lsb.search.config import SearchConfig
from lsb.search.faiss_config import FaissConfig
from lsb.selection import SelectionConfig
from lsb.shortlist.config import ShortlistConfig
from lsb.threshold import ThresholdConfig
from vlmae.config import as_dict, build, checked
from vlmae.data.decode import DecodePolicy
from vlmae.data.loader import LoaderConfig
from vlmae.data.prefix_cache import PrefixConfig
from vlmae.evaluation import EvaluateConfig
from vlmae.growing.config import GrowingConfig, require_whole_pool
from vlmae.growing.settings import with_groups
from vlmae.loggers import LoggerConfig
from vlmae.optimizers import OptimizerConfig
from vlmae.settings import model_config, tower_nodes
from vlmae.strategy import StrategyConfig
from vlmae.trainer import TrainConfig
from vlmae.training import NOT_HASHED

# Keys that say where and how fast, not what: a run may be continued with other values.
NOT_IDENTITY = ("runs", "rounds", "arms", "controls", "logger", "launcher", "compare", "pilot")
NOT_IDENTITY_OF = {
    "data": ("sources", "cache", "processes"),
    "clips": ("labels",),
    "prefix": ("processes", "use"),
    "variants": ("processes",),
    "loader": ("workers", "prefetch"),
    "trainer": NOT_HASHED,
    "search": SEARCH_NOT_HASHED,
    "oracle": ORACLE_NOT_HASHED,
    "ledger": ("location",),
}


KINDS: dict[str, Any] = {
    "name": str,
    "runs": str,
    "rounds": int,
    "budgets": list[int],
    "arm_name": str,
    "arms": list[str],
    "controls": bool,
}


MEASURED = ("test", "development")


@dataclass(frozen=True)
class ClipsConfig:
    """Which clips are labelled before the first round, and which the model is measured on.

    Attributes:
        first: clips of the splits first and pool, drawn by the run's seed; None takes all of first.
        gold: clips of the split gold that are labelled, by the order of their ids, which are
            hashes; None takes all.
        measured: "test", or "development": the gold clips that are not labelled.
        labels: table of what is known of media that exist already (`launch.stages.data_set`).
    """

    first: int | None = None
    gold: int | None = None
    measured: str = "test"
    labels: str | None = None

    def __post_init__(self) -> None:
        for name in ("first", "gold"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"clips.{name} is {value}: give at least 1, or null for all")
        if self.measured not in MEASURED:
            raise ValueError(
                f"clips.measured is {self.measured!r}: use one of {', '.join(MEASURED)}"
            )
        if self.measured == "development" and self.gold is None:
            raise ValueError(
                "clips.measured is development, but all gold clips are labelled: set clips.gold"
            )


class WhiteningOptions(TypedDict):
    """What the whitening is fitted on, and whether whitened tokens are kept."""

    splits: list[str]
    clips: int
    keep_tokens: bool


@dataclass(frozen=True)
class Settings:
    """Everything a round needs.

    Attributes:
        name: of the run; its folder is `runs / name`.
        runs: folder of runs and stages.
        rounds: how often labels are added.
        budgets: clips asked in rounds 1, 2, ...; empty for `selection.budget` in all.
        arm: preset of acquisition and broadening.
        arms: presets compared with it at equal budgets.
        controls: whether models without one modality are trained for comparison.
        tasks: task names, in the order of the heads.
        data: the data set, and what is known of its clips.
        vl: Hydra node of the vision-language backbone.
        audio: Hydra node of the audio backbone.
        decode: which frames are read.
        prefix: how tokens are kept, and parallelism of the cache.
        whitening: splits and number of clips it is fitted on; whether whitened tokens are kept.
        loader: composition of batches.
        model: fusion, tasks and dropout, see `vlmae.checkpoint.build_model`.
        objective: Hydra node of the objective.
        strategy: how ranks share the work.
        optimizer: its settings.
        train: length, seed, device.
        logger: what trainings log where.
        evaluate: metrics.
        clips: who is labelled first, and who is measured.
        shortlist: the scoring budget, and how it is spent.
        expand: acquisition, seeds, LT, search, selection.
        oracle: who labels, see `launch.stages.annotators`.
        merge: how the answers of several annotators become one label.
        ledgers: where the labels of each arm are.
        launcher: where stages are made.
        pseudo: when the model may label clips itself.
        growing: when a training grows between its epochs.
        identity: the composed config without keys that do not change results.
    """

    name: str
    runs: Path
    rounds: int
    budgets: tuple[int, ...]
    arm: str
    arms: tuple[str, ...]
    controls: bool
    tasks: tuple[str, ...]
    data: DataSet
    vl: dict[str, Any]
    audio: dict[str, Any]
    decode: DecodePolicy
    prefix: PrefixConfig
    whitening: WhiteningOptions
    loader: LoaderConfig
    model: dict[str, Any]
    objective: dict[str, Any]
    strategy: StrategyConfig
    optimizer: OptimizerConfig
    train: TrainConfig
    logger: LoggerConfig
    evaluate: EvaluateConfig
    clips: ClipsConfig
    shortlist: ShortlistConfig
    expand: ExpandConfig
    oracle: OracleConfig
    merge: MergeConfig
    ledgers: LedgerConfig
    launcher: LauncherConfig
    pseudo: PseudoConfig
    growing: GrowingConfig
    identity: dict[str, Any]

    @property
    def stages(self) -> Path:
        """Folder of all stages."""
        return self.runs / "stages"

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.runs / self.name

    @property
    def ledger(self) -> ArmLedger:
        """Where the arm's labels are."""
        return self.ledgers.of_arm(self.folder, self.arm)

    def in_round(self, number: int) -> Settings:
        """The same with the budget of one round, from 1 on."""
        if not self.budgets:
            return self
        selection = replace(self.expand.selection, budget=self.budgets[number - 1])
        return replace(self, expand=replace(self.expand, selection=selection))

    def require_rounds(self, command: str) -> None:
        """Refuse a training that grows, where what was asked and what it cost is told by rounds.

        Args:
            command: that tells it.

        Raises:
            ValueError: names the key and the remedy.
        """
        if self.growing.on:
            raise ValueError(
                f"growing.every_epochs is {self.growing.every_epochs}: all expansions of a "
                f"training that grows make one round of launch.round, and {command} counts by "
                "rounds; set growing=none and rounds=<n>, which chooses by the same arms, or see "
                "what a run that grows has asked and spent with python -m lsb.status "
                f"{self.ledger.location}"
            )

    @classmethod
    def from_config(cls, config: DictConfig) -> Settings:
        """Build and check.

        Raises:
            ValueError: a value is out of range or of the wrong kind; names the key.
        """
        values = cast(dict[str, Any], as_dict(config))
        for key, kind in KINDS.items():
            values[key] = checked(key, kind, values[key])
        tasks = tuple(checked("task.names", list[str], values["task"]["names"]))
        clips = build("clips", ClipsConfig, values["clips"])
        data = DataSet.from_values(values["data"], clips.labels, tasks)
        if values["rounds"] < 0:
            raise ValueError(f"rounds is {values['rounds']}: give 0 or more")
        run_name(values["name"])
        acquisition = build("acquisition", AcquisitionConfig, values["acquisition"])
        acquisition = with_groups(acquisition, values["objective"])
        if not acquisition.task_weights:
            acquisition = replace(acquisition, task_weights=dict.fromkeys(tasks, 1.0))
        untold = sorted(set(acquisition.task_weights) - set(tasks))
        if untold:
            raise ValueError(
                f"acquisition.task_weights names {untold}, the model has the tasks {list(tasks)}"
            )
        growing = build("growing", GrowingConfig, values["growing"])
        if growing.on and values["rounds"]:
            raise ValueError(
                f"rounds is {values['rounds']} and growing.every_epochs {growing.every_epochs}: a "
                "training that grows adds its labels itself; set rounds=0, or growing=none"
            )
        shortlist = build("shortlist", ShortlistConfig, values["shortlist"])
        pseudo = build("pseudo", PseudoConfig, values["pseudo"])
        if growing.on:
            _require_read(shortlist, pseudo, values["budgets"])
        oracle = oracle_config(values["oracle"])
        if isinstance(oracle, HandOffConfig) and values["selection"].get("carry_labels"):
            raise ValueError(
                "selection.carry_labels is true, but the annotators are people, whose answers come "
                "when they can: set it to false; copies are dropped all the same"
            )
        merge = dict(values["ledger"])
        ledgers = build("ledger", LedgerConfig, {"location": merge.pop("location", None)})
        ledgers.require_arms([values["arm_name"], *values["arms"]])
        vl, audio = tower_nodes(values)
        return cls(
            name=values["name"],
            runs=Path(values["runs"]),
            rounds=values["rounds"],
            budgets=_budgets(values["budgets"], values["rounds"]),
            arm=values["arm_name"],
            arms=tuple(values["arms"]),
            controls=values["controls"],
            tasks=tasks,
            data=data,
            vl=vl,
            audio=audio,
            decode=build("decode", DecodePolicy, values["decode"]),
            prefix=build("prefix", PrefixConfig, values["prefix"]),
            whitening=checked("whitening", WhiteningOptions, values["whitening"]),
            loader=build("loader", LoaderConfig, values["loader"]),
            model=model_config(values, tasks),
            objective=values["objective"],
            strategy=build("strategy", StrategyConfig, values["strategy"]),
            optimizer=build("optimizer", OptimizerConfig, values["optimizer"]),
            train=build("trainer", TrainConfig, values["trainer"]),
            logger=build("logger", LoggerConfig, values["logger"]),
            evaluate=build("evaluation", EvaluateConfig, values["evaluation"]),
            clips=clips,
            shortlist=shortlist,
            expand=ExpandConfig(
                acquisition=acquisition,
                broadening=build("broadening", BroadeningConfig, values["broadening"]),
                threshold=build("threshold", ThresholdConfig, values["threshold"]),
                search=_search(values["search"]),
                selection=build("selection", SelectionConfig, values["selection"]),
            ),
            oracle=oracle,
            merge=build("ledger", MergeConfig, merge),
            ledgers=ledgers,
            launcher=launcher_config(values["launcher"]),
            pseudo=pseudo,
            growing=growing,
            identity=_identity(values),
        )


def _require_read(shortlist: ShortlistConfig, pseudo: PseudoConfig, budgets: list[int]) -> None:
    """Refuse what a training that grows would not do, though the config says so."""
    require_whole_pool(shortlist)
    if budgets:
        raise ValueError(
            f"budgets is {budgets}, and a training that grows asks for growing.budget clips in "
            "each expansion: leave budgets empty, or grow between rounds (growing=none rounds=<n>)"
        )
    if pseudo.mode != "none":
        raise ValueError(
            f"pseudo.mode is {pseudo.mode!r}, and a training that grows makes no pseudo-labels: "
            "set pseudo=none, or grow between rounds (growing=none rounds=<n>)"
        )


def _budgets(budgets: list[int], rounds: int) -> tuple[int, ...]:
    if budgets and (len(budgets) < rounds or min(budgets) < 1):
        raise ValueError(
            f"budgets is {budgets} for {rounds} rounds: give 1 or more for each of them, or none "
            "for selection.budget in all"
        )
    return tuple(budgets)


def _search(values: dict[str, Any]) -> SearchConfig:
    """An exact search, or an approximate one where an index is named."""
    if "factory" in values:
        return build("search", FaissConfig, values)
    return build("search", SearchConfig, values)


def _identity(values: dict[str, Any]) -> dict[str, Any]:
    """What two runs under one name must share: no paths, no degree of parallelism."""
    kept = {key: value for key, value in values.items() if key not in NOT_IDENTITY}
    for group, keys in NOT_IDENTITY_OF.items():
        if group not in values:  # not every command has it
            continue
        kept[group] = {k: v for k, v in values[group].items() if k not in keys}
    if values["pseudo"]["mode"] == "none":  # runs of before there was a choice go on
        del kept["pseudo"]
    if not values["budgets"]:
        del kept["budgets"]
    if not values["whitening"]["keep_tokens"]:  # the same
        kept["whitening"] = {k: v for k, v in values["whitening"].items() if k != "keep_tokens"}
    if not values["growing"]["every_epochs"]:  # as runs were before there was such a group
        del kept["growing"]
    oracle = values["oracle"]
    if oracle.get("kind") == "simulated" and oracle.get(FURTHER):  # of people it may be raised
        kept["oracle"][FURTHER] = oracle[FURTHER]
    if values["strategy"]["communication_data_type"] == "fp32":  # the same
        kept["strategy"] = dict(values["strategy"])
        del kept["strategy"]["communication_data_type"]
    world = launcher_config(values["launcher"]).world
    return kept if world == 1 else {**kept, "ranks": world}
