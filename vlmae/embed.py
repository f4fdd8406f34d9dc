"""Embed a split into a store: `python -m vlmae.embed kind=pooled data=... split=pool`.

`kind=fused checkpoint=<folder of a train stage>` embeds with a checkpoint and scores every task.
Reads a finished cache of the frozen tokens where there is one, else the media. Killed and started
again it goes on; when shards are added only those are embedded. Several processes, on one machine
or many, share the shards with `share=[0,4]`, `share=[1,4]` and so on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
from omegaconf import DictConfig
from rich.console import Console

from lsb import ids as sample_ids
from lsb.artifact import open_stage
from lsb.ids import IdArray
from lsb.kept import keep
from vlmae.config import as_dict, build, checked, command
from vlmae.data.redaction import require_redacted
from vlmae.data.token_source import open_source
from vlmae.embedding import EmbedConfig, Scoring, embed_fused, embed_pooled
from vlmae.settings import prefix_of, prepared_data, progress_line, share_of

KINDS = ("pooled", "fused")


def wanted_ids(path: str | None) -> IdArray | None:
    """Ids of the clips that a file names: a parquet table with `key`, or a text with a key a line.

    Raises:
        ValueError: the file is absent, or has no key.
    """
    if path is None:
        return None
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"embed.only is {path}, which is no file: give one with clip keys")
    if file.suffix == ".parquet":
        names = pq.read_schema(file).names
        if "key" not in names:
            raise ValueError(f"{path} has columns {names}, none is 'key'")
        keys = sample_ids.texts(pq.read_table(file, columns=["key"])["key"])
    else:
        keys = [line.strip() for line in file.read_text("utf-8").splitlines() if line.strip()]
    if not keys:
        raise ValueError(f"{path} names no clip")
    return sample_ids.sample_ids(sorted(set(keys)))


@command("embed")
def main(config: DictConfig) -> None:
    """Make, finish or reuse a store."""
    values = cast(dict[str, Any], as_dict(config))
    if values["kind"] not in KINDS:
        raise ValueError(f"kind is {values['kind']!r}: use {' or '.join(KINDS)}")
    root = Path(config.runs) / "stages"
    console = Console(log_path=False)
    settings = build(
        "embed",
        EmbedConfig,
        {
            **values["embed"],
            "share": share_of(values),
            "skip_limit": values["prefix"]["skip_limit"],
        },
    )
    data = require_redacted(root, prepared_data(values, root))
    source = open_source(root, prefix_of(values, data), console.log)
    show = progress_line(console, "clips", "rows")
    if values["kind"] == "pooled":
        stage = embed_pooled(root, source, settings, show)
    else:
        folder = checked("checkpoint", str | None, values["checkpoint"])
        if not folder:
            raise ValueError("checkpoint is not set: give the folder of a finished train stage")
        scoring = values["scoring"]
        stage = embed_fused(
            root,
            source,
            open_stage(Path(folder)),
            settings,
            Scoring(
                inputs=checked("scoring.inputs", str, scoring["inputs"]),
                seed=checked("scoring.seed", int, scoring["seed"]),
                dropout_samples=checked("scoring.dropout_samples", int, scoring["dropout_samples"]),
                only=wanted_ids(checked("scoring.only", str | None, scoring["only"])),
            ),
            show,
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


if __name__ == "__main__":
    main()
