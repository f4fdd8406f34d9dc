"""The stage `prepare` of media that exist already: a folder, a manifest, or another shard set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from lsb.artifact import Counts, Part, Stage, file_sha256, open_stage, run_stage
from lsb.files import link
from lsb.ids import texts
from vlmae.data.index import INDEX_ENDING, read_index
from vlmae.data.prepare.ingest.clips import (
    SourceClip,
    clip_key,
    deal,
    identity,
    require_unique_keys,
)
from vlmae.data.prepare.ingest.config import IngestConfig
from vlmae.data.prepare.ingest.listing import folder_clips, manifest_clips
from vlmae.data.prepare.ingest.maker import CopyMaker, InPlaceMaker
from vlmae.data.prepare.ingest.scan import find_shards, shard_samples
from vlmae.data.records import fits
from vlmae.data.redaction import guarded, redacted
from vlmae.data.storage import is_remote
from vlmae.data.tombstones import taken_down_of

INGEST_REVISION = 3  # raise it when ingest writes other bytes for the same config


@dataclass(frozen=True)
class LinkMaker:
    """Takes one part over from a finished stage, whose files never change.

    Attributes:
        folder: of that stage.
        files: of the part, name and sha256.
        counts: of the part.
    """

    folder: Path
    files: tuple[tuple[str, str], ...]
    counts: tuple[tuple[str, int], ...]

    def __call__(self, folder: Path) -> Counts:
        """Link the files into `folder`, or copy them where links are impossible.

        Raises:
            ValueError: one is absent or damaged.
        """
        for name, sha256 in self.files:
            source = self.folder / name
            if not source.is_file() or file_sha256(source) != sha256:
                raise ValueError(
                    f"{source} is absent or damaged: make the stage that data.extends names again"
                )
            link(source, folder / name)
        return dict(self.counts)


def ingest(root: Path, config: IngestConfig) -> Stage:
    """Make, finish or reuse one data set of existing media.

    A stage is the same as long as the same files have the same sizes and times of modification
    (for objects in a store: etags); their bytes are not hashed, which would cost a second reading.

    Args:
        root: folder of all stages.
        config: the data set.

    Raises:
        ValueError: the source is absent, empty or damaged, two clips have one key, or more than
            `skip_limit` of the clips cannot be used; counts by reason.
        StageError: see `lsb.artifact.run_stage`.
    """
    old = _extended(config)
    parts, described = _parts(root, config, old)
    inputs = {"clips": described}
    if old is not None:
        inputs["extends"] = old.content
    stage = run_stage(
        root,
        "prepare",
        config=config.hashed(),
        inputs=inputs,
        parts=guarded(root, [*(_links(old) if old is not None else []), *parts]),
        processes=config.processes,
        revision=INGEST_REVISION,
    )
    _require_few_skipped(stage, [part.name for part in parts], config.skip_limit)
    return redacted(root, stage)


def _extended(config: IngestConfig) -> Stage | None:
    if config.extends is None:
        return None
    stage = open_stage(Path(config.extends).expanduser().absolute(), verify=False)
    if stage.manifest["stage"] != "prepare":
        raise ValueError(
            f"data.extends is {config.extends}, a {stage.manifest['stage']!r} stage: give the "
            "folder of a finished prepare stage"
        )
    return stage


def _links(old: Stage) -> list[Part]:
    """The parts of a stage, to be taken over unchanged."""
    parts = []
    for name, told in old.manifest["parts"].items():
        files = tuple((file, entry["sha256"]) for file, entry in told["files"].items())
        maker = LinkMaker(old.path, files, tuple(told["counts"].items()))
        parts.append(Part(name, tuple(told["files"]), maker, told.get("key")))
    return parts


def _parts(root: Path, config: IngestConfig, old: Stage | None) -> tuple[list[Part], str]:
    """Parts for the clips that are not in the old stage, and the hash of what they are made of.

    Raises:
        ValueError: two clips have one key.
    """
    held = (
        set(texts(read_index(old)["key"])) | taken_down_of(root, old) if old is not None else set()
    )
    numbers = _next_numbers(old)
    if not config.copy:
        return _in_place_parts(root, config, held, numbers)
    clips = _clips(root, config)
    require_unique_keys(clips)
    new = [clip for clip in clips if clip.key not in held]
    parts: list[Part] = []
    for split in sorted({clip.split for clip in new}):
        shards = deal(
            [clip for clip in new if clip.split == split],
            seed=config.seed,
            shard_clips=config.shard_clips,
            shard_bytes=config.shard_bytes,
        )
        for number, shard in enumerate(shards, numbers[split]):
            maker = CopyMaker(_without_place(config), f"{split}-{number:05d}", shard)
            parts.append(Part(maker.name, maker.files, maker))
    return parts, identity(new)


def _clips(root: Path, config: IngestConfig) -> list[SourceClip]:
    if config.source == "folder":
        return folder_clips(config)
    if config.source == "manifest":
        return manifest_clips(config)
    shards = shard_samples(root, config, find_shards(config))
    return [_with_fitting_key(sample.clip) for shard in shards for sample in shard]


def _with_fitting_key(clip: SourceClip) -> SourceClip:
    """A clip whose key plain USTAR headers hold: other tars may have longer names."""
    endings = [*(member.ending for member in clip.members), "mp4", "json"]
    if fits(clip.key, tuple(endings)):
        return clip
    return replace(clip, key=clip_key(clip.key, endings))


def _in_place_parts(
    root: Path, config: IngestConfig, held: set[str], numbers: Counter[str]
) -> tuple[list[Part], str]:
    shards = find_shards(config)
    found = shard_samples(root, config, shards)
    require_unique_keys(sample.clip for samples in found for sample in samples)
    parts: list[Part] = []
    kept: list[SourceClip] = []
    number = numbers[config.split]
    for shard, samples in zip(shards, found, strict=True):
        new = tuple(sample for sample in samples if sample.clip.key not in held)
        if not new:
            continue
        url = shard.place if is_remote(shard.place) else _file_url(shard.place)
        name = f"{config.split}-{number:05d}"
        maker = InPlaceMaker(_without_place(config), name, url, new)
        parts.append(Part(maker.name, maker.files, maker))
        # Where the shard lies is written into the index.
        kept += [replace(sample.clip, origin=f"{url}/{sample.clip.key}") for sample in new]
        number += 1
    return parts, identity(kept)


def _file_url(place: str) -> str:
    return place if place.startswith("file://") else f"file://{place}"


def _without_place(config: IngestConfig) -> IngestConfig:
    """The settings a part needs: those that say where things are would only make it larger."""
    return replace(config, path=None, root=None, extends=None)


def _next_numbers(old: Stage | None) -> Counter[str]:
    """Split -> number of its first new shard; 0 where it has none yet."""
    numbers: Counter[str] = Counter()
    for name in old.files if old is not None else []:
        if name.endswith(INDEX_ENDING):
            split, number = name.removesuffix(INDEX_ENDING).rsplit("-", 1)
            numbers[split] = max(numbers[split], int(number) + 1)
    return numbers


def _require_few_skipped(stage: Stage, names: Sequence[str], limit: float) -> None:
    """Refuse a stage of whose own parts too many clips are unusable.

    Raises:
        ValueError: counts by reason, and the remedy.
    """
    counts: Counter[str] = Counter()
    for name in names:
        told: dict[str, Any] = stage.manifest["parts"][name]["counts"]
        for key, count in told.items():
            counts[key if key.startswith("skipped: ") else key.rsplit(".", 1)[-1]] += count
    skipped, clips = counts["skipped"], counts["clips"]
    if skipped > limit * (skipped + clips):
        reasons = {k[len("skipped: ") :]: n for k, n in counts.items() if k.startswith("skipped: ")}
        raise ValueError(
            f"{skipped} of {skipped + clips} clips cannot be used ({reasons}), more than "
            f"data.skip_limit={limit}: look at *.quarantine.parquet in {stage.path}, mend the "
            "files or raise the limit"
        )
