"""A round's clips to people, and their answers back: `python -m launch.annotate ACTION ...`.

Works on the last round that an arm has recorded; after the action come the overrides of its run
(docs/annotation.md):

    push      render the clips, write the questions; oracle=label_studio: make and fill the project
    pull      take the answers that are there into the ledger; as often as you like. What they leave
              open one person more is asked: again.jsonl, or the project's tasks
    status    how far people are
    close     go on with the answers that are there: later ones are not taken
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig
from rich.console import Console

from launch.labelling.handoff import Progress, RoundFolder
from launch.labelling.questions import ask
from launch.stages.annotators import HandOffConfig
from launch.stages.run_folder import RunFolder
from launch.stages.settings import Settings
from lsb import ids as sample_ids
from lsb.annotate.answers import read_answers
from lsb.annotate.label_studio import LabelStudio, Project, local_files_base, mark_of
from lsb.annotate.labelling import checked_tasks, labelling_config, read_export
from lsb.annotate.lines import write_lines
from lsb.artifact import Stage
from lsb.ledger import Ledger
from vlmae.config import command
from vlmae.data.tombstones import tombstone_ids
from vlmae.handoff import hand_off_media, read_rendered

Say = Callable[[str], None]


def push(settings: Settings, say: Say) -> None:
    """Hand off the last round; doing it again changes nothing."""
    with _open(settings) as ledger:
        folder = _last_round(settings, ledger)
        run = RunFolder(settings.folder, settings.identity)
        data = run.use(settings.data.prepared(settings.stages))
        clips = folder.clips(ledger)
        say(f"round {folder.number}: rendering {len(clips)} clips")
        config = folder.config
        media = run.use(
            hand_off_media(
                settings.stages,
                data,
                sample_ids.from_hex(clips),
                config.media,
                processes=config.processes,
                storage_options=settings.data.storage_options,
            )
        )
        rendered = read_rendered(media)
        questions = ask(
            settings,
            data,
            ledger,
            folder.number,
            list(clips.values()),
            rendered,
            neighbours=config.neighbours,
            titles=config.titles,
        )
        with folder.lock:
            write_lines(folder.questions, questions)
            pq.write_table(rendered, folder.rendered)
        if config.kind == "files":
            folder.answers.mkdir(exist_ok=True)
            say(
                f"for people: {folder.questions}, and of {media.path} all but *.parquet and "
                f"manifest.json; put their answers into {folder.answers}/*.jsonl, then pull"
            )
            return
        base, place = _media_base(config, media)
        project = _project(settings, ledger, folder)
        tasks = checked_tasks(questions, base, labelling_config(settings.tasks))
        gone = sample_ids.to_hex(tombstone_ids(settings.stages))
        done = _server(config).push(project, tasks, place, gone)
        say(
            f"{done.url}: {len(tasks)} tasks, {done.imported} of them new, {done.deleted} deleted; "
            "pull takes answers"
        )


def pull(settings: Settings, say: Say) -> None:
    """Take the answers that are there; people may go on meanwhile."""
    with _open(settings) as ledger:
        folder = _last_round(settings, ledger)
        clips, gone = folder.clips(ledger), folder.taken_down(ledger)
        reopen: Callable[[Progress], str]
        if folder.config.kind == "files":
            if not folder.answers.is_dir():
                raise ValueError(f"there is no {folder.answers}: push the round first")
            answers, refused = read_answers(folder.answers, clips, settings.tasks, gone)
            reopen = partial(_ask_in_files, folder)
        else:
            server = _server(folder.config)
            exported, names = server.export(_project(settings, ledger, folder))
            answers, refused = read_export(exported, names, clips, settings.tasks, gone)
            reopen = partial(_ask_on_server, server, exported)
        done = folder.take(ledger, answers, refused)
        for one in done.refused:
            say(f"not taken: {one.text}")
        say(f"{done.labels} labels are new, {len(done.refused)} answers were not taken")
        progress = folder.progress(ledger)
        if not folder.closed:
            asked = reopen(progress)
            if progress.again:
                count = sum(map(len, progress.again.values()))
                say(f"{count} judgements of {len(progress.again)} clips are open: {asked}")
        say(f"round {folder.number}: {progress.text}")


def _ask_in_files(folder: RoundFolder, progress: Progress) -> str:
    folder.write_again(progress)
    return (
        f"hand {folder.again} to people who have not answered them (answered_by), and put their "
        f"answers into {folder.answers}, too"
    )


def _ask_on_server(
    server: LabelStudio, exported: Sequence[Mapping[str, Any]], progress: Progress
) -> str:
    server.reopen(exported, progress.again, progress.settled)
    return f"{server.url} offers their tasks to people who have not answered them"


def status(settings: Settings, say: Say) -> None:
    """How far people are with the last round."""
    with _open(settings) as ledger:
        folder = _last_round(settings, ledger)
        progress = folder.progress(ledger)
        state = "closed" if folder.closed else "open"
        say(f"{settings.arm}, round {folder.number} ({state}): {progress.text}")


def close(settings: Settings, say: Say) -> None:
    """Let the run go on with the answers that are there."""
    with _open(settings) as ledger:
        folder = _last_round(settings, ledger)
        folder.close(ledger)
        say(f"round {folder.number} is closed: {folder.progress(ledger).text}")


ACTIONS: dict[str, Callable[[Settings, Say], None]] = {
    "push": push,
    "pull": pull,
    "status": status,
    "close": close,
}


def _open(settings: Settings) -> Ledger:
    if not settings.ledger.exists:
        raise ValueError(
            f"the ledger {settings.ledger.location} does not exist: run launch.round with the same "
            "overrides until it waits for people"
        )
    return settings.ledger.open(create=False, migrate=True)


def _last_round(settings: Settings, ledger: Ledger) -> RoundFolder:
    number = max(held.round for held in ledger.rounds())
    if number == 0:
        raise ValueError(
            f"arm {settings.arm} has only its first labels: run launch.round until it waits for "
            "people"
        )
    return RoundFolder(settings, number)


def _server(config: HandOffConfig) -> LabelStudio:
    assert config.url is not None, "checked by the config"
    return LabelStudio(config.url, page=config.page)


def _project(settings: Settings, ledger: Ledger, folder: RoundFolder) -> Project:
    held = next(record for record in ledger.rounds() if record.round == folder.number)
    mark = mark_of(
        run=settings.name,
        arm=settings.arm,
        round=held.round,
        checkpoint=held.checkpoint_hash,
        store=held.store_hash,
    )
    title = f"{settings.name} {settings.arm} round {held.round}"
    return Project(title, mark, settings.tasks, folder.config.answers_per_clip)


def _media_base(config: HandOffConfig, media: Stage) -> tuple[str, str | None]:
    """What precedes the names of files, and the folder to register on the server."""
    if config.media_url is not None:
        return f"{config.media_url.rstrip('/')}/", None
    assert config.document_root is not None, "checked by the config"
    place = media.path.resolve()
    return local_files_base(place, Path(config.document_root)), str(place)


def main() -> None:
    """Read the action, then the overrides as every command of Hydra does."""
    actions = ", ".join(ACTIONS)
    if len(sys.argv) < 2 or sys.argv[1] not in ACTIONS:
        given = sys.argv[1] if len(sys.argv) > 1 else "nothing"
        print(f"error: the action is {given}: give one of {actions}", file=sys.stderr)
        raise SystemExit(2)
    act = ACTIONS[sys.argv.pop(1)]
    console = Console(log_path=False)

    @command("round")
    def run(config: DictConfig) -> None:
        act(
            Settings.from_config(config),
            lambda text: console.print(text, soft_wrap=True, markup=False, highlight=False),
        )

    run()


if __name__ == "__main__":
    main()
