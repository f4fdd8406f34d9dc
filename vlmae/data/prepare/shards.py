"""Shards: a webdataset tar of mp4 and json, and two tables beside it.

    {split}-{index:05d}.tar              {key}.mp4, {key}.json for every clip, plain USTAR
    {split}-{index:05d}.index.parquet    what a reader needs: id, key, byte range, probe
    {split}-{index:05d}.truth.parquet    what an oracle knows: labels, recordings, how broken

The json and the index hold no label and no recording: the pool must not give its labels away.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsb.artifact import Counts, Part
from lsb.ids import ID_TYPE, sample_id
from vlmae.data.decode.clip import BadClipError
from vlmae.data.index import INDEX_SCHEMA
from vlmae.data.prepare.bank import Bank, open_bank
from vlmae.data.prepare.compose import TASKS, Composition, broken_clips, clip_rng, compose
from vlmae.data.prepare.config import SPLITS, PrepareConfig
from vlmae.data.prepare.encode import encode
from vlmae.data.prepare.probe import Probe, probe
from vlmae.data.prepare.render import draw_frames, mix_sound
from vlmae.data.records import END_OF_TAR, write_sample

_TRUTH_FIELDS: list[tuple[str, pa.DataType]] = [
    ("id", ID_TYPE),
    ("key", pa.string()),
    *((task, pa.int8()) for task in TASKS),
    ("shown", pa.int8()),
    ("spoken", pa.int8()),
    ("speaker", pa.string()),
    ("background", pa.string()),
    ("title_clickbait", pa.int8()),
    ("picture_recording", pa.string()),
    ("voice_recording", pa.string()),
    ("background_recording", pa.string()),
    ("title_recording", pa.string()),
    ("source_group", pa.string()),
    ("broken", pa.string()),
    ("split", pa.string()),
]
TRUTH_SCHEMA = pa.schema(_TRUTH_FIELDS)


@dataclass(frozen=True)
class ShardMaker:
    """Makes one shard and its tables; called by the stage runner, maybe in another process.

    Attributes:
        config: of the data set.
        bank: folder of the recordings.
        split: of the clips.
        number: of the shard in its split.
        broken: (key, kind) of the clips to break in this shard.
    """

    config: PrepareConfig
    bank: Path
    split: str
    number: int
    broken: tuple[tuple[str, str], ...]

    @property
    def name(self) -> str:
        """File name of the shard without its ending."""
        return f"{self.split}-{self.number:05d}"

    @property
    def files(self) -> tuple[str, ...]:
        """Files that making this shard writes."""
        return tuple(f"{self.name}.{end}" for end in ("tar", "index.parquet", "truth.parquet"))

    @property
    def keys(self) -> list[str]:
        """Keys of the clips in this shard, in order."""
        start = self.number * self.config.shard_clips
        stop = min(start + self.config.shard_clips, self.config.sizes[self.split])
        return [self.config.key(self.split, index) for index in range(start, stop)]

    def __call__(self, folder: Path) -> Counts:
        """Write the shard and its tables into `folder`."""
        bank = open_bank(self.bank, self.config.unseen_speakers, self.config.seen_in_test)
        broken = dict(self.broken)
        index: list[dict[str, Any]] = []
        truth: list[dict[str, Any]] = []
        counts = {f"{self.split}.clips": 0}
        with open(folder / self.files[0], "wb") as stream:
            for key in self.keys:
                clip = compose(self.config, bank, self.split, key)
                kind = broken.get(key)
                media = _make_media(self.config, bank, key, clip, kind)
                title = bank.value("titles", clip.title, "title")
                described = self._describe(key, title)
                place = write_sample(stream, key, {"mp4": media, "json": described})
                index.append(self._index_row(key, title, place, media))
                truth.append(self._truth_row(key, bank, clip, kind))
                _count(counts, self.split, clip, kind)
            stream.write(END_OF_TAR)
        for name, rows, schema in (
            (self.files[1], index, INDEX_SCHEMA),
            (self.files[2], truth, TRUTH_SCHEMA),
        ):
            pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name)
        return counts

    def _describe(self, key: str, title: str) -> bytes:
        fields = {
            "key": key,
            "title": title,
            "split": self.split,
            "data": self.config.name,
            "synthetic": self.config.synthetic,
            "duration_s": self.config.clip_seconds,
        }
        return json.dumps(fields, ensure_ascii=False).encode("utf-8")

    def _index_row(
        self, key: str, title: str, place: tuple[int, int], media: bytes
    ) -> dict[str, Any]:
        try:
            found = probe({"mp4": media}, key)
        except BadClipError:
            found = Probe("mp4")  # broken on purpose: whoever reads it finds out, as in a stream
        return {
            "id": sample_id(key),
            "key": key,
            "shard": self.files[0],
            "offset": place[0],
            "size": place[1],
            "title": title,
            "split": self.split,
            **found.columns(),
        }

    def _truth_row(
        self, key: str, bank: Bank, clip: Composition, broken: str | None
    ) -> dict[str, Any]:
        recordings = {
            f"{kind[:-1]}_recording": bank.value(kind, getattr(clip, kind[:-1]), "recording")
            for kind in ("pictures", "voices", "backgrounds", "titles")
        }
        return {
            "id": sample_id(key),
            "key": key,
            **{task: int(getattr(clip, task)) for task in TASKS},
            "shown": clip.shown,
            "spoken": clip.spoken,
            "speaker": clip.speaker,
            "background": clip.background_class,
            "title_clickbait": int(bank.value("titles", clip.title, "clickbait")),
            **recordings,
            "source_group": bank.value("voices", clip.voice, "group"),
            "broken": broken,
            "split": self.split,
        }


def _make_media(
    config: PrepareConfig, bank: Bank, key: str, clip: Composition, broken: str | None
) -> bytes:
    frames = draw_frames(bank.ink(clip.picture), config, clip_rng(config.seed, key, "frames"))
    sound = mix_sound(
        bank.sound("voices", clip.voice),
        bank.sound("backgrounds", clip.background),
        config,
        clip_rng(config.seed, key, "sound"),
    )
    return encode(frames, sound, config, broken)


def _count(counts: Counts, split: str, clip: Composition, broken: str | None) -> None:
    names = ["clips", *(task for task in TASKS if getattr(clip, task))]
    if broken:
        names.append(f"broken.{broken}")
    for name in names:
        counts[f"{split}.{name}"] = counts.get(f"{split}.{name}", 0) + 1


def shard_parts(config: PrepareConfig, bank: Path) -> list[Part]:
    """One part for each shard of each split."""
    parts = []
    for split in SPLITS:
        broken = broken_clips(config, split)
        for number in range(-(-config.sizes[split] // config.shard_clips)):
            maker = ShardMaker(config, bank, split, number, ())
            kinds = tuple((key, broken[key]) for key in maker.keys if key in broken)
            maker = ShardMaker(config, bank, split, number, kinds)
            parts.append(Part(maker.name, maker.files, maker))
    return parts
