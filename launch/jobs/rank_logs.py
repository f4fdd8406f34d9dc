"""What the ranks of a training print, as one stream: new lines of every rank's log, marked."""

from __future__ import annotations

from launch.jobs.executor import Say
from launch.jobs.job import Job


class MergedTail:
    """Follows the logs of a job's attempts.

    Args:
        job: of ranks.
        say: called with each line, which begins with the rank in brackets.
    """

    def __init__(self, job: Job, say: Say) -> None:
        self.job, self.say = job, say
        self._read: dict[str, int] = {}
        for log in self._logs():  # what earlier commands have shown
            self._read[log] = (job.folder / "logs" / log).stat().st_size

    def show(self) -> None:
        """Say the whole lines that have come since the last call."""
        for log in self._logs():
            with open(self.job.folder / "logs" / log, "rb") as stream:
                stream.seek(self._read.get(log, 0))
                new = stream.read()
            whole = new[: new.rfind(b"\n") + 1]
            self._read[log] = self._read.get(log, 0) + len(whole)
            rank = log.removesuffix(".log").rsplit("-", 1)[1]
            for line in whole.decode("utf-8", "replace").splitlines():
                if line.strip():
                    self.say(f"[{rank}] {line.rstrip()}")

    def _logs(self) -> list[str]:
        found = (self.job.folder / "logs").glob("*-rank-*.log")
        return sorted((file.name for file in found), key=lambda name: (name[:3], len(name), name))
