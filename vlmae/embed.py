"""Embed a split into a store: `python -m vlmae.embed kind=pooled data=... split=pool`.

`kind=fused checkpoint=<folder of a train stage>` embeds with a checkpoint and scores every task.
Reads a finished cache of the frozen tokens where there is one, else the media. Killed and started
again it goes on; when shards are added only those are embedded. Several processes, on one machine
or many, share the shards with `share=[0,4]`, `share=[1,4]` and so on. With `embed.seeds=...
embed.lt=0.8` each shard is searched for lookalikes of seeds while it is embedded (docs/search.md).
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig
from rich.console import Console

from lsb.artifact import open_stage
from lsb.kept import keep
from lsb.search.seed_files import read_ids
from vlmae.config import as_dict, build, checked, command
from vlmae.data.redaction import require_redacted
from vlmae.data.token_source import open_source
from vlmae.embedding import EmbedConfig, Scoring, embed_fused, embed_pooled
from vlmae.seed_search import SeedConfig, make_hits
from vlmae.settings import prefix_of, prepared_data, progress_line, share_of

KINDS = ("pooled", "fused")


@command("embed")
def main(config: DictConfig) -> None:
    """Make, finish or reuse a store."""
    values = cast(dict[str, Any], as_dict(config))
    if values["kind"] not in KINDS:
        raise ValueError(f"kind is {values['kind']!r}: use {' or '.join(KINDS)}")
    root = Path(config.runs) / "stages"
    console = Console(log_path=False)
    asked = {field.name for field in fields(SeedConfig)} & set(values["embed"])
    seeds = build("embed", SeedConfig, {name: values["embed"][name] for name in asked})
    settings = build(
        "embed",
        EmbedConfig,
        {
            **{name: value for name, value in values["embed"].items() if name not in asked},
            "share": share_of(values),
            "skip_limit": values["prefix"]["skip_limit"],
        },
    )
    data = require_redacted(root, prepared_data(values, root))
    search = seeds.open(settings.threads)
    source = open_source(root, prefix_of(values, data), console.log)
    show = progress_line(console, "clips", "rows")
    if values["kind"] == "pooled":
        stage = embed_pooled(root, source, settings, show, search)
    else:
        folder = checked("checkpoint", str | None, values["checkpoint"])
        if not folder:
            raise ValueError("checkpoint is not set: give the folder of a finished train stage")
        scoring = values["scoring"]
        only = checked("scoring.only", str | None, scoring["only"])
        stage = embed_fused(
            root,
            source,
            open_stage(Path(folder)),
            settings,
            Scoring(
                inputs=checked("scoring.inputs", str, scoring["inputs"]),
                seed=checked("scoring.seed", int, scoring["seed"]),
                dropout_samples=checked("scoring.dropout_samples", int, scoring["dropout_samples"]),
                only=None if only is None else read_ids(Path(only), "scoring.only"),
            ),
            show,
            search,
        )
    if stage is None:
        console.print("this share is done; the store is finished by whoever makes its last shard")
        return
    keep(root, stage, "vlmae.embed")
    rows, skipped = stage.counts["rows"], stage.counts.get("skipped", 0)
    console.print(
        f"{stage.path}: {'reused' if stage.reused else 'made'}, {rows} clips, {skipped} in "
        f"quarantine, {stage.seconds:.1f} s to make",
        highlight=False,
        soft_wrap=True,
    )
    if search is not None:
        hits = keep(root, make_hits(root, stage, search, seeds.keep), "vlmae.embed")
        told = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in hits.counts.items())
        console.print(f"{hits.path}: {told}", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
