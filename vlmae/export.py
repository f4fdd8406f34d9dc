"""Export a model: `python -m vlmae.export checkpoint=<train stage> output=<folder>`.

With `evaluated=<evaluate stage>` the model card states its metrics. The folder holds trainable
tensors, settings, processors, a model card and a `torch.export` program (docs/checkpoints.md); read
it with `vlmae.load`, score files with `python -m vlmae.predict`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig
from rich.console import Console

from lsb.artifact import open_stage
from vlmae.config import as_dict, build, checked, command
from vlmae.data.decode import DecodePolicy
from vlmae.exported import export


@command("export")
def main(config: DictConfig) -> None:
    """Write the folder of a trained model."""
    values = cast(dict[str, Any], as_dict(config))
    console = Console()
    folder, output, evaluated = (
        checked(key, str | None, values[key]) for key in ("checkpoint", "output", "evaluated")
    )
    if not folder:
        raise ValueError("checkpoint is not set: give the folder of a finished train stage")
    if not output:
        raise ValueError("output is not set: give the folder to write")

    def say(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    written = export(
        open_stage(Path(folder)),
        Path(output),
        evaluated=open_stage(Path(evaluated)) if evaluated else None,
        policy=build("decode", DecodePolicy, values["decode"]),
        licence=checked("licence", str, values["licence"]),
        say=say,
    )
    size = sum(file.stat().st_size for file in written.rglob("*") if file.is_file())
    say(f"{written}: {size / 1e6:.1f} MB, without the backbones' weights")


if __name__ == "__main__":
    main()
