"""Image encoders as streams: frames in, a grid of patches or one token a frame out.

Families: the image sides of CLIP, SigLIP and SigLIP 2 (fixed size, and NaFlex read at a square),
DINOv2 with and without registers, and ViT. Frames go through the image processor of the weights.
Every frame is a sequence of its own: frames are put beside each other in (frame, row, column)
order and are real or not as a whole, as in `FeatureMapSuffix`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2
from transformers import AutoImageProcessor, AutoModel

from vlmae.backbones.pretrained import load_config, load_model, load_processor
from vlmae.backbones.stream import StreamEncoder
from vlmae.backbones.suffix import Between, mean_of_cells, without_masked
from vlmae.data.decode import Clip
from vlmae.tokens import Tokens

DUAL_SIDES = ("clip", "siglip", "siglip2")
FAMILIES = (
    *("dinov2", "dinov2_with_registers", "vit"),
    *DUAL_SIDES,
    *(f"{family}_vision_model" for family in DUAL_SIDES),
)


@dataclass(frozen=True)
class FrameShape:
    """Positions of one frame.

    Attributes:
        inputs: positions of the processed frame: pixels, or patches of pixels (NaFlex).
        input_width: numbers a position.
        rows: patches a side.
        leading: hidden states before those of the patches: class and register tokens.
    """

    inputs: int
    input_width: int
    rows: int
    leading: int

    @property
    def hidden(self) -> int:
        """Hidden states of a frame."""
        return self.leading + self.rows**2


class FrameReader:
    """Frames to inputs, with the image processor of the weights.

    Args:
        processor: an image processor of transformers.
        square: frames are squeezed to this side before the processor sees them; None for not. A
            NaFlex processor then makes the same patches of every frame.
    """

    def __init__(self, processor: Any, square: int | None = None) -> None:
        self.processor, self.square = processor, square

    def __call__(self, frames: Tensor) -> Tensor:
        """(F, 3, H, W) uint8 to (F, 3, side, side) pixels, or (F, patches, width) of NaFlex."""
        if self.square is not None:
            frames = v2.functional.resize(frames, [self.square] * 2, antialias=True)
        batch = self.processor(
            images=list(frames), input_data_format="channels_first", return_tensors="pt"
        )
        pixels: Tensor = batch["pixel_values"]
        if self.square is not None:
            pixels = pixels[:, : int(batch["spatial_shapes"][0].prod())]
        return pixels.float()


class ImageEncoder(StreamEncoder):
    """A transformer over the patches of every frame.

    Args:
        reader: frames to inputs.
        embedding: (N, 3, side, side) pixels or (N, patches, width) to (N, hidden, D).
        layers: the blocks, called with hidden states and None for a mask.
        norm: what follows the last block. With `grid` 0 it sees the class token, or all hidden
            states if there is none, and then pools them to (N, D).
        frame: see `FrameShape`.
        grid: patches are averaged down to this many tokens a side; 0 for one token a frame, the
            one that the family pools to.
        hidden_width: of the hidden states.
    """

    def __init__(
        self,
        reader: FrameReader,
        embedding: nn.Module,
        layers: Sequence[nn.Module],
        norm: nn.Module,
        *,
        frame: FrameShape,
        grid: int,
        hidden_width: int,
    ) -> None:
        if isinstance(grid, bool) or not 0 <= grid <= frame.rows:
            raise ValueError(
                f"grid must be from 0 (one token a frame) to {frame.rows}, the patches a side, "
                f"got {grid!r}"
            )
        super().__init__(
            embedding,
            layers,
            norm,
            input_width=frame.input_width,
            hidden_width=hidden_width,
            out_width=hidden_width,
            processor=reader,
        )
        self.frame, self.grid = frame, grid

    def inputs(self, clips: Sequence[Clip]) -> list[Tensor]:
        """Processed frames (F * positions, input_width), pixels in (frame, row, column) order."""
        return [self._frames(clip) for clip in clips]

    def _frames(self, clip: Clip) -> Tensor:
        if not len(clip.frames):
            return torch.zeros(0, self.input_width)
        pixels: Tensor = self.processor(torch.from_numpy(clip.frames).permute(0, 3, 1, 2))
        if pixels.ndim == 4:
            pixels = pixels.permute(0, 2, 3, 1)
        return pixels.reshape(-1, self.input_width)

    def forward(self, tokens: Tokens, between: Between | None = None) -> Tokens:
        """See `StreamSuffix.forward`; an incomplete last frame is completed with zeros."""
        positions = self.frame.hidden if self.embedding is None else self.frame.inputs
        incomplete = -tokens.mask.shape[1] % positions
        if incomplete:
            values = functional.pad(tokens.values, (0, 0, 0, incomplete))
            tokens = Tokens(values, functional.pad(tokens.mask, (0, incomplete), value=False))
        return super().forward(tokens, between)

    def embed(self, inputs: Tokens) -> Tokens:
        """See `StreamEncoder.embed`."""
        embedding: Any = self.embedding
        batch, side = len(inputs.mask), math.isqrt(self.frame.inputs)
        values = without_masked(inputs).to(next(embedding.parameters()).dtype)
        if self.input_width == 3:
            values = values.reshape(-1, side, side, 3).permute(0, 3, 1, 2)
        else:
            values = values.reshape(-1, self.frame.inputs, self.input_width)
        hidden: Tensor = embedding(values)
        real = self._real(inputs.mask, self.frame.inputs)
        return Tokens(
            hidden.reshape(batch, -1, hidden.shape[-1]),
            real.repeat_interleave(self.frame.hidden, dim=1),
        )

    def call(self, layer: nn.Module, hidden: Tensor, mask: Tensor, context: Any) -> Tensor:
        """See `StreamEncoder.call`."""
        output = layer(hidden.reshape(-1, self.frame.hidden, hidden.shape[-1]), None)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result.reshape(hidden.shape)

    def finish(self, hidden: Tokens) -> Tokens:
        """See `StreamEncoder.finish`."""
        norm: Any = self.norm
        batch, width = len(hidden.mask), hidden.values.shape[-1]
        frames = hidden.values.reshape(-1, self.frame.hidden, width)
        real = self._real(hidden.mask, self.frame.hidden)
        if not self.grid:
            pooled = norm(frames[:, 0] if self.frame.leading else frames)
            return Tokens(pooled.reshape(batch, -1, self.out_width), real)
        rows = self.frame.rows
        patches = norm(frames[:, self.frame.leading :]).transpose(1, 2)
        cells = mean_of_cells(patches.unflatten(2, (rows, rows)), self.grid)
        cells = cells.flatten(2).transpose(1, 2)
        return Tokens(
            cells.reshape(batch, -1, self.out_width),
            real.repeat_interleave(self.grid**2, dim=1),
        )

    def _real(self, mask: Tensor, positions: int) -> Tensor:
        """(B, F): a frame is real if any of its positions is."""
        return mask.reshape(len(mask), -1, positions).any(dim=2)


class SquarePatches(nn.Module):
    """NaFlex embeddings of frames that all have the same patches a side.

    Args:
        embeddings: of SigLIP 2, called with patches and their shapes.
        rows: patches a side.
    """

    def __init__(self, embeddings: nn.Module, rows: int) -> None:
        super().__init__()
        self.embeddings, self.rows = embeddings, rows

    def forward(self, patches: Tensor) -> Tensor:
        """(N, rows * rows, width) to (N, rows * rows, D)."""
        shapes = torch.full((len(patches), 2), self.rows, dtype=torch.long)
        result: Tensor = self.embeddings(patches, shapes)
        return result


def load_image_encoder(
    model: str, revision: str | None, *, grid: int, dtype: str = "float32"
) -> ImageEncoder:
    """The image encoder of a hub id or local folder.

    Args:
        model: of one of `FAMILIES`; of a dual encoder its image side.
        revision: of a hub id.
        grid: see `ImageEncoder`.
        dtype: of the weights.

    Raises:
        ValueError: see `pretrained` and `image_encoder`.
    """
    config = load_config(model, revision, FAMILIES, "an image encoder")
    options: dict[str, Any] = {"add_pooling_layer": False} if config.model_type == "vit" else {}
    loaded = load_model(AutoModel, model, revision, dtype, **options)
    processor = load_processor(AutoImageProcessor, model, revision)
    if config.model_type in DUAL_SIDES:
        loaded = loaded.vision_model
    return image_encoder(loaded, processor, grid=grid)


def image_encoder(model: Any, processor: Any, *, grid: int) -> ImageEncoder:
    """A loaded image model as a stream.

    With `grid` 0 a frame is what its family pools to: the class token behind the final norm of
    CLIP (before the projection), DINOv2 and ViT, and the attention-pooled head of SigLIP. Patches
    are those of `last_hidden_state`, so behind the final norm except for CLIP, which has none.

    Args:
        model: an image model of transformers of one of `FAMILIES`.
        processor: its image processor.
        grid: see `ImageEncoder`.

    Raises:
        ValueError: the processor gives pictures of a size that the model does not read, `grid` is
            too large, or 0 for a model without a pooling head.
    """
    family = model.config.model_type.removesuffix("_vision_model")
    frame, reader = _frame_shape(family, model.config, processor)
    embedding: Any = model.embeddings
    if getattr(embedding, "mask_token", None) is not None:
        # For masked pre-training alone: nothing reads it, and distributed training refuses
        # parameters without a gradient.
        embedding.mask_token = None
    if family == "clip":
        embedding = nn.Sequential(embedding, model.pre_layrnorm)
        layers, norm = model.encoder.layers, nn.Identity() if grid else model.post_layernorm
    elif family in ("siglip", "siglip2"):
        if not grid and not model.use_head:
            raise ValueError(
                f"this {family} model has no pooling head: set grid to 1 or more for its patches"
            )
        if family == "siglip2":
            embedding = SquarePatches(embedding, frame.rows)
        layers, norm = model.encoder.layers, model.post_layernorm
        norm = norm if grid else nn.Sequential(norm, model.head)
    else:
        layers = model.layers if family == "vit" else model.encoder.layer
        norm = model.layernorm
    return ImageEncoder(
        reader,
        embedding,
        layers,
        norm,
        frame=frame,
        grid=grid,
        hidden_width=model.config.hidden_size,
    )


def _frame_shape(family: str, config: Any, processor: Any) -> tuple[FrameShape, FrameReader]:
    patch = int(config.patch_size)
    if family == "siglip2":
        if processor.patch_size != patch:
            raise ValueError(
                f"the image processor makes patches of {processor.patch_size} pixels, the model "
                f"reads {patch}: save the processor that the model was trained with"
            )
        rows = math.isqrt(processor.max_num_patches)
        reader = FrameReader(processor, rows * patch)
        return FrameShape(rows**2, 3 * patch**2, rows, 0), reader
    reader = FrameReader(processor)
    # What a processor makes of a picture is said by several settings: one picture tells.
    height, width = reader(torch.zeros(1, 3, 2 * patch, 3 * patch, dtype=torch.uint8)).shape[-2:]
    resizable = family.startswith("dinov2")
    if height != width or height < patch or not (resizable or height == config.image_size):
        wanted = "a square" if resizable else f"{config.image_size} x {config.image_size}"
        raise ValueError(
            f"the image processor makes pictures of {height} x {width} pixels, this {family} model "
            f"reads {wanted}: correct size and crop_size in preprocessor_config.json"
        )
    leading = {"siglip": 0}.get(family, 1) + getattr(config, "num_register_tokens", 0)
    return FrameShape(height * width, 3, height // patch, leading), reader
