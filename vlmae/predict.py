"""Score media files: `python -m vlmae.predict model=<export> media=<folder> output=scores.parquet`.

`media` is a folder (read with all folders in it), a file, a list of those, or a text file with a
path a line; titles are in .json or .txt files of the same name. A clip that cannot be scored is a
row that says why. Killed and started again it begins anew: the output appears when it is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from vlmae import load
from vlmae.config import as_dict, checked, command
from vlmae.media import clips_of
from vlmae.media_scores import Scored, score_media

SECONDS_A_LINE = 10.0


@contextmanager
def progress(console: Console, clips: int) -> Iterator[Callable[[Scored], None]]:
    """A bar on a terminal; elsewhere a line now and then."""
    if console.is_terminal:
        columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        bad = TextColumn("{task.fields[bad]} bad")
        with Progress(*columns, bad, console=console, transient=True) as bar:
            task = bar.add_task("clips", total=clips, bad=0)
            yield lambda at: bar.update(task, completed=at.clips, bad=at.bad.total())
        return
    last = 0.0

    def line(at: Scored) -> None:
        nonlocal last
        if at.seconds - last >= SECONDS_A_LINE:
            last = at.seconds
            pace = at.clips / max(at.seconds, 1e-9)
            minutes, seconds = divmod(round((at.of - at.clips) / pace), 60)
            console.log(
                f"{at.clips} of {at.of} clips, {at.bad.total()} bad, {pace:.1f} a second, "
                f"{minutes} min {seconds} s to go"
            )

    yield line


def summary(scored: Scored, output: Path) -> str:
    """How a scoring ended, in a line."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(scored.bad.items()))
    bad = f"{scored.bad.total()} bad ({reasons})" if reasons else "0 bad"
    return f"{output}: {scored.clips} clips, {bad}, {scored.seconds:.1f} s"


@command("predict")
def main(config: DictConfig) -> None:
    """Score media files with an exported model."""
    values = cast(dict[str, Any], as_dict(config))
    folder = checked("model", str | None, values["model"])
    output = checked("output", str | None, values["output"])
    media = checked("media", str | list[str] | None, values["media"])
    skip_limit = checked("skip_limit", float, values["skip_limit"])
    largest = checked("largest_mb", float | None, values["largest_mb"])
    for key, value in (("model", folder), ("media", media), ("output", output)):
        if not value:
            raise ValueError(f"{key} is not set: see conf/predict.yaml")
    if not 0 <= skip_limit <= 1:
        raise ValueError(f"skip_limit is {skip_limit}: give a share in [0, 1]")
    torch.set_num_threads(checked("threads", int, values["threads"]))
    clips = clips_of([media] if isinstance(media, str) else media)
    scorer = load(
        folder,
        device=checked("device", str, values["device"]),
        backend=checked("backend", str | None, values["backend"]),
        towers=checked("towers", dict[str, dict[str, Any]], values["towers"]),
    )
    console = Console(log_path=False)
    with progress(console, len(clips)) as show:
        scored = score_media(
            scorer,
            clips,
            Path(output),
            decoders=checked("decoders", int, values["decoders"]),
            largest=None if largest is None else int(largest * 1e6),
            on_group=show,
        )
    console.print(summary(scored, Path(output)), highlight=False, soft_wrap=True)
    if scored.clips and scored.bad.total() == scored.clips:
        # Whatever the limit: a broken installation must not look like a finished run.
        raise ValueError(
            f"none of {scored.clips} clips has scores: the column error of {output} says why"
        )
    if scored.bad.total() > skip_limit * scored.clips:
        raise ValueError(
            f"{scored.bad.total()} of {scored.clips} clips have no scores, more than "
            f"skip_limit={skip_limit}: the column error of {output} says why"
        )


if __name__ == "__main__":
    main()
