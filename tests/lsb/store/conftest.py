"""What tests of the store share."""

from __future__ import annotations

from s3_server import s3

__all__ = ["s3"]
