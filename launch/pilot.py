"""The three-step pilot and its go/no-go page: `python -m launch.pilot experiment=pilot`.

A few dozen clips, then limited labels, then scale: `pilot.steps` names the last round of each step,
`budgets` what is asked in each round. With `rounds` at the end of a step it stops there and goes on
later. What is asked of the pilot is written down when it starts (criteria.json) and cannot be
changed afterwards. Stages are made where `launcher` says, as by `launch.round`. Writes
account.json, account.png, pilot.json and pilot.html, one file without any link (docs/pilot.md).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from launch.labelling.annotation import GIVEN, LABELLING, judge
from launch.piloting.criteria import Criterion, verdict
from launch.piloting.evidence import Evidence, PilotConfig
from launch.piloting.page import numbers, pilot_page
from launch.rounds.account import Prices, write_account
from launch.rounds.arms import Arms, run_arms
from launch.rounds.summary import number_table
from launch.stages.annotators import HandOffConfig
from launch.stages.clips import gold_clips
from launch.stages.launched_run import is_dry_run, launched_run, print_scripts, read_flags
from launch.stages.run_folder import differences
from launch.stages.settings import Settings
from lsb import ids as sample_ids
from lsb.annotate.answers import SOURCE
from lsb.artifact import read_json, write_bytes, write_json
from lsb.labelled import LABEL
from lsb.ledger import GOLD_LABELS, AnnotatorQuality, Ledger, Round
from lsb.ledger.quality import annotator_quality, current_votes
from lsb.selection import CHOSEN
from vlmae.config import as_dict, build, command, task_overrides

CRITERIA_FILE = "criteria.json"
GOLD_LEDGER = "gold.sqlite"


def settle_criteria(folder: Path, config: PilotConfig) -> None:
    """Write down what is asked before anything is run, or refuse other questions afterwards.

    Raises:
        ValueError: the pilot was started with other criteria; names the first difference.
    """
    file, asked = folder / CRITERIA_FILE, asdict(config)
    if file.is_file():
        changed = differences(read_json(file), asked)
        if changed:
            raise ValueError(
                f"{file} was written when the pilot started and asks for something else "
                f"({changed[0]}): keep pilot as it was, or start another pilot with name=<name>"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(file, asked)


def measured_annotators(arms: Arms, items: int, last: int) -> list[AnnotatorQuality]:
    """How good annotators are on gold clips, by what they had answered after a round.

    From the arm's ledger where they have answered some there. Otherwise simulated annotators are
    asked about the first gold clips by id, in a ledger of its own: nothing of it trains. People are
    not: nobody can answer for them.

    Args:
        arms: the finished run.
        items: gold clips to ask about.
        last: the round.
    """
    settings, folder = arms.settings, arms.folder.path
    people = isinstance(settings.oracle, HandOffConfig)
    with settings.ledger.open(create=False) as ledger:
        quality = _measured(ledger, last, (SOURCE,) if people else LABELLING)
    if quality or people:
        return quality
    gold = gold_clips(settings, arms.shared.truth)
    ids = sample_ids.from_arrow(gold["id"])
    gold = gold.take(ids.argsort(kind="stable")[:items])
    answers = judge(settings, arms.shared, gold).annotations
    known = [
        {"id": row["id"], "key": row["key"], "task": task, "label": row[LABEL + task]}
        for row in gold.to_pylist()
        for task in settings.tasks
        if row[LABEL + task] is not None
    ]
    with Ledger.open(folder / GOLD_LEDGER) as ledger:
        ledger.record_round(Round(0, "gold clips", "", ""), CHOSEN.empty_table(), answers)
        ledger.add_gold(pa.Table.from_pylist(known, schema=GOLD_LABELS))
        return ledger.quality()


def _measured(ledger: Ledger, last: int, sources: Sequence[str]) -> list[AnnotatorQuality]:
    """Of those who have answered gold clips by a round; labels that came with media are nobody's
    answers."""
    rows = [
        row for row in ledger.annotations() if row["round"] <= last and row["labeller"] != GIVEN
    ]
    quality = annotator_quality(current_votes(rows, sources), ledger.gold())
    return [one for one in quality if one.gold]


def run_pilot(config: DictConfig, console: Console) -> dict[str, Any]:
    """Run what is not there yet, answer the criteria of every finished step, write the page.

    Returns:
        What pilot.json holds: "experiment", "arm", "data", "evidence", "verdict", "steps" (name,
        last round, "criteria" and "verdict" of each that is finished), "waiting" (names of the
        others), "criteria" as configured, "annotators" and "account".
    """
    values = cast(dict[str, Any], as_dict(config))
    asked = build("pilot", PilotConfig, values["pilot"])
    settings = Settings.from_config(config)
    settings.require_rounds("launch.pilot")
    unknown = sorted(set(asked.tasks) - set(settings.tasks))
    if unknown:
        raise ValueError(f"pilot.tasks names {unknown}, the model has {list(settings.tasks)}")
    if min(asked.steps.values()) > settings.rounds:
        raise ValueError(
            f"pilot.steps is {asked.steps} and rounds is {settings.rounds}: no step is finished "
            "by then, give more rounds"
        )
    settle_criteria(settings.folder, asked)
    with launched_run(config, console.log, task_overrides()):
        arms = run_arms(config, console.log)
    prices = None if asked.price is None else Prices(asked.price, asked.seconds)
    account = write_account(arms, console, prices)
    finished = [last for last in asked.steps.values() if last <= settings.rounds]
    quality = {last: measured_annotators(arms, asked.gold_items, last) for last in finished}
    evidence = Evidence(asked, arms, account, quality)
    steps = []
    for name, last in asked.steps.items():
        if last <= settings.rounds:
            criteria = evidence.criteria(last)
            console.print(criteria_table(f"after {name} (round {last})", criteria))
            steps.append(
                {
                    "name": name,
                    "last_round": last,
                    "verdict": verdict(criteria),
                    "criteria": [criterion.as_dict() for criterion in criteria],
                }
            )
    pilot = {
        "experiment": settings.name,
        "arm": settings.arm,
        "data": account["data"],
        "evidence": account["evidence"],
        "verdict": steps[-1]["verdict"],
        "steps": steps,
        "waiting": [name for name, last in asked.steps.items() if last > settings.rounds],
        "criteria": asdict(asked),
        "tasks": list(evidence.tasks),
        "annotators": [asdict(one) for one in quality[finished[-1]]],
        "account": account,
    }
    folder = arms.folder.path
    write_json(folder / "pilot.json", pilot)
    picture = (folder / "account.png").read_bytes()
    write_bytes(folder / "pilot.html", pilot_page(pilot, picture).encode())
    console.print(f"verdict: {pilot['verdict']}. {folder}/pilot.html", soft_wrap=True)
    return pilot


def criteria_table(title: str, criteria: list[Criterion]) -> Table:
    """One row a criterion."""
    table = number_table(
        title, "criterion", "wanted", "found", "answer", words=("criterion", "wanted")
    )
    for one in criteria:
        table.add_row(one.name, one.wanted, numbers(one.as_dict()), one.answer)
    return table


@command("round")
def main(config: DictConfig) -> None:
    """Run the pilot as far as `rounds` goes."""
    if is_dry_run(config):
        print_scripts(config)
        return
    run_pilot(config, Console(log_path=False))


if __name__ == "__main__":
    read_flags()
    main()
