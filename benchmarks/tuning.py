"""What a cache gains where blocks train: `python -m benchmarks.tuning [--quick] [--write-docs]`.

The last two blocks of encoders train, so a cached epoch still computes them,
forward and backward. Both ways start from the same seed and see the same batches; how far
apart their logits are after that epoch stands below the table.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import lightning
import numpy as np
import pyarrow as pa
import torch
from rich.console import Console
from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

from benchmarks.data.bench import Bench
from benchmarks.data.epochs import Setting, cached_loader, fit_epochs, live_loader, live_ways
from benchmarks.measure import Row, Table, Timing, costs, rates
from benchmarks.report import (
    COLUMNS,
    load,
    machine,
    number,
    print_table,
    save,
    write_document,
)
from lsb import ids as sample_ids
from vlmae.model import VlmaeModel
from vlmae.prediction import Predictions, predict_clips

NAME = "tuning"
CASES = {
    "last 2 blocks of both towers": ("tuning=last_2",),
    # Whisper tiny has four blocks: half of it trains above.
    "last 2 blocks of image and text, audio frozen": (
        *("tuning=last_2", "tuning.audio.mode=frozen", "tuning.audio.blocks=0"),
    ),
}
# As deep as the encoders that people tune. Speed does not depend on what weights say.
DEEP_CASE = "last 2 blocks of both towers, audio encoder of 12 blocks with random weights"
DEEP_BLOCKS, DEEP_WIDTH = 12, 384
WANTED = 2
TOLERANCE = 2e-2
"""Of logits, which one epoch spreads over about 1; the cache is rounded to float16."""
PACKAGES = ("torch", "torchcodec", "av", "lightning", "transformers", "numpy")
DOCUMENT = Path("docs/performance.md")
Way = TypeVar("Way", Setting, int)


def save_deep_whisper(folder: Path) -> str:
    """A Whisper of 12 encoder blocks as wide as Whisper tiny's, as `from_pretrained` reads it."""
    config = WhisperConfig(
        vocab_size=64,
        d_model=DEEP_WIDTH,
        encoder_layers=DEEP_BLOCKS,
        encoder_attention_heads=6,
        encoder_ffn_dim=4 * DEEP_WIDTH,
        decoder_layers=1,
        decoder_attention_heads=6,
        decoder_ffn_dim=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    torch.manual_seed(0)
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    WhisperFeatureExtractor(feature_size=config.num_mel_bins).save_pretrained(folder)
    return str(folder)


def run(benches: Mapping[str, Bench]) -> Table:
    """Epochs from the cache against the fastest live epochs.

    Args:
        benches: what trains, in words -> the benchmark's run with that tuning.
    """
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*LeafSpec.*is deprecated")
    rows: list[Row] = []
    notes = ["Building the cache is not counted."]
    for case, bench in benches.items():
        more, said = _compare(case, bench)
        rows += more
        notes += said
    bench = next(iter(benches.values()))
    return Table(
        NAME,
        "an epoch of training cross-attention and the last blocks of its towers",
        f"{bench.described}; {bench.settings.decode.frames} frames; cache in "
        f"{bench.settings.prefix.dtype}",
        f"the fastest live epoch; torch {torch.__version__}, lightning {lightning.__version__}",
        "speed relative to the live epoch",
        rows,
        notes,
    )


def _compare(what: str, bench: Bench) -> tuple[list[Row], list[str]]:
    """One tuning: the two rows, live first, and what there is to say of them."""
    labelled = bench.labelled()
    probe = labelled.slice(0, 8 if bench.quick else 96)
    ways = live_ways(bench)
    threads = [1] if bench.quick else sorted({1, bench.cores})
    _epoch(bench, probe.slice(0, 8), ways[0])  # what is made once: cache, whitening
    live, tried_live = _fastest(bench, probe, ways)
    fast, tried_cached = _fastest(bench, probe, threads)
    names = (f"live ({live})", f"cached ({fast} threads)")
    turns: dict[str, list[Timing]] = {name: [] for name in names}
    models: list[VlmaeModel] = []
    chosen: tuple[Setting | int, ...] = (live, fast)
    for _ in range(bench.turns(3)):
        for name, way in zip(names, chosen, strict=True):
            timing, model = _epoch(bench, labelled, way)
            turns[name].append(timing)
            models.append(model)
    case = f"{what}, {labelled.num_rows} labels"
    rows = costs(NAME, case, turns, names[0], "s")
    ratio = rows[1].ratio or 0.0
    verdict = "yes" if ratio >= WANTED else "NO"
    parts = models[0].trainable_parameters()
    return rows, [
        f"{what}: at least {WANTED} times as fast as the fastest live epoch: {verdict} "
        f"({number(ratio)}x); {sum(parts.values()):,} parameters train, {parts['suffix']:,} of "
        f"them in the towers; {bench.cached.cache.bytes_per_clip / 1e3:.0f} kB a clip.",
        _agreement(bench, labelled, models[-2], models[-1]),
        f"Fastest on {probe.num_rows} labels of: live {tried_live}; cached, threads "
        f"{tried_cached}.",
    ]


def _epoch(bench: Bench, labelled: pa.Table, way: Setting | int) -> tuple[Timing, VlmaeModel]:
    """One epoch from the seed: live as a setting says, or from the cache with so many threads."""
    live = isinstance(way, Setting)
    if isinstance(way, Setting):
        loader, threads = live_loader(bench, labelled, way), way.threads
    else:
        loader, threads = cached_loader(bench, labelled), way
    torch.manual_seed(bench.settings.train.seed)
    timings, model = fit_epochs(bench, loader, 1, threads, live=live)
    return timings[0], model


def _fastest(bench: Bench, probe: pa.Table, ways: Sequence[Way]) -> tuple[Way, str]:
    """The fastest way to make an epoch of a few labels, and what all of them took."""
    paths = {str(way): partial(_steps, bench, probe, way) for way in ways}
    turns = bench.time(paths, 1, warm=False)
    tried = rates(NAME, "", turns, str(ways[0]), "clips/s")
    best = max(tried, key=lambda row: row.value)
    said = "; ".join(f"{row.what} {number(row.value)}/s" for row in tried)
    return next(way for way in ways if str(way) == best.what), said


def _steps(bench: Bench, labelled: pa.Table, way: Setting | int) -> int:
    _epoch(bench, labelled, way)
    return labelled.num_rows


def _agreement(bench: Bench, labelled: pa.Table, live: VlmaeModel, cached: VlmaeModel) -> str:
    """How far apart both models are after the epoch, and how far each has come."""
    ids = sample_ids.from_arrow(labelled["id"])[: 16 if bench.quick else 256]
    models = {"live": live, "cached": cached}
    said = {name: predict_clips(model, bench.cached, ids)[0] for name, model in models.items()}
    logits = _furthest(said["live"], said["cached"], ("logits", "vl_logits", "audio_logits"))
    chance = _furthest(
        said["live"], said["cached"], ("probability", "vl_probability", "audio_probability")
    )
    spread = float(said["live"].logits.std())
    within = "yes" if logits <= TOLERANCE else "NO"
    return (
        f"Logits of both models after the epoch, {len(ids)} clips, all heads, within "
        f"{TOLERANCE:g}: {within} (largest difference {logits:.1e}, of probabilities {chance:.1e}; "
        f"the logits' own standard deviation is {number(spread)})."
    )


def _furthest(a: Predictions, b: Predictions, names: Sequence[str]) -> float:
    return max(float(np.abs(getattr(a, name) - getattr(b, name)).max()) for name in names)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print, keep as JSON; or put what was kept into the document."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tuning", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run on a few generated clips")
    parser.add_argument("--repeats", type=int, help="turns of each path, in place of 3")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of stages")
    parser.add_argument("--sources", type=Path, default=Path("../shared/data/sources"))
    parser.add_argument(
        "--write-docs", action="store_true", help=f"only put the kept table into {DOCUMENT}"
    )
    parser.add_argument("--document", type=Path, default=DOCUMENT, help="where --write-docs writes")
    options = parser.parse_args(arguments)
    if options.repeats is not None and options.repeats < 1:
        parser.error(f"--repeats is {options.repeats}: give at least 1")
    folder = options.runs / "bench"
    kept = folder / ("tuning-quick.json" if options.quick else "tuning.json")
    if options.write_docs:
        report = load(kept)
        if report is None:
            parser.error(f"there is no {kept}: run python -m benchmarks.tuning first")
        write_document(options.document, NAME, report)
        print(f"table of {kept} written into {options.document}")
        return 0
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix="work-", dir=folder))
    try:
        deep = save_deep_whisper(scratch / "whisper-12")
        cases = {**CASES, DEEP_CASE: ("audio=whisper", f"audio.model={deep}", "tuning=last_2")}
        benches = {
            case: Bench(
                options.runs,
                scratch / str(place),
                options.sources,
                options.quick,
                options.repeats,
                overrides,
            )
            for place, (case, overrides) in enumerate(cases.items())
        }
        console = Console(width=COLUMNS)
        if options.quick:
            console.print("[bold]a smoke run: its numbers mean nothing[/bold]")
        table = run(benches)
        save(kept, machine(PACKAGES), [table])
        print_table(table, console)
        console.print(f"\nkept in {kept}", soft_wrap=True, highlight=False)
    finally:
        shutil.rmtree(scratch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
