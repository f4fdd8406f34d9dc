"""The round of `make demo` by jobs of a real SLURM: the stages and the numbers of one machine.

    python tests/cluster/demo_round.py        (`make demo-on-slurm`)

Runs both, compares them and prints a line a stage. Exit code 0, or 1 where they differ. About a
quarter of an hour on two cores; the suite does the same with a smaller round
(test_chaos_on_slurm.py).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from one_machine import here
from slurm_cluster import Cluster, what_is_missing
from small_round import SLURM, stages, summary

from launch.jobs.job import jobs_below
from lsb.console import console

ROUND = ("-m", "launch.round", "experiment=demo")
RUN = Path("runs") / "demo"
MOST_SECONDS = 3600  # of the round by jobs, on cores that others may want, too


def main() -> int:
    """Command line entry point; returns the exit code."""
    missing = what_is_missing()
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        return 1
    out = console()
    with tempfile.TemporaryDirectory(prefix="vlmae-demo-") as base:
        local, there = Path(base) / "here", Path(base) / "there"
        begun = time.monotonic()
        here(local, *ROUND)
        out.print(f"on this machine: {time.monotonic() - begun:.0f} s")
        cluster = Cluster(Path(base) / "c")
        cluster.base.mkdir()
        there.mkdir()
        try:
            cluster.up()
            begun = time.monotonic()
            code, said, err = cluster.python(*ROUND, *SLURM, cwd=there, timeout=MOST_SECONDS)
        finally:
            cluster.down()
        if code:
            print(
                f"error: the round on the cluster ended with {code}\n{said}\n{err}", file=sys.stderr
            )
            return 1
        out.print(f"on the cluster: {time.monotonic() - begun:.0f} s")
        jobs = Counter(job.stage for job in jobs_below(there / RUN / "jobs"))
        # Neighbours are found within the expansion where one process makes them.
        one, other = stages(local), stages(there, "neighbours")
        for name in sorted({*one, *other}):
            same = one.get(name) == other.get(name)
            by = "by jobs" if jobs[name.split("-")[0]] else "by the command"
            out.print(f"{'same bytes' if same else 'DIFFERS':10}  {by:14}  {name}")
        told = summary(local, RUN) == summary(there, RUN)
        out.print(f"{'same' if told else 'ANOTHER'} summary; jobs: {dict(jobs)}", soft_wrap=True)
        return 0 if one == other and told else 1


if __name__ == "__main__":
    sys.exit(main())
