"""The keys under which parts of caches and stores are lent, after their shards changed.

`vlmae.data.prefix_cache` and `vlmae.embedding` key a part by the hashes of the shard it was made
from. When clips are taken out of a shard, its hashes change; a cache's part without these clips is
what the changed shard gives, so it must bear the key that will be asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lsb.files import fingerprint
from vlmae.data.index import INDEX_ENDING

Manifest = Mapping[str, Any]
SOURCES = ("data", "prefix", "cache")


def new_key(manifest: Manifest, part: str, made: Mapping[str, Sequence[Manifest]]) -> str | None:
    """Key of one part of a cache or store as its changed source gives it.

    Args:
        manifest: of the stage that holds the part.
        part: its name.
        made: content -> manifests of the finished stages with it, redacted already.

    Returns:
        The key; None where the source has not changed, is not there, or does not tell enough (a
        store that was embedded without a cache). A part then keeps its key, and is at worst made
        again when somebody wants the changed one.
    """
    inputs, stage = manifest["inputs"], manifest["stage"]
    name = {"cache": "data", "embed": "cache"}.get(stage)
    for source in made.get(inputs.get(name, ""), ()):
        told = source["parts"].get(part)
        if told is None or "redacted" not in told:
            continue
        return (_cache_key if stage == "cache" else _embed_key)(manifest, part, told)
    return None


def _cache_key(manifest: Manifest, part: str, shard: Mapping[str, Any]) -> str:
    """As `vlmae.data.prefix_cache` makes it."""
    config, revision = manifest["config"], manifest["code"]["revision"]
    key = {name: value for name, value in config.items() if name not in ("dtype", "towers")}
    files = {name.removeprefix(part): told["sha256"] for name, told in shard["files"].items()}
    kept = {end: files[end] for end in (".tar", INDEX_ENDING) if end in files}
    return fingerprint([fingerprint([revision, key, kept]), config["dtype"], part])


def _embed_key(manifest: Manifest, part: str, tokens: Mapping[str, Any]) -> str:
    """As `vlmae.embedding` makes it."""
    hashed = {name: value for name, value in manifest["config"].items() if name != "split"}
    inputs = {name: value for name, value in manifest["inputs"].items() if name not in SOURCES}
    return fingerprint([manifest["code"]["revision"], hashed, inputs, part, tokens["key"]])
