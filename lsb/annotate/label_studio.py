"""A round as a Label Studio project: made, filled in pages, and read while people are at work.

Written for Label Studio 1.23 and its SDK 2. Doing anything again changes nothing: a project is
known by a mark in its description, a task by its clip. The key of the API comes from the
environment variable LABEL_STUDIO_API_KEY and is stored nowhere.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from lsb.annotate.labelling import CLIP, Task, labelling_config
from lsb.files import fingerprint

API_KEY = "LABEL_STUDIO_API_KEY"
LONGEST_TITLE = 50
EXTRA = "pip install 'vlmae[label-studio]'"


@dataclass(frozen=True)
class Project:
    """Which project a round is.

    Attributes:
        title: for people, at least 3 characters; a long one is cut.
        mark: by which the project is found again; unlike for any other round of any run.
        tasks: to be judged.
        answers_per_clip: by so many people.
    """

    title: str
    mark: str
    tasks: tuple[str, ...]
    answers_per_clip: int


@dataclass(frozen=True)
class Pushed:
    """What a push did.

    Attributes:
        project: its number.
        url: where people work.
        imported: tasks that were not there yet.
        deleted: tasks of clips that were taken down.
    """

    project: int
    url: str
    imported: int
    deleted: int


class LabelStudio:
    """A server.

    Args:
        url: of the server.
        page: tasks imported, or listed, in one request.
        key: of the API; from the environment by default.

    Raises:
        ValueError: there is no key, or the SDK is not installed.
    """

    def __init__(self, url: str, *, page: int = 100, key: str | None = None) -> None:
        try:
            from label_studio_sdk import LabelStudio as Client
        except ImportError as error:
            raise ValueError(f"oracle=label_studio needs its SDK ({error}): {EXTRA}") from error
        key = key or os.environ.get(API_KEY, "")
        if not key:
            raise ValueError(
                f"the environment variable {API_KEY} is not set: copy the access token of your "
                f"account on {url} into it"
            )
        self.url, self.page = url.rstrip("/"), page
        self._client = Client(base_url=self.url, api_key=key)

    def push(
        self,
        project: Project,
        tasks: Sequence[Task],
        folder: str | None,
        gone: Collection[str] = (),
    ) -> Pushed:
        """Make the project where it is not there, and import the tasks that it lacks.

        Killed anywhere and run again it ends the same. Nobody should push one round twice at once.

        Args:
            project: which.
            tasks: all of the round, checked, one a clip.
            folder: of their media, on the server's own disk, to be registered as Local storage:
                without it the server answers 404 for each of them. None if they lie elsewhere.
            gone: ids of clips that were taken down: their tasks are deleted, answers and all.

        Raises:
            ValueError: the server cannot be reached or refuses something; says what.
        """
        with _refusals(self.url):
            number = self._find(project.mark)
            if number is None:
                number = self._make(project)
            if folder is not None:
                self._register(number, folder)
            held = self._held(number)
            surplus = [task for clip in gone for task in held.pop(clip, ())]
            for number_of_task in surplus:
                self._client.tasks.delete(id=str(number_of_task))
            missing = [task for task in tasks if task["data"][CLIP] not in held]
            for start in range(0, len(missing), self.page):
                self._import(number, missing[start : start + self.page])
        return Pushed(number, f"{self.url}/projects/{number}/data", len(missing), len(surplus))

    def export(self, project: Project) -> tuple[list[Mapping[str, Any]], dict[int, str]]:
        """All tasks of a project with their annotations, and user id -> name.

        People may go on working meanwhile. The export has ids of predictions only, which is why
        ours are in the tasks' data.

        Raises:
            ValueError: there is no such project, or the server cannot be reached.
        """
        with _refusals(self.url):
            number = self._find(project.mark)
            if number is None:
                raise ValueError(
                    f"{self.url} has no project of {project.title!r}: push the round first"
                )
            pieces = self._client.projects.exports.download_sync(
                number, export_type="JSON", download_all_tasks=True
            )
            exported = json.loads(b"".join(pieces))
            names = {
                int(user.id): str(user.email or user.username or f"user-{user.id}")
                for user in self._client.users.list()
            }
        return exported, names

    def reopen(
        self,
        exported: Sequence[Mapping[str, Any]],
        again: Collection[str],
        settled: Collection[str],
    ) -> None:
        """Offer tasks to one person more than has answered them, and others to nobody.

        Label Studio offers a task to those who have not answered it while it is not `is_labeled`,
        which it sets when as many answers are there as the task's `overlap` says. Raising the
        overlap does not take it back; and a skip is no such answer, so that a task that was skipped
        would be offered for ever. Doing it again with the same export changes nothing.

        Args:
            exported: see `export`.
            again: clips to be offered.
            settled: clips not to be.

        Raises:
            ValueError: the server cannot be reached or refuses something; says what.
        """
        tasks: dict[str, list[tuple[int, int]]] = {}
        for task in exported:
            answers = [one for one in task.get("annotations", ()) if not one.get("was_cancelled")]
            clip = str(task.get("data", {}).get(CLIP, ""))
            tasks.setdefault(clip, []).append((-len(answers), int(task["id"])))
        with _refusals(self.url):
            for clip in [one for one in (*again, *settled) if one in tasks]:
                # Of a clip with two tasks that one which most people are kept from answering again.
                count, number = min(tasks[clip])
                held = self._client.tasks.get(id=str(number))
                wanted = (1 - count, False) if clip in again else (held.overlap, True)
                if (held.overlap, held.is_labeled) != wanted:
                    overlap, labelled = wanted
                    self._client.tasks.update(id=str(number), overlap=overlap, is_labeled=labelled)

    def _find(self, mark: str) -> int | None:
        found = [
            int(project.id)
            for project in self._client.projects.list(page_size=self.page)
            if (project.description or "").endswith(mark)
        ]
        if len(found) > 1:
            raise ValueError(
                f"{self.url} has {len(found)} projects marked {mark!r} ({found}): delete all but "
                "the one that people work on"
            )
        return found[0] if found else None

    def _make(self, project: Project) -> int:
        made = self._client.projects.create(
            title=shortened(project.title),
            description=f"{project.title}. {project.mark}",
            label_config=labelling_config(project.tasks),
            maximum_annotations=project.answers_per_clip,
            show_skip_button=True,
            enable_empty_annotation=False,
        )
        return int(made.id)

    def _register(self, number: int, folder: str) -> None:
        held = self._client.import_storage.local.list(project=number)
        if not any(PurePosixPath(storage.path or "") == PurePosixPath(folder) for storage in held):
            # Never synchronised: that would make a task of every file.
            self._client.import_storage.local.create(
                project=number, path=folder, title="media", use_blob_urls=True
            )

    def _held(self, number: int) -> dict[str, list[int]]:
        """Clip -> its tasks."""
        held: dict[str, list[int]] = {}
        for task in self._client.tasks.list(
            project=number, fields="task_only", page_size=self.page
        ):
            held.setdefault(str(task.data.get(CLIP, "")), []).append(int(task.id))
        return held

    def _import(self, number: int, tasks: Sequence[Task]) -> None:
        done = self._client.projects.import_tasks(
            number,
            request=tasks,
            return_task_ids=True,
        )
        if done.task_count != len(tasks):
            raise ValueError(
                f"{self.url} took {done.task_count} of {len(tasks)} tasks: push the round again"
            )


def mark_of(**facts: str | int) -> str:
    """By which a project is found again."""
    return f"[vlmae {fingerprint(facts)}]"


def shortened(title: str) -> str:
    """A title that Label Studio takes."""
    if len(title) <= LONGEST_TITLE:
        return title
    digest = fingerprint(title)[:8]
    return f"{title[: LONGEST_TITLE - len(digest) - 1]}-{digest}"


def local_files_base(folder: Path, document_root: Path) -> str:
    """What precedes the names of files that the server reads from its own disk.

    Args:
        folder: with the files.
        document_root: LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT of the server; above `folder`.

    Raises:
        ValueError: it is not.
    """
    from lsb.annotate.labelling import LOCAL_FILES

    inside, root = folder.resolve(), document_root.expanduser().resolve()
    if root not in inside.parents:
        raise ValueError(
            f"oracle.document_root is {document_root}, the media are in {inside}: give a folder "
            "above it, and start the server with LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT set to it"
        )
    return f"{LOCAL_FILES}{inside.relative_to(root).as_posix()}/"


@contextmanager
def _refusals(url: str) -> Iterator[None]:
    """What the server or the network refuses, as one line."""
    import httpx
    from label_studio_sdk.core.api_error import ApiError

    try:
        yield
    except ApiError as error:
        body = error.body if isinstance(error.body, Mapping) else {}
        told = body.get("validation_errors") or body.get("detail") or str(error.body)[:200]
        remedy = {401: f"check {API_KEY}", 403: f"check {API_KEY} and its rights"}.get(
            error.status_code or 0, "see the server's log"
        )
        raise ValueError(
            f"{url} refused a request ({error.status_code}: {told}): {remedy}"
        ) from error
    except httpx.HTTPError as error:
        raise ValueError(
            f"{url} cannot be reached ({type(error).__name__}: {error}): start Label Studio there, "
            "or give oracle.url (docs/annotation.md)"
        ) from error
