"""Frozen encoders behind one interface: clips in, streams of tokens out."""

from vlmae.backbones.base import Backbone, FrozenIdentity

__all__ = ["Backbone", "FrozenIdentity"]
