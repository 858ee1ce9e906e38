"""The secret by which the server's own processes know each other on loopback.

32 bytes of the operating system's randomness in a file of mode 0600, made once. Each use has a key of its own,
derived from it: who sees one key, in a request or in memory, has not got the others.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from pathlib import Path
from typing import Literal

from ..documents import read_private_file, write_private_file
from ..errors import InputError

Use = Literal["control", "fleet"]

VARIABLE = "FOEDUS_SUPERLINK_SECRET"  # environment variable of a ServerApp: the file of the secret
_BYTES = 32


def ensure(path: Path) -> Path:
    """Make the secret unless it is there; returns `path`.

    Raises:
        InputError: it is there and not a secret, or readable by others.
    """
    if not path.exists():
        write_private_file(path, os.urandom(_BYTES))
    key(path, "control")
    return path


def key(path: Path, use: Use) -> bytes:
    """The key for one use: 64 hexadecimal digits.

    Raises:
        InputError: no such file, readable by others, or not a secret.
    """
    secret = read_private_file(path)
    if len(secret) != _BYTES:
        raise InputError(
            f"{path}: not a secret of {_BYTES} bytes", remedy="delete it: the next start makes one"
        )
    return hmac.new(secret, b"foedus/v1/server/" + use.encode(), hashlib.sha256).hexdigest().encode()
