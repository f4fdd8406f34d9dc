"""Text encoders as streams: token ids in, hidden states of the word pieces or one vector out.

Families: BERT (MiniLM, BERT, RoBERTa, XLM-R, CamemBERT, MPNet) and the text sides of CLIP, SigLIP
and SigLIP 2. Inputs are token ids as float32, which holds every integer below 2**24 exactly, so
that ids and hidden states can lie in the same padded batches.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from tokenizers import normalizers
from torch import Tensor, nn
from torch.nn import functional
from transformers import AutoModel, AutoTokenizer, GemmaTokenizer
from transformers.models.mpnet import modeling_mpnet

from vlmae.backbones.pretrained import load_config, load_model, load_processor
from vlmae.backbones.stream import StreamEncoder
from vlmae.backbones.suffix import MASKED_SCORE, mean_of_groups
from vlmae.data.decode import Clip
from vlmae.tokens import Tokens

BERT_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "mpnet")
DUAL_SIDES = ("clip", "siglip", "siglip2")
FAMILIES = (*BERT_FAMILIES, *DUAL_SIDES, *(f"{family}_text_model" for family in DUAL_SIDES))


@dataclass(frozen=True)
class TextReading:
    """How an encoder reads text.

    Attributes:
        vocabulary: how many token ids there are.
        length: most tokens of a text; more are cut.
        fill: whether every text is padded to `length` and the padding read, as SigLIP was trained.
        causal: whether a token sees only those before it.
        pooled: the one token of a text is the mean over its positions or the last of them; "none"
            keeps all.
        first: position number of the first token.
        padding: token id under the mask.
    """

    vocabulary: int
    length: int
    fill: bool
    causal: bool
    pooled: Literal["none", "mean", "last"]
    first: int = 0
    padding: int = 0


class TextEncoder(StreamEncoder):
    """A transformer over token ids.

    Args:
        tokenizer: of the weights.
        embedding: called with `input_ids` and `position_ids`.
        layers: the blocks, called with hidden states and an additive mask.
        norm: what follows the last block; with `pooled="last"` it sees the last position alone.
        reading: see `TextReading`.
        hidden_width: of the hidden states.
        out_width: of the tokens behind `norm`.
    """

    def __init__(
        self,
        tokenizer: Any,
        embedding: nn.Module,
        layers: Sequence[nn.Module],
        norm: nn.Module,
        reading: TextReading,
        *,
        hidden_width: int,
        out_width: int,
    ) -> None:
        super().__init__(
            embedding,
            layers,
            norm,
            input_width=1,
            hidden_width=hidden_width,
            out_width=out_width,
            processor=tokenizer,
        )
        self.reading = reading

    def inputs(self, clips: Sequence[Clip]) -> list[Tensor]:
        """Token ids of the titles, special tokens included; an empty title has those alone.

        Raises:
            ValueError: the tokenizer gives ids that the model has no vector for.
        """
        if not clips:
            return []
        pieces = self.processor(
            [clip.title for clip in clips],
            truncation=True,
            max_length=self.reading.length,
            padding="max_length" if self.reading.fill else False,
        )
        rows: list[list[int]] = pieces["input_ids"]
        largest = max(map(max, rows))
        if largest >= self.reading.vocabulary:
            raise ValueError(
                f"the tokenizer gives the id {largest}, the model has {self.reading.vocabulary} "
                "vectors: save the tokenizer that the model was trained with beside its weights"
            )
        return [torch.tensor(row, dtype=torch.float32)[:, None] for row in rows]

    def embed(self, inputs: Tokens) -> Tokens:
        """See `StreamEncoder.embed`."""
        embedding: Any = self.embedding
        # No text is longer: what stands behind is padding, and has no position number.
        most = self.reading.length
        ids = torch.where(inputs.mask, inputs.values[..., 0].round(), self.reading.padding).long()
        ids, behind = ids[:, :most], max(0, ids.shape[1] - most)
        positions = torch.arange(ids.shape[1], device=ids.device)[None] + self.reading.first
        hidden = embedding(input_ids=ids, position_ids=positions)
        return Tokens(functional.pad(hidden, (0, 0, 0, behind)), inputs.mask)

    def context(self, hidden: Tokens) -> Tensor:
        """(B, 1, 1 or T, T) additive attention mask."""
        visible = hidden.mask[:, None, None, :]
        if self.reading.causal:
            length = visible.shape[-1]
            visible = visible & visible.new_ones(length, length).tril()
        scores = torch.zeros(visible.shape, dtype=hidden.values.dtype, device=visible.device)
        return scores.masked_fill(~visible, MASKED_SCORE)

    def call(self, layer: nn.Module, hidden: Tensor, mask: Tensor, context: Any) -> Tensor:
        """See `StreamEncoder.call`."""
        output = layer(hidden, context)
        result: Tensor = output[0] if isinstance(output, tuple) else output
        return result

    def finish(self, hidden: Tokens) -> Tokens:
        """See `StreamEncoder.finish`."""
        norm: Any = self.norm
        if self.reading.pooled != "last":
            normed = Tokens(norm(hidden.values), hidden.mask)
            return mean_of_groups(normed, None) if self.reading.pooled == "mean" else normed
        numbers = torch.arange(hidden.mask.shape[1], device=hidden.mask.device)
        last = torch.where(hidden.mask, numbers, 0).amax(dim=1)
        chosen = hidden.values[torch.arange(len(last), device=last.device), last]
        return Tokens(norm(chosen)[:, None], hidden.mask.any(dim=1, keepdim=True))


class MPNetEncoder(TextEncoder):
    """With learnt biases of attention for distances between tokens, shared by all blocks.

    Behind a cut they are a copy that trains: those of the frozen half stay as they are.

    Args:
        biases: distance bucket -> a bias a head.
        settings: see `TextEncoder`.
    """

    def __init__(self, biases: nn.Embedding, *settings: Any, **widths: Any) -> None:
        super().__init__(*settings, **widths)
        self.biases = biases

    def context(self, hidden: Tokens) -> Tensor:
        """(B, heads, T, T) additive attention mask."""
        numbers = torch.arange(hidden.mask.shape[1], device=hidden.mask.device)
        distances = numbers[None, :] - numbers[:, None]
        buckets = modeling_mpnet.MPNetEncoder.relative_position_bucket(distances)
        biases: Tensor = self.biases(buckets).permute(2, 0, 1)
        return super().context(hidden) + biases

    def _half(
        self, embedding: nn.Module | None, start: int, stop: int, norm: nn.Module | None
    ) -> StreamEncoder:
        half = super()._half(embedding, start, stop, norm)
        if embedding is None:
            half.biases = copy.deepcopy(self.biases)
        return half


def load_text_encoder(
    model: str, revision: str | None, *, pool: bool, length: int | None, dtype: str = "float32"
) -> TextEncoder:
    """The text encoder of a hub id or local folder.

    Args:
        model: of one of `FAMILIES`; of a dual encoder its text side.
        revision: of a hub id.
        pool: one token a text; False for one a word piece.
        length: most tokens of a text; None for as many as the encoder can read.
        dtype: of the weights.

    Raises:
        ValueError: see `pretrained` and `text_encoder`.
    """
    config = load_config(model, revision, FAMILIES, "a text encoder")
    options: dict[str, Any] = (
        {"add_pooling_layer": False} if config.model_type in BERT_FAMILIES else {}
    )
    loaded = load_model(AutoModel, model, revision, dtype, **options)
    tokenizer = load_processor(AutoTokenizer, model, revision)
    if config.model_type in DUAL_SIDES:
        loaded = loaded.text_model
    return text_encoder(loaded, tokenizer, pool=pool, length=length)


def text_encoder(model: Any, tokenizer: Any, *, pool: bool, length: int | None) -> TextEncoder:
    """A loaded text model as a stream.

    Pooled, BERT gives the mean of its word pieces, as sentence encoders are read, and the others
    what their family calls the pooled output: CLIP its end-of-text token behind the final norm
    (before the projection), SigLIP its last position behind norm and head.

    Args:
        model: a text model of transformers of one of `FAMILIES`.
        tokenizer: its tokenizer.
        pool: one token a text; False for one a word piece.
        length: most tokens of a text; None for as many as the encoder can read.

    Raises:
        ValueError: `length` does not fit.
    """
    config = model.config
    family = "bert" if config.model_type in BERT_FAMILIES else config.model_type.split("_")[0]
    return _BUILDERS[family](model, tokenizer, pool, length)


def _bert(model: Any, tokenizer: Any, pool: bool, length: int | None) -> TextEncoder:
    config, embedding = model.config, model.embeddings
    # RoBERTa's numbers begin behind that of its padding token.
    first = embedding.padding_idx + 1 if hasattr(embedding, "padding_idx") else 0
    most = min(config.max_position_embeddings - first, int(tokenizer.model_max_length))
    reading = TextReading(
        vocabulary=config.vocab_size,
        length=_length(length, most),
        fill=False,
        causal=False,
        pooled="mean" if pool else "none",
        first=first,
        padding=config.pad_token_id or 0,
    )
    settings = (tokenizer, embedding, model.encoder.layer, nn.Identity(), reading)
    widths = {"hidden_width": config.hidden_size, "out_width": config.hidden_size}
    if config.model_type == "mpnet":
        return MPNetEncoder(model.encoder.relative_attention_bias, *settings, **widths)
    return TextEncoder(*settings, **widths)


def _clip(model: Any, tokenizer: Any, pool: bool, length: int | None) -> TextEncoder:
    config = model.config
    reading = TextReading(
        vocabulary=config.vocab_size,
        length=_length(length, config.max_position_embeddings),
        fill=False,
        causal=True,
        pooled="last" if pool else "none",
    )
    width = config.hidden_size
    return TextEncoder(
        tokenizer,
        model.embeddings,
        model.encoder.layers,
        model.final_layer_norm,
        reading,
        hidden_width=width,
        out_width=width,
    )


def _siglip(model: Any, tokenizer: Any, pool: bool, length: int | None) -> TextEncoder:
    config = model.config
    most = config.max_position_embeddings
    if length not in (None, most):
        raise ValueError(
            f"SigLIP reads texts padded to {most} tokens, text_length {length} would change what "
            "it was trained on: leave text_length null"
        )
    reading = TextReading(
        vocabulary=config.vocab_size,
        length=most,
        fill=True,
        causal=False,
        pooled="last" if pool else "none",
    )
    norm = model.final_layer_norm
    return TextEncoder(
        _lower_cased(tokenizer),
        model.embeddings,
        model.encoder.layers,
        nn.Sequential(norm, model.head) if pool else norm,
        reading,
        hidden_width=config.hidden_size,
        out_width=config.projection_size if pool else config.hidden_size,
    )


def _lower_cased(tokenizer: Any) -> Any:
    """The tokenizer as SigLIP 2 was trained with (Tschannen et al. 2025, arXiv 2502.14786).

    Checkpoints of fixed size name Gemma's class beside `model_type` "siglip", and transformers then
    keeps upper case; SigLIP's own classes lower it themselves.
    """
    if isinstance(tokenizer, GemmaTokenizer):
        backend = tokenizer.backend_tokenizer
        theirs = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *theirs])
    return tokenizer


_BUILDERS: dict[str, Callable[[Any, Any, bool, int | None], TextEncoder]] = {
    "bert": _bert,
    "clip": _clip,
    "siglip": _siglip,
    "siglip2": _siglip,
}


def _length(asked: int | None, most: int) -> int:
    if asked is None:
        return most
    # Two are taken by the tokens around the text.
    if not 3 <= asked <= most:
        raise ValueError(f"text_length must be from 3 to {most}, or null for {most}, got {asked}")
    return asked
