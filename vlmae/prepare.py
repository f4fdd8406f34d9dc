"""Make a data set: `python -m vlmae.prepare data=avt_compose size=small data.sources=<folder>`.

Of media that exist already: `python -m vlmae.prepare data=folder data.path=<folder> data.name=mine`
(or data=manifest, data=shards). Running it again reuses what is finished and goes on where a killed
run stopped.
"""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lsb.artifact import Stage
from lsb.kept import keep
from vlmae.config import as_dict, command
from vlmae.data.prepare import (
    BROKEN_KINDS,
    SPLITS,
    TASKS,
    IngestConfig,
    PrepareConfig,
    data_config,
    prepare,
    read_index,
)


def summarise(stage: Stage, config: PrepareConfig | IngestConfig) -> Table:
    """What is in every split, and how large it is, as a table for people."""
    if isinstance(config, IngestConfig):
        return _summarise_ingested(stage, config)
    kind = "SYNTHETIC media" if config.synthetic else "real media, composed labels"
    table = Table(title=f"{config.name}, seed {config.seed}: {kind}")
    table.add_column("")
    for split in SPLITS:
        table.add_column(split, justify="right")
    clips = {split: stage.counts.get(f"{split}.clips", 0) for split in SPLITS}
    table.add_row("clips", *(str(count) for count in clips.values()))
    for task in TASKS:
        positives = [stage.counts.get(f"{split}.{task}", 0) for split in SPLITS]
        shares = zip(positives, clips.values(), strict=True)
        table.add_row(f"{task} %", *(f"{100 * found / max(of, 1):.1f}" for found, of in shares))
    for kind in BROKEN_KINDS:
        broken = [stage.counts.get(f"{split}.broken.{kind}", 0) for split in SPLITS]
        table.add_row(f"broken: {kind.replace('_', ' ')}", *(str(count) for count in broken))
    sizes = [sum(path.stat().st_size for path in stage.path.glob(f"{split}-*")) for split in SPLITS]
    table.add_row("MB", *(f"{size / 1e6:.1f}" for size in sizes))
    return table


def _summarise_ingested(stage: Stage, config: IngestConfig) -> Table:
    """Clips, shards, size and length of every split; what was skipped, by reason, of all."""
    index, counts = read_index(stage), stage.counts
    splits = sorted(key.removesuffix(".clips") for key in counts if key.endswith(".clips"))
    splits = splits or [config.split]
    synthetic = sum(count for key, count in counts.items() if key.endswith(".synthetic"))
    kind = f"{synthetic} clips of SYNTHETIC media" if synthetic else f"from {config.source}"
    # As wide as the title wants: a table of one split is narrower than it.
    table = Table(title=f"{config.name}: {kind}", min_width=len(config.name) + len(kind) + 2)
    for column in ("", *splits, "all"):
        table.add_column(column, justify="right" if column else "left")
    held = [index.filter(pc.equal(index["split"], pa.scalar(split))) for split in splits]
    held.append(index)
    table.add_row("clips", *(str(part.num_rows) for part in held))
    shards = [str(len(pc.unique(part["shard"]))) for part in held]
    table.add_row("shards", *shards)
    table.add_row("MB", *(f"{(pc.sum(part['size']).as_py() or 0) / 1e6:.1f}" for part in held))
    hours = [(pc.sum(part["duration_s"]).as_py() or 0.0) / 3600 for part in held]
    table.add_row("hours", *(f"{length:.2f}" for length in hours))
    skipped = [counts.get(f"{split}.skipped", 0) for split in splits]
    table.add_row("skipped", *(str(count) for count in [*skipped, sum(skipped)]))
    blank = [""] * len(splits)
    for reason in sorted(key for key in counts if key.startswith("skipped: ")):
        table.add_row(f"  {reason.removeprefix('skipped: ')}", *blank, str(counts[reason]))
    if counts.get("sound dropped"):
        table.add_row("sound dropped", *blank, str(counts["sound dropped"]))
    return table


@command("prepare")
def main(config: DictConfig) -> None:
    """Make or reuse the data set of the config groups `data` and `size`."""
    chosen = data_config(as_dict(config.data))
    root = Path(config.runs) / "stages"
    stage = keep(root, prepare(root, chosen), "vlmae.prepare")
    console = Console()
    console.print(summarise(stage, chosen))
    console.print(
        f"{stage.path}: {'reused' if stage.reused else 'made'}, {stage.seconds:.1f} s to make",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
