"""Make a data set: `python -m vlmae.prepare data=avt_compose size=small data.sources=<folder>`.

Running it again reuses what is finished and goes on where a killed run stopped.
"""

from __future__ import annotations

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lsb.artifact import Stage
from vlmae.config import as_dict, build, command
from vlmae.data.prepare import BROKEN_KINDS, SPLITS, TASKS, PrepareConfig, prepare


def summarise(stage: Stage, config: PrepareConfig) -> Table:
    """Clips, positives, broken clips and size of every split, as a table for people."""
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


@command("prepare")
def main(config: DictConfig) -> None:
    """Make or reuse the data set of the config groups `data` and `size`."""
    chosen = build("data", PrepareConfig, as_dict(config.data))
    stage = prepare(Path(config.runs) / "stages", chosen)
    console = Console()
    console.print(summarise(stage, chosen))
    console.print(
        f"{stage.path}: {'reused' if stage.reused else 'made'}, {stage.seconds:.1f} s to make",
        highlight=False,
        soft_wrap=True,
    )


if __name__ == "__main__":
    main()
