"""Generative vision-language models, read at the hidden states of their language model."""

from vlmae.backbones.generative.encoder import GenerativeEncoder

__all__ = ["GenerativeEncoder"]
