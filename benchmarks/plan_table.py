"""Settings by model size, as `launch.plan` finds them.

    python -m benchmarks.plan_table [--machines]

For every pair of towers and way to tune them: 8 GPUs of 80 GiB, 8 clips a GPU and micro-batch, 8
frames, 10 s of sound, bfloat16 autocast, tokens in front of the cut from the cache; with --machines
the larger ones on several such machines. Where DDP does not fit, the first settings that do
(`launch.jobs.planning.Planner.alternatives`). Nothing is trained; the tables of docs/topology.md
are the output.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from benchmarks.published_towers import write_towers
from launch.jobs.planning import GIB, Planner
from vlmae.config import as_dict, compose_config

COMMON = (
    "trainer=gpu",
    "trainer.batch_size=8",
    "trainer.precision=bf16-mixed",
    "decode.frames=8",
    "prefix.use=require",
    "launcher=slurm",
    "launcher.ranks=8",
    "plan.seconds=10",
)
MACHINES = (2, 4, 8)
TINY = ("vl=image_text", "audio=whisper_tiny")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        towers: names.
        tuning: in words.
        overrides: of `launch.plan`, beside `COMMON`.
        nodes: machines.
    """

    towers: str
    tuning: str
    overrides: tuple[str, ...]
    nodes: int = 1


def rows(folder: Path) -> Iterator[Row]:
    """All lines.

    Args:
        folder: where towers without weights are written to.
    """
    made = write_towers(folder)
    pairs: list[tuple[str, tuple[str, ...], int]] = [
        ("EfficientNet-Lite0 + MiniLM, whisper-tiny", TINY, 0),
        (
            "CLIP ViT-B/32, whisper-base",
            (f"vl=clip vl.model={made['clip-vit-base-patch32']}", _audio(made["whisper-base"])),
            0,
        ),
    ]
    for name, kind, blocks in (
        ("Qwen3-VL-2B", "qwen3_vl", 25),
        ("Qwen3-VL-8B", "qwen3_vl", 33),
        ("Qwen2.5-VL-72B", "qwen2_5_vl", 80),
    ):
        vl = f"vl={kind} vl.model={made[name]}"
        pairs.append((f"{name}, whisper-large-v3", (vl, _audio(made["whisper-large-v3"])), blocks))
    for towers, nodes, blocks in pairs:
        words = tuple(word for node in nodes for word in node.split(" "))
        yield Row(towers, "frozen", (*words, "tuning=frozen"))
        yield Row(towers, "last 2 blocks", (*words, "tuning=last_2"))
        yield Row(towers, "LoRA, last 2 blocks", (*words, "tuning=lora"))
        if blocks:
            lora = f"tuning.vl.blocks={blocks}"
            yield Row(towers, f"LoRA, {blocks} VL blocks", (*words, "tuning=lora", lora))
            yield Row(towers, f"{blocks} VL blocks", (*words, "tuning=last_2", lora))
        else:
            live = ("tuning=full", "prefix.use=off")
            yield Row(towers, "full, live", (*words, *live))


def rows_of_machines(folder: Path) -> Iterator[Row]:
    """Blocks of the vision-language tower that train, up to what fits at all, on several machines.

    Args:
        folder: where towers without weights are written to.
    """
    made = write_towers(folder)
    audio = _audio(made["whisper-large-v3"])
    for name, kind, blocks in (
        ("Qwen3-VL-8B", "qwen3_vl", 33),
        ("Qwen2.5-VL-72B", "qwen2_5_vl", 8),
        ("Qwen2.5-VL-72B", "qwen2_5_vl", 14),
        ("Qwen2.5-VL-72B", "qwen2_5_vl", 16),
    ):
        words = f"vl={kind} vl.model={made[name]} {audio} tuning=last_2 tuning.vl.blocks={blocks}"
        for nodes in MACHINES:
            tuning = f"last {blocks} VL blocks"
            yield Row(f"{name}, whisper-large-v3", tuning, tuple(words.split(" ")), nodes)


def line(row: Row, *, machines: bool = False) -> str:
    """A row of the table in Markdown; with `machines` their number is in it."""
    overrides = [*COMMON, *row.overrides, f"launcher.nodes={row.nodes}"]
    config = compose_config("plan", overrides)
    planner = Planner(cast(dict[str, Any], as_dict(config)))
    need = planner.need(planner.asked)
    asked = _gib(need.gpu_peak[1])
    trained = f"{sum(planner.size.trained) / 1e6:,.1f} M"
    model = f"| {row.towers} | {row.tuning} | {trained} |" + f" {row.nodes} |" * machines
    if planner.fits(need):
        settings, most, host = "as it is", need.gpu_peak, need.node
    else:
        found = planner.nearest()
        if found is None:
            return f"{model} {asked} | does not fit | | |"
        settings = "`" + " ".join(found[1]) + "`"
        there = planner.need(found[0])
        most, host = there.gpu_peak, there.node
    cells = (f"{_gib(most[1])} ({most[0]})", f"{host / GIB:.0f}")
    return f"{model} {asked} | {settings} | {' | '.join(cells)} |"


def _gib(size: int) -> str:
    return "< 0.05" if size < 0.05 * GIB else f"{size / GIB:.1f}"


def _audio(folder: Path) -> str:
    return f"audio=whisper audio.model={folder}"


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--machines", action="store_true", help="the table of several machines")
    machines = parser.parse_args().machines
    more = (" machines |", "---:|") if machines else ("", "")
    print(
        f"| towers | trains | parameters |{more[0]} DDP, GiB | settings | GPU, GiB (phase) "
        "| host, GiB |"
    )
    print(f"|---|---|---:|{more[1]}---:|---|---:|---:|")
    with tempfile.TemporaryDirectory() as folder:
        for row in (rows_of_machines if machines else rows)(Path(folder)):
            print(line(row, machines=machines), flush=True)


if __name__ == "__main__":
    main()
