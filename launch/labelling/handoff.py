"""A round in the hands of people: its folder, how far they are, and when it is closed.

    runs/<name>/<arm>/handoff/round-001/
        questions.jsonl    what was asked, one line a clip (`lsb.annotate.questions`)
        again.jsonl        those of them to ask one person more about, for oracle=files
        rendered.parquet   how the sound of each clip was anonymised: stays here
        answers/*.jsonl    put here by people, for oracle=files (`lsb.annotate.answers`)
        taken.jsonl        every answer that was taken, skips included
        refused.txt        what the last pull did not take, and why
        closed.json        the round has gone on: later answers are not taken

A clip whose answers the policy (`ledger`) cannot make a label of in some task is asked about again,
of somebody who has not answered, until `oracle.further_answers` more have.

Labels are in the ledger. All but `closed.json` can be made again; `taken.jsonl`, on which skips and
costs rest, only until the round has gone on.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from filelock import FileLock

from launch.stages.annotators import HandOffConfig
from launch.stages.settings import Settings
from lsb.annotate.answers import SOURCE, Answer, Refused, Taken, take_answers
from lsb.annotate.lines import read_lines, write_lines
from lsb.annotate.questions import Question
from lsb.annotate.simulated import unit_price
from lsb.artifact import read_json, write_bytes, write_json
from lsb.ledger import HOURS, Ledger
from vlmae.data.tombstones import read_tombstones

FORMAT = "vlmae-handoff"
VERSION = 1
COST_ENTRY = "hand-off"


@dataclass(frozen=True)
class Progress:
    """How far people are with a round.

    Attributes:
        asked: clips that were chosen and not taken down.
        done: those with enough answers or skips, on which nobody more is to be asked.
        answered: those with at least one answer.
        wanted: done ones from which on the round goes on.
        enough: people who make a clip done where their answers leave nothing open.
        people: clip -> who answered or skipped it.
        again: clip -> tasks that one person more is to be asked about.
        undecided: clip -> tasks that its answers leave open, and nobody more is asked.
    """

    asked: int
    done: int
    answered: int
    wanted: int
    enough: int
    people: Mapping[str, set[str]]
    again: Mapping[str, tuple[str, ...]]
    undecided: Mapping[str, tuple[str, ...]]

    @property
    def labellers(self) -> dict[str, int]:
        """Person -> clips answered or skipped, by name."""
        counts = Counter(name for who in self.people.values() for name in who)
        return {name: counts[name] for name in sorted(counts)}

    @property
    def settled(self) -> list[str]:
        """Clips that were asked about again, and that nobody more is to be asked about."""
        return [
            clip
            for clip, who in self.people.items()
            if len(who) > self.enough and clip not in self.again
        ]

    @property
    def is_enough(self) -> bool:
        """Whether the round can go on."""
        return self.done >= self.wanted

    @property
    def text(self) -> str:
        """A line for people."""
        who = ", ".join(f"{name} {count}" for name, count in self.labellers.items())
        return (
            f"{self.done} of {self.asked} clips are done, {self.wanted} are wanted"
            f"{f' ({who})' if who else ''}"
            + (f"; {len(self.again)} wait for one person more" if self.again else "")
            + (f"; {self.left_text}" if self.undecided else "")
        )

    @property
    def left_text(self) -> str:
        """What stays without a label although it was answered, "" if nothing does."""
        if not self.undecided:
            return ""
        count = sum(map(len, self.undecided.values()))
        return (
            f"{count} {'judgement stays' if count == 1 else 'judgements stay'} undecided, of "
            f"{len(self.undecided)} clips: no label of them is trained on"
        )


class RoundFolder:
    """The folder of one round of one arm.

    Args:
        settings: of the arm; its annotators are people.
        number: of the round.

    Raises:
        ValueError: its annotators are no people.
    """

    def __init__(self, settings: Settings, number: int) -> None:
        if not isinstance(settings.oracle, HandOffConfig):
            raise ValueError(
                "the annotators of this run are simulated and answer by themselves: give "
                "oracle=files or oracle=label_studio"
            )
        self.config: HandOffConfig = settings.oracle
        self.number, self.stages, self.merge = number, settings.stages, settings.merge
        self.path = settings.folder / settings.arm / "handoff" / f"round-{number:03d}"
        self.questions = self.path / "questions.jsonl"
        self.again = self.path / "again.jsonl"
        self.rendered = self.path / "rendered.parquet"
        self.answers = self.path / "answers"
        self._taken = self.path / "taken.jsonl"
        self._refused = self.path / "refused.txt"
        self._closed = self.path / "closed.json"

    @cached_property
    def lock(self) -> FileLock:
        """Held while answers are taken or the round is closed."""
        self.path.mkdir(parents=True, exist_ok=True)
        return FileLock(self.path / ".lock")

    @property
    def closed(self) -> bool:
        """Whether the round has gone on."""
        if not self._closed.is_file():
            return False
        held = read_json(self._closed)
        told = (held.get("format"), held.get("version")) if isinstance(held, dict) else None
        if told != (FORMAT, VERSION):
            raise ValueError(
                f"{self._closed} is of another release ({told}): use the release that wrote it"
            )
        return True

    @property
    def taken(self) -> list[Answer]:
        """Answers of earlier pulls, by clip and person."""
        return read_lines(self._taken, Answer) if self._taken.is_file() else []

    def clips(self, ledger: Ledger) -> dict[str, dict[str, Any]]:
        """Id -> candidate row of every clip of the round that was not taken down, by rank.

        Raises:
            ValueError: the round is not in the ledger.
        """
        if self.number not in {held.round for held in ledger.rounds()}:
            raise ValueError(
                f"round {self.number} is not in the ledger {ledger.name} yet: run launch.round "
                "until it waits for people"
            )
        gone = self.taken_down(ledger)
        rows = [
            row
            for row in ledger.candidacies()
            if row["round"] == self.number and row["clip_id"] not in gone
        ]
        return {row["clip_id"]: row for row in sorted(rows, key=lambda row: row["rank"])}

    def taken_down(self, ledger: Ledger) -> set[str]:
        """Ids of the round's clips that were taken down since they were chosen."""
        gone = read_tombstones(self.stages)
        rows = ledger.candidacies() if gone else []
        return {
            row["clip_id"] for row in rows if row["round"] == self.number and row["key"] in gone
        }

    def progress(self, ledger: Ledger) -> Progress:
        """How far people are, by the ledger and the skips that were taken."""
        clips = self.clips(ledger)
        people: dict[str, set[str]] = defaultdict(set)
        labelled = set()
        for row in ledger.annotations():
            if row["round"] == self.number and row["source"] == SOURCE and row["clip_id"] in clips:
                people[row["clip_id"]].add(row["labeller"])
                labelled.add(row["clip_id"])
        for answer in self.taken:
            if answer.clip_id in clips:
                people[answer.clip_id].add(answer.labeller)
        enough, most, closed = self.config.answers_per_clip, self.config.most_answers, self.closed
        again: dict[str, tuple[str, ...]] = {}
        undecided: dict[str, tuple[str, ...]] = {}
        for clip, task in sorted(ledger.undecided(self.merge, self.number)):
            count = len(people.get(clip, ()))
            if count and (closed or count >= most):
                undecided[clip] = (*undecided.get(clip, ()), task)
            elif count >= enough:
                again[clip] = (*again.get(clip, ()), task)
        done = sum(len(who) >= enough for who in people.values()) - len(again)
        # A share of 0.3 of 10 clips is 3 of them, whatever 0.3 * 10 is in floating point.
        wanted = -int(-round(self.config.share * len(clips), 6) // 1)
        return Progress(
            len(clips), done, len(labelled), wanted, enough, dict(people), again, undecided
        )

    def write_again(self, progress: Progress) -> None:
        """Write the questions that one person more is to be asked, and no others.

        Args:
            progress: of the round; the same one again writes the same file, and where nobody is to
                be asked there is none.
        """
        with self.lock:
            asked = [
                question.model_copy(
                    update={
                        "tasks": progress.again[question.clip_id],
                        "answered_by": tuple(sorted(progress.people[question.clip_id])),
                    }
                )
                for question in (read_lines(self.questions, Question) if progress.again else ())
                if question.clip_id in progress.again
            ]
            if asked:
                write_lines(self.again, asked)
            else:
                self.again.unlink(missing_ok=True)

    def take(self, ledger: Ledger, answers: list[Answer], refused: list[Refused]) -> Taken:
        """Take answers into the ledger; the same ones again change nothing.

        Args:
            ledger: of the arm.
            answers: one of each person about each clip of the round.
            refused: what was refused before, for the list.

        Raises:
            ValueError: the round is closed and there are answers that it does not have.
        """
        with self.lock:
            if self.closed:
                held = {answer.place: answer for answer in self.taken}
                late = [answer for answer in answers if answer.place not in held]
                told = [
                    Refused("closed", one.clip_id, one.labeller, "came after the round had gone on")
                    for one in late
                ]
                return self._tell(Taken(self.taken, 0, [*refused, *told]))
            keep = partial(write_lines, self._taken)
            done = take_answers(ledger, self.number, answers, self.taken, keep)
            return self._tell(Taken(done.answers, done.labels, [*refused, *done.refused]))

    def close(self, ledger: Ledger) -> None:
        """The round goes on with the answers it has; closing it again changes nothing."""
        with self.lock:
            if not self.closed:
                # A pull that was killed has kept answers that the ledger lacks.
                take_answers(ledger, self.number, [], self.taken)
                progress = self.progress(ledger)
                told = {"round": self.number, "asked": progress.asked, "done": progress.done}
                write_json(self._closed, {"format": FORMAT, "version": VERSION, **told})
            self.again.unlink(missing_ok=True)
            self._record_costs(ledger)

    def _record_costs(self, ledger: Ledger) -> None:
        """What the taken answers cost, a row a person; what they are is fixed by now."""
        if not (self.config.price or self.config.hourly_wage):
            return
        tasks = len({task for answer in self.taken for task in answer.labels})
        work: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        for answer in self.taken:
            work[answer.labeller][0] += len(answer.labels) or tasks
            work[answer.labeller][1] += answer.seconds or 0.0
        for name in sorted(work):
            count, seconds = work[name]
            price = unit_price(self.config.price, self.config.hourly_wage, seconds / max(count, 1))
            ledger.record_cost(self.number, name, price, int(count), entry=COST_ENTRY)
            if seconds:
                hours = seconds / 3600 / max(count, 1)
                ledger.record_cost(self.number, name, hours, int(count), entry=HOURS)

    def _tell(self, taken: Taken) -> Taken:
        text = "".join(f"{one.text}\n" for one in taken.refused)
        write_bytes(self._refused, text.encode("utf-8"))
        return taken
