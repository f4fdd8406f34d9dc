"""Which tasks Label Studio is told to offer again: by a client that keeps them in memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from lsb.annotate.label_studio import LabelStudio

pytest.importorskip("label_studio_sdk", reason="pip install 'vlmae[label-studio]'")


class Tasks:
    """As Label Studio 1.23: an overlap that is raised does not make a task unlabelled."""

    def __init__(self, **held: tuple[int, bool]) -> None:
        self.held = {name.lstrip("t"): SimpleNamespace(overlap=o, is_labeled=done)
                     for name, (o, done) in held.items()}  # fmt: skip
        self.updates = 0

    def get(self, id: str) -> Any:
        return self.held[id]

    def update(self, id: str, *, overlap: int, is_labeled: bool) -> None:
        self.updates += 1
        self.held[id] = SimpleNamespace(overlap=overlap, is_labeled=is_labeled)

    @property
    def state(self) -> dict[str, tuple[int, bool]]:
        return {name: (task.overlap, task.is_labeled) for name, task in self.held.items()}


def exported(number: int, clip: str, *cancelled: bool) -> dict[str, Any]:
    annotations = [{"id": place, "was_cancelled": one} for place, one in enumerate(cancelled)]
    return {"id": number, "data": {"clip_id": clip}, "annotations": annotations}


def test_open_clips_are_offered_and_settled_ones_are_not() -> None:
    tasks = Tasks(t1=(2, True), t2=(3, False), t3=(2, True), t4=(2, False), t5=(2, True))
    server = LabelStudio("http://127.0.0.1:1", key="none")
    server._client = SimpleNamespace(tasks=tasks)  # type: ignore[assignment]
    told = [
        exported(1, "conflict", False, False),
        exported(2, "skipped by the third", False, False, True),
        exported(3, "agreed", False, False),
        exported(4, "twice", False),
        exported(5, "twice", False, False),
    ]
    for _ in range(2):
        server.reopen(told, ["conflict", "twice", "gone"], ["skipped by the third"])
        assert tasks.state == {
            "1": (3, False),
            "2": (3, True),
            "3": (2, True),
            "4": (2, False),
            "5": (3, False),
        }
        assert tasks.updates == 3, "again it changes nothing"
