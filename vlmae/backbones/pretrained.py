"""Where pretrained weights come from: a Hugging Face hub id or a local `from_pretrained` folder.

transformers reports what goes wrong in many ways: errors of several libraries, warnings about
tensors it filled with random numbers, a tokenizer with an empty vocabulary. Here each becomes one
`ValueError` that names the model and the remedy, before anything is computed with it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase
from transformers.utils import cached_file, logging

from vlmae.backbones.weightless import empty_model, is_weightless

LOCAL = "local"
"""Revision of a local folder: its weights are known by their hash alone."""
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# OSError covers the connection errors of transformers and the hub's missing files.
_NOT_THERE = (OSError, HfHubHTTPError, HFValidationError)


def load_config(
    model: str,
    revision: str | None = None,
    families: Collection[str] = (),
    role: str = "a model",
) -> Any:
    """The configuration of a model.

    Args:
        model: hub id or local folder.
        revision: branch, tag or commit of a hub id; None for its main branch.
        families: model types that fit; empty for any.
        role: what the model is wanted as, for the message, e.g. "an image encoder".

    Raises:
        ValueError: it is not there, cannot be read, or is of another family.
    """
    with _quiet():
        if _is_folder(model) and not (_folder(model) / "config.json").is_file():
            raise ValueError(
                f"folder {model!r} has no config.json: name a folder that save_pretrained wrote"
            )
        try:
            config = AutoConfig.from_pretrained(_place(model), revision=revision)
        except _NOT_THERE as error:
            raise _unavailable("configuration", model, revision, error) from error
        except (ValueError, KeyError) as error:
            # A model_type that this transformers does not know, or none at all.
            raise ValueError(
                f"the config.json of {model!r} cannot be read: {_first_line(error)} "
                "Name a model that the installed transformers knows"
            ) from error
    check_family(config, model, families, role)
    return config


def check_family(
    config: PretrainedConfig, model: str, families: Collection[str], role: str
) -> None:
    """Refuses a model of another modality or of a family without a stream.

    Raises:
        ValueError: names the family found and those that fit.
    """
    if families and config.model_type not in families:
        raise ValueError(
            f"{model!r} is of the family {config.model_type!r} and cannot be {role}: "
            f"use one of {', '.join(sorted(families))}"
        )


def load_model(
    kind: Any,
    model: str,
    revision: str | None = None,
    dtype: str = "float32",
    absent: Collection[str] = (),
    **settings: Any,
) -> Any:
    """A model whose weights were all loaded; one without weights inside `without_weights`.

    Args:
        kind: class with `from_pretrained`, e.g. `AutoModel` or `CLIPVisionModel`.
        model: hub id or local folder.
        revision: branch, tag or commit of a hub id; None for its main branch.
        dtype: "float32", "bfloat16" or "float16".
        absent: prefixes of tensor names that the file may lack because nothing reads them, e.g.
            "pooler.".
        **settings: passed to `from_pretrained`.

    Returns:
        The model in evaluation mode.

    Raises:
        ValueError: it is not there, or its file lacks tensors or has them in other shapes.
    """
    wanted = dtype_of(dtype)
    if is_weightless():
        config = load_config(model, revision)
        own = getattr(kind, "config_class", None)
        if own is not None and not isinstance(config, own):  # a part of a larger model
            config = own.from_pretrained(_place(model), revision=revision)
        return empty_model(kind, config, wanted, **settings)
    with _quiet():
        try:
            loaded, report = kind.from_pretrained(
                _place(model), revision=revision, dtype=wanted, output_loading_info=True, **settings
            )
        except _NOT_THERE as error:
            raise _unavailable("weights", model, revision, error) from error
        except (RuntimeError, SafetensorError) as error:
            # transformers' message for other shapes says only "see the report above".
            raise ValueError(
                f"the weights of {model!r} do not fit {kind.__name__} or are damaged "
                f"({_first_line(error)}): download or save them again"
            ) from error
    missing = sorted(name for name in report["missing_keys"] if not name.startswith(tuple(absent)))
    if missing:
        named = ", ".join(missing[:3])
        raise ValueError(
            f"the weights of {model!r} lack {len(missing)} tensors of {kind.__name__}, "
            f"first {named}: they would be random; name a complete checkpoint of that kind"
        )
    result: nn.Module = loaded.eval()
    return result


def load_processor(kind: Any, model: str, revision: str | None = None, **settings: Any) -> Any:
    """A tokenizer, image processor, feature extractor or processor.

    Args:
        kind: class with `from_pretrained`, e.g. `AutoTokenizer`, `AutoImageProcessor`.
        model: hub id or local folder.
        revision: branch, tag or commit of a hub id; None for its main branch.
        **settings: passed to `from_pretrained`.

    Raises:
        ValueError: its files are not there; a tokenizer without its vocabulary is refused, too.
    """
    with _quiet():
        try:
            processor = kind.from_pretrained(_place(model), revision=revision, **settings)
        except _NOT_THERE as error:
            raise _unavailable("processor files", model, revision, error) from error
        except (ValueError, ImportError, TypeError) as error:
            raise ValueError(
                f"{kind.__name__} cannot read the processor files of {model!r} "
                f"({_first_line(error)}): save the processor that the model was trained with "
                "beside its weights"
            ) from error
    tokenizer = getattr(processor, "tokenizer", processor)
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        # Without files transformers builds a tokenizer that knows its special tokens only.
        files = sorted({"tokenizer.json", *tokenizer.vocab_files_names.values()})
        if not any(find_file(model, name, revision) for name in files):
            raise ValueError(
                f"{model!r} has no vocabulary ({', '.join(files)}): save its tokenizer beside its "
                "weights"
            )
    return processor


def identity_of(model: str, revision: str | None = None, config: Any = None) -> tuple[str, str]:
    """Name and revision for a `FrozenIdentity`; never a path of this machine.

    Args:
        model: hub id or local folder.
        revision: as asked for.
        config: as loaded, which knows the commit; loaded here if None.

    Returns:
        The folder's name and "local", or the hub id and the commit it resolved to.
    """
    if _is_folder(model):
        return _folder(model).resolve().name, LOCAL
    known = load_config(model, revision) if config is None else config
    return model, str(getattr(known, "_commit_hash", None) or revision or "main")


def licence_of(model: str, revision: str | None = None) -> str | None:
    """`license` of the model card's metadata; None if the card or the entry is not there.

    Args:
        model: hub id or local folder.
        revision: branch, tag or commit of a hub id; None for its main branch.
    """
    card = find_file(model, "README.md", revision)
    if card is None:
        return None
    licence = ModelCard.load(card, ignore_metadata_errors=True).data.get("license")
    return None if licence is None else str(licence)


def find_file(model: str, name: str, revision: str | None = None) -> Path | None:
    """Path of one file of a model, downloaded if need be; None if it is not there."""
    if _is_folder(model):
        path = _folder(model) / name
        return path if path.is_file() else None
    with _quiet():
        found = cached_file(
            model,
            name,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    return None if found is None else Path(str(found))


def processor_sha256(processor: Any) -> str:
    """sha256 over the settings of an image processor or feature extractor, the vocabulary and ways
    of a tokenizer, or of a processor of several parts all of these and the chat template.

    The same weights give other tokens with another processor, so it is part of an identity.
    """
    if isinstance(processor, PreTrainedTokenizerBase):
        # Lower case, accents, spaces and marks are handled outside the vocabulary: one text tells.
        ways = processor("  A Tale: d\u00e9j\u00e0-Vu, 1984!  <s>")["input_ids"]
        known: Any = [sorted(processor.get_vocab().items()), ways]
    elif hasattr(processor, "tokenizer"):
        # Its own dict leaves out these two.
        template = getattr(processor, "chat_template", None)
        known = [processor.to_dict(), processor_sha256(processor.tokenizer), template]
    else:
        known = processor.to_dict()
    text = json.dumps(known, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def dtype_of(name: str) -> torch.dtype:
    """The torch type of a name in a configuration.

    Raises:
        ValueError: it is not one of `DTYPES`.
    """
    if name not in DTYPES:
        raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, got {name!r}")
    return DTYPES[name]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without progress bars and load reports: what matters in them is an error here."""
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def _folder(model: str) -> Path:
    return Path(model).expanduser()


def _is_folder(model: str) -> bool:
    return _folder(model).is_dir()


def _place(model: str) -> str:
    return str(_folder(model)) if _is_folder(model) else model


def _unavailable(what: str, model: str, revision: str | None, error: Exception) -> ValueError:
    """What to do about files that could not be had."""
    reason = _first_line(error)
    if _is_folder(model):
        return ValueError(
            f"folder {model!r} has no usable {what} ({reason}): save model and processor there "
            "with save_pretrained, or download the folder again"
        )
    causes = _chain(error)
    if model.count("/") > 1 or model.startswith((".", "/", "~")):
        return ValueError(f"there is no folder {model!r}: correct the path or name a hub id")
    if any(isinstance(e, GatedRepoError) for e in causes):
        return ValueError(
            f"{model!r} is gated: accept its terms on the hub and log in with `hf auth login`"
        )
    if any(isinstance(e, RevisionNotFoundError) for e in causes):
        return ValueError(f"{model!r} has no revision {revision!r}: name a branch, tag or commit")
    if any(isinstance(e, RepositoryNotFoundError) for e in causes):
        return ValueError(
            f"the hub has no model {model!r}, or only for its members: correct the id, or log in "
            "with `hf auth login`"
        )
    if any(
        isinstance(e, EntryNotFoundError) and not isinstance(e, LocalEntryNotFoundError)
        for e in causes
    ):
        return ValueError(f"{model!r} has no {what} ({reason}): name a complete model")
    if any(isinstance(e, HFValidationError) for e in causes):
        return ValueError(f"{model!r} is neither a folder nor a hub id ({reason}): correct it")
    at = "" if revision is None else f" --revision {revision}"
    return ValueError(
        f"cannot get the {what} of {model!r}: it is no local folder, not in this machine's cache, "
        "and the hub cannot be reached: give a local folder, or download it first on a machine "
        f"with network: `hf download {model}{at}`"
    )


def _chain(error: BaseException) -> list[BaseException]:
    causes, current = [], error
    while current is not None and current not in causes:
        causes.append(current)
        current = current.__cause__ or current.__context__  # type: ignore[assignment]
    return causes


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
