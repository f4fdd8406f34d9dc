"""Encoders behind one interface: clips in, streams of tokens out, cut where training begins."""

from vlmae.backbones.base import Backbone, FrozenIdentity
from vlmae.backbones.suffix import StreamSuffix, Suffix

__all__ = ["Backbone", "FrozenIdentity", "StreamSuffix", "Suffix"]
