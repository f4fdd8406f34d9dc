"""What voices are drawn with beside the seed: random, of one folder of stages, never handed off.

Seeds stand in configs, and the id of a clip is the name of its files; who knows both could compute
what was done to a voice. So a secret takes part, `<root>/anonymise.secret`, which is made when it
is first wanted, read by its owner alone, and kept: the same clip gets the same voice whenever it is
rendered, by whichever run. Where it is lost clips get other voices, in other stages.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from filelock import FileLock

FILE = "anonymise.secret"
BYTES = 32


def read_secret(root: Path) -> bytes:
    """The secret of a folder of stages, made now if there is none; `BYTES` bytes.

    Args:
        root: folder of all stages.

    Raises:
        ValueError: the file is no secret, or belongs to somebody else.
    """
    file = root / FILE
    if not file.exists():
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(root / f".{FILE}.lock"):
            if not file.exists():
                _make(file)
    try:
        text = file.read_text("ascii")
    except PermissionError:
        raise ValueError(
            f"{file} can be read by its owner alone: have them hand clips off with "
            "anonymise.method=shift, or use another folder of runs"
        ) from None
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) != BYTES:
        raise ValueError(
            f"{file} is not a secret of {2 * BYTES} hexadecimal digits: bring it back, or delete "
            "it, and clips are rendered anew with other voices"
        )
    return secret


def _make(file: Path) -> None:
    """Write a secret whole, and so that nobody else may read it at any moment."""
    temporary = file.with_name(f".{file.name}.tmp")
    temporary.unlink(missing_ok=True)
    place = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(place, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(BYTES))
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)
