"""The keys under which parts of caches and stores are lent (`lsb.artifact.Part.key`).

A part is keyed by the hashes of the shard it was made from. When clips are taken out of a shard,
its hashes change; a cache's part without these clips is what the changed shard gives, so it must
bear the key that will be asked for (`new_key`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lsb.files import fingerprint
from vlmae.data.index import INDEX_ENDING

Manifest = Mapping[str, Any]
SOURCES = ("data", "prefix", "cache")


def shard_key(
    part: str, files: Mapping[str, Mapping[str, Any]], prefix: Mapping[str, Any], revision: int
) -> str:
    """Hash of what determines the frozen tokens of one shard.

    Args:
        part: name of the shard.
        files: name -> record of each of its files in the manifest of the data set.
        prefix: weights, decode policy, threads: `vlmae.data.prefix_cache.Prefix.key`.
        revision: of the cache's code.
    """
    hashes = {name.removeprefix(part): told["sha256"] for name, told in files.items()}
    kept = {end: hashes[end] for end in (".tar", INDEX_ENDING) if end in hashes}
    return fingerprint([revision, dict(prefix), kept])


def cache_key(shard: str, dtype: str, part: str) -> str:
    """Key of one part of a cache, by the `shard_key` of its shard and how tokens are kept."""
    return fingerprint([shard, dtype, part])


def embed_key(
    hashed: Mapping[str, Any], inputs: Mapping[str, str], tokens: str, part: str, revision: int
) -> str:
    """Key of one part of a store.

    Args:
        hashed: the stage's config without its split.
        inputs: its inputs besides the source of the tokens.
        tokens: key of the shard's tokens, `vlmae.data.token_source.TokenSource.shard_key`.
        part: name of the shard.
        revision: of the embedding's code.
    """
    return fingerprint([revision, dict(hashed), dict(inputs), part, tokens])


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
    if stage == "embed" and "whitened" in inputs:  # a new whitening, and so other tokens
        return None
    name = {"cache": "data", "embed": "cache"}.get(stage)
    for source in made.get(inputs.get(name, ""), ()):
        told = source["parts"].get(part)
        if told is None or "redacted" not in told:
            continue
        return (_cache_key if stage == "cache" else _embed_key)(manifest, part, told)
    return None


def _cache_key(manifest: Manifest, part: str, shard: Mapping[str, Any]) -> str:
    config = manifest["config"]
    prefix = {name: value for name, value in config.items() if name not in ("dtype", "towers")}
    made_of = shard_key(part, shard["files"], prefix, manifest["code"]["revision"])
    return cache_key(made_of, config["dtype"], part)


def _embed_key(manifest: Manifest, part: str, tokens: Mapping[str, Any]) -> str:
    hashed = {name: value for name, value in manifest["config"].items() if name != "split"}
    inputs = {name: value for name, value in manifest["inputs"].items() if name not in SOURCES}
    return embed_key(hashed, inputs, tokens["key"], part, manifest["code"]["revision"])
