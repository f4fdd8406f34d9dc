"""What a training needs: `python -m launch.plan launcher.nodes=2 launcher.ranks=8 ...`.

The keys are those of launch.train, and `plan.gpu_memory_gb`, `plan.host_memory_gb`. Prints the
memory of a GPU and of a rank's host line by line; with exit code 2 and one line that names the
nearest settings that fit, if these do not. No GPU is needed, and no weights: of a tower from the
hub config.json and the processor's files, `hf download <id> --exclude "*.safetensors"`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, cast

from omegaconf import DictConfig
from rich.table import Table

from launch.jobs.planning import GIB, Need, Planner
from lsb.console import console
from vlmae.config import as_dict, command
from vlmae.footprint.arithmetic import ALWAYS, Line, peak


@command("plan")
def main(config: DictConfig) -> None:
    """Print the arithmetic of a config, and refuse what cannot fit."""
    planner = Planner(cast(dict[str, Any], as_dict(config)))
    need = planner.need(planner.asked)
    for line in report(planner, need):
        console().print(line, highlight=False)
    if not planner.fits(need):
        print(f"error: {refusal(planner, need)}", file=sys.stderr)
        raise SystemExit(2)


def report(planner: Planner, need: Need) -> list[str | Table]:
    """What is printed: the model, the memory of a GPU and of a rank's host."""
    asked, size = planner.asked, planner.size
    trained, count = sum(size.trained), size.parameters
    prefix = "runs in the training" if planner.live else "is read from its cache"
    tokens = ", ".join(f"{name} {length}" for name, (length, _) in planner.shapes.items())
    phase, most = need.gpu_peak
    lines: list[str | Table] = [
        f"{trained:,} of {count:,} parameters train; the frozen prefix, "
        f"{size.prefix / GIB:.2f} GiB, {prefix} (prefix.use)",
        f"tokens of a clip at the cut: {tokens}",
        f"{asked.nodes} nodes x {asked.ranks} ranks = {asked.world}; {asked.global_batch} clips a "
        f"step: {asked.world} x trainer.batch_size {asked.train.batch_size} x trainer.accumulate "
        f"{asked.train.accumulate}",
        _table(f"a GPU, strategy {asked.strategy.name}", need.gpu),
        _table("the host, one rank", need.host),
        f"most on a GPU: {most / GIB:.2f} GiB ({phase}) of {planner.usable / GIB:.2f} usable "
        f"({planner.plan.gpu_memory_gb:g} less {planner.plan.headroom:.0%}); a machine: "
        f"{need.node / GIB:.2f} GiB of {_host(planner)}: "
        f"{'fits' if planner.fits(need) else 'does not fit'}",
    ]
    copied = planner.with_copy(asked.strategy, asked.nodes)
    if copied is not None and planner.fits(need):
        more = planner.need(replace(asked, strategy=copied))
        lines.append(
            f"strategy.hpz_ranks={copied.hpz_ranks} keeps a second copy of the weights on each "
            "machine, and the backward pass gathers from no other: "
            f"{more.gpu_peak[1] / GIB:.2f} GiB, {'fits' if planner.fits(more) else 'does not fit'}"
        )
    return lines


def refusal(planner: Planner, need: Need) -> str:
    """One line: what does not fit, and the nearest settings that do, found by trying."""
    phase, most = need.gpu_peak
    found = planner.nearest()
    if most > planner.usable:
        wrong = (
            f"a GPU needs {most / GIB:.2f} GiB ({phase}) and has {planner.usable / GIB:.2f} usable"
        )
    else:
        wrong = f"a machine needs {need.node / GIB:.2f} GiB and has {_host(planner)}"
    if found is None:
        remedy = (
            "no strategy, batch size or number of machines that was tried fits: tune fewer blocks, "
            "take a smaller tower or larger machines, or set prefix.use=require if the frozen "
            "prefix is what is large"
        )
    else:
        setting, overrides = found
        there = planner.need(setting).gpu_peak[1]
        remedy = f"add {' '.join(overrides)} ({there / GIB:.2f} GiB)"
    return f"{wrong}: {remedy}"


def _host(planner: Planner) -> str:
    most = planner.plan.host_memory_gb
    return "(plan.host_memory_gb is not set)" if most is None else f"{most:g}"


def _table(title: str, lines: Sequence[Line]) -> Table:
    table = Table("GiB", "what", "when", title=title)
    table.columns[0].justify = "right"
    for line in lines:
        table.add_row(f"{line.size / GIB:.3f}", line.name, "" if line.when == ALWAYS else line.when)
    phase, most = peak(lines)
    table.add_section()
    table.add_row(f"{most / GIB:.3f}", f"at most, {phase}")
    return table


if __name__ == "__main__":
    main()
