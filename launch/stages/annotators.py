"""Who labels: one settings class for every kind of `conf/oracle`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from typing_extensions import TypedDict

from lsb.annotate.simulated import SimulatedConfig, require_amounts
from vlmae.config import build, checked
from vlmae.handoff import MediaConfig

# What a round that waits may go on with other values of.
NOT_HASHED = (
    "further_answers",
    "share",
    "url",
    "document_root",
    "media_url",
    "page",
    "processes",
)


class OracleOptions(TypedDict):
    """Options of the simulated annotator of `lsb.annotate.oracle`."""

    noise: float
    seed: int


@dataclass(frozen=True)
class HandOffConfig:
    """People, who get clips and questions and answer when they can.

    Attributes:
        kind: `files`: JSON Lines and media in a folder; `label_studio`: a project a round.
        answers_per_clip: people who answer or skip a clip before it is done.
        further_answers: how many others are asked at most, one after the other, about a clip that
            the answers so far leave open in some task.
        share: of the clips that must be done before a round goes on, in (0, 1].
        price: of one judgement, a clip in a task, in units of your choice.
        hourly_wage: for the time that answers state.
        neighbours: labelled ones shown with each clip.
        titles: whether titles are handed off.
        processes: clips rendered at a time.
        media: what people see and hear.
        url: of the Label Studio server.
        document_root: folder above the media that the server reads from its own disk.
        media_url: address that media were copied to instead; file names are appended.
        page: tasks in one request.
    """

    kind: Literal["files", "label_studio"]
    answers_per_clip: int = 1
    further_answers: int = 1
    share: float = 1.0
    price: float = 0.0
    hourly_wage: float = 0.0
    neighbours: int = 3
    titles: bool = True
    processes: int = 1
    media: MediaConfig = field(default_factory=MediaConfig)
    url: str | None = None
    document_root: str | None = None
    media_url: str | None = None
    page: int = 100

    def __post_init__(self) -> None:
        for name in ("answers_per_clip", "processes", "page"):
            if getattr(self, name) < 1:
                raise ValueError(f"oracle.{name} is {getattr(self, name)}: give 1 or more")
        for name in ("neighbours", "further_answers"):
            if getattr(self, name) < 0:
                raise ValueError(f"oracle.{name} is {getattr(self, name)}: give 0 or more")
        if not 0 < self.share <= 1:
            raise ValueError(f"oracle.share is {self.share}: give a share in (0, 1]")
        require_amounts("oracle", price=self.price, hourly_wage=self.hourly_wage)
        if self.kind == "label_studio" and not (
            self.url and (self.document_root or self.media_url)
        ):
            raise ValueError(
                "oracle=label_studio needs oracle.url, and oracle.document_root or oracle.media_url"
            )

    @property
    def most_answers(self) -> int:
        """People who are asked about one clip at most."""
        return self.answers_per_clip + self.further_answers

    def identity(self) -> dict[str, Any]:
        """What of it can change which labels a run has."""
        return {name: value for name, value in asdict(self).items() if name not in NOT_HASHED}


OracleConfig = OracleOptions | SimulatedConfig | HandOffConfig


def oracle_config(values: Mapping[str, Any]) -> OracleConfig:
    """Settings of the group `oracle`; a group without `kind` is the exact one.

    Raises:
        ValueError: a value is out of range or of the wrong kind; names the key.
    """
    kind = values.get("kind")
    if kind is None:
        options: OracleOptions = checked("oracle", OracleOptions, dict(values))
        return options
    if kind == "simulated":
        return build("oracle", SimulatedConfig, values)
    if kind in ("files", "label_studio"):
        return build("oracle", HandOffConfig, values)
    raise ValueError(
        f"oracle.kind is {kind!r}: use simulated, files or label_studio, or none for exact answers"
    )
