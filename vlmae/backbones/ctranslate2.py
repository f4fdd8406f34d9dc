"""Read CTranslate2's `model.bin` and name its Whisper encoder tensors as transformers does.

CTranslate2 stores a list of named variables (name, rank, dimensions, type, bytes) and a list of
aliases; its query, key and value projections are one fused matrix.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor

NUMPY_TYPES = {0: np.float32, 1: np.int8, 2: np.int16, 3: np.int32, 4: np.float16}
BFLOAT16 = 5
SPECIFICATION_VERSION = 6


def read_variables(path: Path) -> dict[str, Tensor]:
    """All variables of a CTranslate2 model file, aliases resolved.

    Raises:
        ValueError: a version or a type that this reader does not know.
    """
    with open(path, "rb") as stream:
        version = _unsigned(stream)
        if version != SPECIFICATION_VERSION:
            raise ValueError(
                f"{path} has CTranslate2 format {version}, this reads {SPECIFICATION_VERSION}: "
                "install the wheel version in requirements/encoders.txt"
            )
        _string(stream)  # the model's class
        _unsigned(stream)  # its revision
        variables = {}
        for _ in range(_unsigned(stream)):
            name = _string(stream)
            rank = stream.read(1)[0]
            shape = [_unsigned(stream) for _ in range(rank)]
            kind = stream.read(1)[0]
            raw = bytearray(stream.read(_unsigned(stream)))
            if kind == BFLOAT16:
                variables[name] = torch.frombuffer(raw, dtype=torch.bfloat16).reshape(shape)
            elif kind in NUMPY_TYPES:
                values = np.frombuffer(raw, NUMPY_TYPES[kind]).reshape(shape)
                variables[name] = torch.from_numpy(values)
            else:
                raise ValueError(f"{path}: variable {name} has unknown type {kind}")
        for _ in range(_unsigned(stream)):
            alias = _string(stream)
            variables[alias] = variables[_string(stream)]
    return variables


def whisper_encoder_state(variables: dict[str, Tensor]) -> dict[str, Tensor]:
    """State dict of transformers' `WhisperEncoder`, float32."""

    def get(name: str) -> Tensor:
        return variables[f"encoder/{name}"].float()

    state = {
        "embed_positions.weight": get("position_encodings/encodings"),
        "layer_norm.weight": get("layer_norm/gamma"),
        "layer_norm.bias": get("layer_norm/beta"),
    }
    for name in ("conv1", "conv2"):
        state[f"{name}.weight"] = get(f"{name}/weight")
        state[f"{name}.bias"] = get(f"{name}/bias")
    layer = 0
    while f"encoder/layer_{layer}/ffn/linear_0/weight" in variables:
        source, target = f"layer_{layer}/", f"layers.{layer}."
        weights = get(source + "self_attention/linear_0/weight").chunk(3)
        biases = get(source + "self_attention/linear_0/bias").chunk(3)
        if biases[1].abs().max() != 0:
            raise ValueError(
                f"encoder layer {layer}: Whisper's key projection has no bias, found one"
            )
        for name, weight, bias in zip(("q_proj", "k_proj", "v_proj"), weights, biases, strict=True):
            state[f"{target}self_attn.{name}.weight"] = weight
            if name != "k_proj":
                state[f"{target}self_attn.{name}.bias"] = bias
        for name, module in (
            ("self_attention/linear_1", "self_attn.out_proj"),
            ("ffn/linear_0", "fc1"),
            ("ffn/linear_1", "fc2"),
        ):
            state[f"{target}{module}.weight"] = get(f"{source}{name}/weight")
            state[f"{target}{module}.bias"] = get(f"{source}{name}/bias")
        for name, module in (
            ("self_attention/layer_norm", "self_attn_layer_norm"),
            ("ffn/layer_norm", "final_layer_norm"),
        ):
            state[f"{target}{module}.weight"] = get(f"{source}{name}/gamma")
            state[f"{target}{module}.bias"] = get(f"{source}{name}/beta")
        layer += 1
    return state


def _unsigned(stream: BinaryIO) -> int:
    value: int = struct.unpack("<I", stream.read(4))[0]
    return value


def _string(stream: BinaryIO) -> str:
    length: int = struct.unpack("<H", stream.read(2))[0]
    return stream.read(length)[:-1].decode("utf-8")
