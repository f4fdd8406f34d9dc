"""Compute the frozen tokens of a data set once: `python -m vlmae.cache data=... vl=... audio=...`.

Training, embedding and evaluation with the same config then read them without being told. Killed
and started again it goes on; when shards are added only those are computed. Several processes share
the work with `share=[0,4]`, `share=[1,4]` and so on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig
from rich.console import Console

from lsb.artifact import Stage
from lsb.kept import keep
from vlmae.config import as_dict, command
from vlmae.data.prefix_cache import PrefixCache, cache_prefix
from vlmae.data.redaction import require_redacted
from vlmae.settings import prefix_of, prepared_data, progress_line, share_of


def describe(stage: Stage) -> str:
    """Clips, bytes a clip and time of a finished cache."""
    cache = PrefixCache(stage)
    clips, skipped = stage.counts.get("clips", 0), stage.counts.get("skipped", 0)
    return (
        f"{stage.path}: {'reused' if stage.reused else 'made'}, {clips} clips, {skipped} in "
        f"quarantine, {cache.bytes_per_clip / 1e3:.1f} kB a clip ({cache.codec.dtype}), "
        f"{stage.seconds:.1f} s to make"
    )


@command("cache")
def main(config: DictConfig) -> None:
    """Make, finish or reuse the cache of the config's data set."""
    values = cast(dict[str, Any], as_dict(config))
    root = Path(config.runs) / "stages"
    console = Console(log_path=False)
    prefix = prefix_of(values, require_redacted(root, prepared_data(values, root)))
    stage = cache_prefix(
        root, prefix, share=share_of(values), on_part=progress_line(console, "clips", "clips")
    )
    if stage is None:
        console.print("this share is done; the cache is finished by whoever makes its last shard")
    else:
        keep(root, stage, "vlmae.cache")
        console.print(describe(stage), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
