"""Fusion and heads as one `torch.export` program that runs without this package.

    program = torch.export.load("fusion_and_heads.pt2").module()
    logits, vl_logits, audio_logits, embedding = program(image, image_mask, text, text_mask, ...)

It reads the tokens that the model reads, behind the cuts of both towers, in the order of `inputs`
in config.json: whitening, projections, fusion and heads are in it, weights of the backbones are
not.
"""

from __future__ import annotations

import copy
import io
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from vlmae.model import TOWERS, VlmaeModel
from vlmae.tokens import Tokens

PROGRAM = "fusion_and_heads.pt2"
OUTPUTS = ("logits", "vl_logits", "audio_logits", "embedding")
# Above 1: torch.export takes sizes of 0 and 1 for constants.
EXAMPLE_CLIPS, EXAMPLE_TOKENS = 3, 4


class FusionAndHeads(nn.Module):
    """The part of a model that reads tokens behind the cuts, with plain tensors as arguments.

    Args:
        model: in evaluation mode; its suffix is left out.
    """

    def __init__(self, model: VlmaeModel) -> None:
        super().__init__()
        bare = copy.copy(model)
        # A shallow copy shares the dict of modules, which differs here.
        bare._modules = {**model._modules, "suffix": None}
        self.model = bare

    def forward(self, *tensors: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (B, K) three times and the embedding (B, D), in the order of `OUTPUTS`.

        Args:
            *tensors: of every stream its values (B, T, width) float32 and its mask (B, T) bool, in
                the order of `program_inputs`.
        """
        streams = {
            name: Tokens(tensors[2 * place], tensors[2 * place + 1])
            for place, name in enumerate(_streams(self.model))
        }
        output = self.model(streams)
        return output.logits, output.vl_logits, output.audio_logits, output.embedding


def program_inputs(model: VlmaeModel) -> list[str]:
    """Names of the program's arguments in order: a stream's values, its mask, the next stream's."""
    return [argument for name in _streams(model) for argument in (name, f"{name}_mask")]


def why_no_program(model: VlmaeModel) -> str:
    """Why a model has no program; "" if it has one."""
    if model.fusion.acts_inside:
        return (
            "this fusion acts between blocks of the vision-language encoder, whose frozen weights "
            "are not in this folder: use vlmae.load"
        )
    return ""


def export_program(model: VlmaeModel) -> bytes:
    """The file of the program, for any number of clips and of tokens from 1 on.

    Equal models give equal bytes with equal versions of torch.

    Args:
        model: left as it is; it is in evaluation mode in the program.

    Raises:
        ValueError: the model has no such part, see `why_no_program`.
    """
    if reason := why_no_program(model):
        raise ValueError(reason)
    training = model.training
    clips = Dim("clips", min=1)
    tensors: list[Tensor] = []
    shapes: list[dict[int, Any]] = []
    for name, width in _streams(model).items():
        tokens = Dim(f"{name}_tokens", min=1)
        tensors.append(torch.zeros(EXAMPLE_CLIPS, EXAMPLE_TOKENS, width))
        tensors.append(torch.ones(EXAMPLE_CLIPS, EXAMPLE_TOKENS, dtype=torch.bool))
        shapes += [{0: clips, 1: tokens}] * 2
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch about its own internals
            program = torch.export.export(
                FusionAndHeads(model.eval()),
                tuple(tensors),
                dynamic_shapes={"tensors": tuple(shapes)},
                # Attention's guards hold for all lengths, but the solver cannot prove it.
                prefer_deferred_runtime_asserts_over_guards=True,
            )
            file = io.BytesIO()
            torch.export.save(program, file)
    finally:
        model.train(training)
    return file.getvalue()


def _streams(model: VlmaeModel) -> dict[str, int]:
    return {name: width for tower in TOWERS for name, width in model.streams[tower].items()}
