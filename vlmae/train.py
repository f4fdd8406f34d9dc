"""Train on a table of labels: `python -m vlmae.train data=... labels=<file> validation=<file>`.

Tables are parquet or CSV with `key` and `label_<task>` for every task (0, 1 or empty), optionally
`source`, `round` and `weight`. Reads a finished cache of the frozen tokens where there is one, else
decodes as it goes. Several ranks: `torchrun --nproc-per-node 2 -m vlmae.train ...`. Killed and
started again it goes on from the last save, to the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig
from rich.console import Console

from lsb.artifact import Stage
from lsb.kept import keep
from vlmae.config import as_dict, build, checked, command
from vlmae.data.decode import DecodePolicy
from vlmae.data.labels import WEIGHT, read_labels
from vlmae.data.loader import LoaderConfig
from vlmae.data.order import BatchOrder
from vlmae.data.prefix_cache import PrefixConfig, has_cache_of_towers
from vlmae.data.prepare import data_config
from vlmae.data.redaction import require_redacted
from vlmae.data.token_source import Say, TokenSource, no_cache, open_source
from vlmae.data.whitened import WhitenedTokens, keep_whitened, require_keepable
from vlmae.data.whitening import whiten
from vlmae.growing.settings import growing_of
from vlmae.loggers import LoggerConfig
from vlmae.optimizers import OptimizerConfig
from vlmae.parameter_counts import part_table
from vlmae.ranks import Ranks
from vlmae.settings import PREPARED, model_config, prefix_of, prepared_data, tower_nodes
from vlmae.strategy import StrategyConfig
from vlmae.trainer import TrainConfig
from vlmae.training import Training, train

SOURCE = ("data", "vl", "audio", "tuning", "decode", "prefix")
"""Groups of a config that say which tokens are trained on."""


@command("train")
def main(config: DictConfig) -> None:
    """Make, finish or reuse a checkpoint."""
    ranks = Ranks.from_environment()
    with ranks.together():
        train_from_config(cast(dict[str, Any], as_dict(config)), ranks)


def train_from_config(values: Mapping[str, Any], ranks: Ranks) -> Stage:
    """Make, finish or reuse the checkpoint of a composed config. Collective: all ranks call it.

    Args:
        values: of `conf/train.yaml`, as plain containers.
        ranks: the processes that train together, connected.

    Raises:
        ValueError: a value is wrong, or see `vlmae.training.train`.
    """
    root = Path(values["runs"]) / "stages"
    console = Console(log_path=False, quiet=not ranks.first)
    tokens = partial(token_source, values, ranks, console.log)
    stage = train(root, training_of(values, ranks, tokens))
    if ranks.first:
        keep(root, stage, "vlmae.train")
    console.print(part_table(stage.counts))
    console.print(
        f"{stage.path}: {'reused' if stage.reused else 'made'}, {stage.counts['labels']} labels, "
        f"{stage.counts['labels skipped']} in quarantine, {stage.seconds:.1f} s to make",
        highlight=False,
        soft_wrap=True,
    )
    return stage


def require_trainable(values: Mapping[str, Any], ranks: Ranks) -> None:
    """Refuse what `train_from_config` would refuse, without media, models and companions.

    For whoever sends trainings elsewhere: a slip of the pen is told before anybody waits for nodes.

    Args:
        values: see `train_from_config`.
        ranks: as many as will train; not connected.

    Raises:
        ValueError: a value is wrong, or labels, the prepared data set or the required cache of
            its tokens are absent, or there are too few labels for a step of all ranks.
    """
    tasks = checked("task.names", list[str], values["task"]["names"])
    config = build("trainer", TrainConfig, values["trainer"])
    build("strategy", StrategyConfig, values["strategy"]).check(config.accelerator, ranks)
    loader = build("loader", LoaderConfig, values["loader"])
    build("optimizer", OptimizerConfig, values["optimizer"])
    build("logger", LoggerConfig, values["logger"])
    build("decode", DecodePolicy, values["decode"])
    prefix = build("prefix", PrefixConfig, values["prefix"])
    towers = tower_nodes(values)
    growing_of(values, tasks)
    labelled = read_labels(values["labels"], "labels", tasks)
    read_labels(values["validation"], "validation", tasks)
    BatchOrder(
        labelled.num_rows,
        world=ranks.size,
        config=loader.order(config.batch_size, config.seed, config.accumulate),
        weights=loader.weighted(labelled, tasks)[WEIGHT].to_numpy(),
    )
    if values["data"].get("source") == PREPARED:
        root = Path(values["runs"]) / "stages"
        data = prepared_data(values, root, verify=False)
        if prefix.use == "require" and not has_cache_of_towers(root, data, *towers, prefix.dtype):
            raise no_cache(root)
    else:
        data_config(values["data"])


def token_source(values: Mapping[str, Any], ranks: Ranks, say: Say) -> TokenSource:
    """The tokens that a config trains on, of the groups in `SOURCE`. Collective.

    Args:
        values: see `train_from_config`.
        ranks: see there.
        say: called with whether there is a cache.

    Raises:
        ValueError: a value is wrong, or the data cannot be prepared.
    """
    root = Path(values["runs"]) / "stages"
    data = require_redacted(root, ranks.once(partial(prepared_data, values, root)))
    return open_source(root, prefix_of(values, data), say)


def training_of(
    values: Mapping[str, Any], ranks: Ranks, tokens: Callable[[], TokenSource]
) -> Training:
    """The training of a composed config, ready to run. Collective.

    Args:
        values: see `train_from_config`.
        ranks: see there.
        tokens: gives the tokens of `token_source`; called when cheaper mistakes are excluded.

    Raises:
        ValueError: a value is wrong, or labels are absent.
    """
    root = Path(values["runs"]) / "stages"
    tasks = checked("task.names", list[str], values["task"]["names"])
    labelled = read_labels(values["labels"], "labels", tasks)
    validation = read_labels(values["validation"], "validation", tasks)
    settings = build("trainer", TrainConfig, values["trainer"])
    loader = build("loader", LoaderConfig, values["loader"])
    optimizer = build("optimizer", OptimizerConfig, values["optimizer"])
    growing = growing_of(values, tasks)
    source = tokens()
    keep_tokens = checked("whitening.keep_tokens", bool, values["whitening"]["keep_tokens"])
    cached = require_keepable(source) if keep_tokens else None
    whitened = ranks.once(
        partial(
            whiten,
            root,
            source,
            components=checked("model.components", int, values["model"]["components"]),
            splits=checked("whitening.splits", list[str], values["whitening"]["splits"]),
            clips=checked("whitening.clips", int, values["whitening"]["clips"]),
        )
    )
    prefix = build("prefix", PrefixConfig, values["prefix"])
    if cached is not None:
        keep_them = partial(keep_whitened, root, source, whitened, processes=prefix.processes)
        source = WhitenedTokens(cached.cache, ranks.once(keep_them))
    return Training(
        source=source,
        whitened=whitened,
        labelled=labelled,
        validation=validation,
        model=model_config(values, tasks),
        objective=values["objective"],
        optimizer=optimizer,
        config=settings,
        loader=loader,
        strategy=build("strategy", StrategyConfig, values["strategy"]),
        skip_limit=prefix.skip_limit,
        ranks=ranks,
        logs=root.parent / "logs",
        logger=build("logger", LoggerConfig, values["logger"]),
        growing=growing,
    )


if __name__ == "__main__":
    main()
