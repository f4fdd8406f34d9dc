"""LoRA on the blocks behind a cut, by peft.

Source: Hu et al. 2021 (arXiv 2106.09685): W x + (alpha / rank) B A x with W frozen, A random and B
zero, so that training starts from exactly the loaded model. The paper adapts attention alone; that
all linear layers of the blocks do better is from Dettmers et al. 2023 (QLoRA, arXiv 2305.14314).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

ADAPTER = "default"
BASE = "base_layer."


def add_lora(
    stream: nn.Module,
    name: str,
    *,
    rank: int,
    alpha: int,
    dropout: float,
    targets: Sequence[str] | None,
) -> None:
    """Put low-rank updates on layers of a stream's blocks, in place; nothing else trains.

    A is drawn from torch's global generator. Names stay: `layers.3.self_attn.q_proj` gets
    `lora_A.default.weight`, and its own weight moves to `base_layer.weight`.

    Args:
        stream: what lies behind its cut (`vlmae.backbones.suffix.StreamSuffix`).
        name: of the stream, for messages.
        rank: of the updates.
        alpha: they are scaled by alpha / rank.
        dropout: on their inputs, in [0, 1).
        targets: last parts of the names of the layers; None takes every linear layer and every
            pointwise convolution, which is a linear layer over channels.

    Raises:
        ValueError: there is no such layer.
    """
    # Takes seconds, and only this mode needs it.
    from peft import LoraConfig, inject_adapter_in_model

    stream.requires_grad_(False)
    possible = [key for key, module in _block_modules(stream) if is_linear(module)]
    if targets is None:
        chosen = possible
    else:
        ends = tuple(f".{target}" for target in targets)
        chosen = [key for key in possible if f".{key}".endswith(ends)]
        idle = [t for t in targets if not any(f".{key}".endswith(f".{t}") for key in chosen)]
        if chosen and idle:
            raise ValueError(
                f"LoRA target {idle[0]!r} is no layer of stream {name!r} behind the cut, which has "
                f"{sorted({key.rsplit('.', 1)[-1] for key in possible})}: mend or drop it"
            )
    if not chosen:
        last = sorted({key.rsplit(".", 1)[-1] for key in possible})
        raise ValueError(
            f"LoRA finds no layer for targets {list(targets) if targets else 'null'} in the blocks "
            f"of stream {name!r} behind the cut, which have {last}: choose other targets, or leave "
            "the stream out of tuning.<tower>.blocks"
        )
    config = LoraConfig(
        r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen, bias="none"
    )
    inject_adapter_in_model(config, stream, ADAPTER)
    for key, parameter in stream.named_parameters():
        parameter.requires_grad_(".lora_" in key)


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer, over channels too."""
    if isinstance(module, nn.Conv2d):
        return module.kernel_size == (1, 1) and module.groups == 1
    return isinstance(module, nn.Linear)


def loaded_name(name: str) -> str | None:
    """Name that a tensor behind a cut has in the tower as loaded; None for LoRA's own.

    Args:
        name: in a tuned suffix, e.g. "audio.layers.3.fc1.base_layer.weight".
    """
    return None if ".lora_" in name else name.replace(f".{BASE}", ".")


def _block_modules(stream: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules in the blocks of a stream, with their names in it: no embedding and no final norm."""
    found = []
    for part in ("layers", "network"):
        blocks = getattr(stream, part, None)
        if isinstance(blocks, nn.Module):
            found += [(f"{part}.{key}", module) for key, module in blocks.named_modules() if key]
    return found
