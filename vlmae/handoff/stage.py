"""The stage that renders the clips of a round: one part a clip, and a table of what was done.

    runs/stages/handoff-3f2a.../
        <id>.mp4  <id>.sheet.jpg  <id>.wave.png  <id>.mel.png     what people see
        <id>.parquet    id, key, title, method, parameters, seconds: stays on this machine

A takedown empties the files of its clips here, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lsb import ids as sample_ids
from lsb.artifact import Counts, Part, Stage, canonical, fingerprint, run_stage
from lsb.ids import IdArray
from vlmae.data.decode import DecodePolicy, decode_sample
from vlmae.data.index import read_index
from vlmae.data.ranges import RangeReader, tar_members
from vlmae.handoff.anonymise import AnonymiseConfig, anonymise
from vlmae.handoff.pictures import contact_sheet, mel, waveform
from vlmae.handoff.secret import read_secret
from vlmae.handoff.video import clip_video
from vlmae.handoff.voice import SAMPLE_RATE

STAGE = "handoff"
REVISION = 1
ENDINGS = {
    "video": ".mp4",
    "contact_sheet": ".sheet.jpg",
    "waveform": ".wave.png",
    "mel": ".mel.png",
}
RENDERED_FIELDS: dict[str, pa.DataType] = {
    "id": sample_ids.ID_TYPE,
    "key": pa.string(),
    "title": pa.string(),
    "method": pa.string(),
    "parameters": pa.string(),
    "seconds": pa.float64(),
}
RENDERED = pa.schema(RENDERED_FIELDS)


@dataclass(frozen=True)
class MediaConfig:
    """What people see of a clip.

    Attributes:
        frames: on the contact sheet.
        short_side: of the video, in pixels; smaller ones are not enlarged.
        anonymise: what happens to the sound.
    """

    frames: int = 8
    short_side: int = 360
    anonymise: AnonymiseConfig = field(default_factory=AnonymiseConfig)

    def __post_init__(self) -> None:
        if self.short_side < 16:
            raise ValueError(f"media.short_side is {self.short_side}: give at least 16 pixels")
        self.policy()

    def policy(self) -> DecodePolicy:
        """How clips are decoded for it; by PyAV, which gives the same everywhere."""
        return DecodePolicy(self.frames, backend="pyav")


def hand_off_media(
    root: Path,
    data: Stage,
    clips: IdArray,
    config: MediaConfig,
    *,
    processes: int = 1,
    storage_options: Mapping[str, Any] | None = None,
) -> Stage:
    """Render clips, or reuse what was rendered of the same ones in the same way.

    Args:
        root: folder of all stages.
        data: the prepared data set.
        clips: (N,) S16, unique; their order does not matter.
        config: what people see.
        processes: clips at a time.
        storage_options: of fsspec, for shards that lie elsewhere.

    Raises:
        ValueError: a clip is not in the data set, or the secret of voices cannot be read.
        BadClipError: a clip cannot be decoded.
    """
    index = read_index(data)
    rows = {
        row["id"]: row for row in index.select(["id", "key", "shard", "offset", "size"]).to_pylist()
    }
    wanted = sorted(sample_ids.to_bytes(clips))
    absent = [clip for clip in wanted if clip not in rows]
    if absent:
        raise ValueError(
            f"{len(absent)} of {len(wanted)} clips are not in the data set {data.path.name}, first "
            f"{absent[0].hex()}: use the data of the run that chose them"
        )
    secret = read_secret(root) if config.anonymise.method == "shift" else None
    # Its hash, which tells nothing of it: other voices are another stage.
    voices = {"secret": fingerprint(secret.hex())} if secret else {}
    return run_stage(
        root,
        STAGE,
        config={"media": asdict(config), "clips": [clip.hex() for clip in wanted], **voices},
        inputs={"data": data.content},
        parts=[
            Part(
                clip.hex(),
                (
                    *(f"{clip.hex()}{ending}" for ending in ENDINGS.values()),
                    f"{clip.hex()}.parquet",
                ),
                partial(_render, data.path, storage_options, rows[clip], config, secret),
            )
            for clip in wanted
        ],
        processes=processes,
        revision=REVISION,
    )


def media_files(clip: str) -> dict[str, str]:
    """What is shown -> file name, of a clip by the hexadecimal digits of its id."""
    return {kind: f"{clip}{ending}" for kind, ending in ENDINGS.items()}


def read_rendered(stage: Stage) -> pa.Table:
    """What was done to each clip, schema `RENDERED`, ordered by id."""
    tables = [
        pq.read_table(stage.path / name, schema=RENDERED)
        for name in sorted(stage.files)
        if name.endswith(".parquet")
    ]
    return pa.concat_tables([RENDERED.empty_table(), *tables])


def _render(
    data: Path,
    storage_options: Mapping[str, Any] | None,
    row: Mapping[str, Any],
    config: MediaConfig,
    secret: bytes | None,
    output: Path,
) -> Counts:
    """Files of one clip."""
    key, name = row["key"], row["id"].hex()
    with RangeReader(data, storage_options=storage_options) as reader:
        (record,) = reader.read([row["shard"]], [row["offset"]], [row["size"]])
    members = tar_members(record, key)
    clip = decode_sample(members, key=key, policy=config.policy(), sample_rate=SAMPLE_RATE)
    sound = anonymise(row["id"], clip.audio, config.anonymise, secret)
    made = {
        "video": clip_video(members, clip, sound.wave, config.short_side),
        "contact_sheet": contact_sheet(clip.frames),
        "waveform": waveform(sound.wave),
        "mel": mel(sound.wave),
    }
    for kind, content in made.items():
        (output / f"{name}{ENDINGS[kind]}").write_bytes(content)
    told = {
        "id": row["id"],
        "key": key,
        "title": clip.title,
        "method": sound.method,
        "parameters": canonical(sound.parameters),
        "seconds": sound.seconds,
    }
    pq.write_table(pa.Table.from_pylist([told], schema=RENDERED), output / f"{name}.parquet")
    return {"clips": 1, f"anonymised by {sound.method}": int(bool(sound.parameters))}
