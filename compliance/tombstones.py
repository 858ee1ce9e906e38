"""Tombstones: the name under which records that must be kept go on, once who they are about was erased.

::

    tombstone = "erased:" ‖ hex(HMAC-SHA256(erasure.key, "foedus tombstone\\0" ‖ subject in UTF-8)[:16])

Without the key, 32 random bytes in a file of mode 0600, nobody gets from one to the other. With it, whoever names
themselves can be shown what was kept: proof of consent, or that an erasure was done. So a tombstone stays personal
data for whoever holds the key (GDPR art. 4(5)); once the key is deleted it names nobody.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from pathlib import Path

from ..documents import ensure_private_file, read_private_file
from ..errors import InputError

PREFIX = "erased:"
FILE = "erasure.key"
_KEY_BYTES = 32


class Tombstones:
    """Makes the tombstones of one silo. It has no `repr`.

    Args:
        key_file: made with the first tombstone.
    """

    def __init__(self, key_file: Path) -> None:
        self._file = key_file
        self._kept: bytes | None = None

    def name(self, subject: str, *, make: bool = True) -> str:
        """The tombstone of a subject; a tombstone is its own.

        Args:
            make: whether a missing key may be made: not where there are tombstones already.

        Raises:
            InputError: the key is missing, or no key.
        """
        if subject.startswith(PREFIX):
            return subject
        key = self._kept = self._kept or self._read(make)
        told = hmac.digest(key, b"foedus tombstone\0" + subject.encode(), hashlib.sha256)
        return PREFIX + told[:16].hex()

    def _read(self, make: bool) -> bytes:
        if make:
            ensure_private_file(self._file, secrets.token_bytes(_KEY_BYTES))
        if not self._file.exists():
            raise InputError(
                f"{self._file}: no such file, and erased customers are known by it",
                remedy="restore it from a backup: without it, an old import could bring them back",
            )
        key = read_private_file(self._file)
        if len(key) != _KEY_BYTES:
            raise InputError(f"{self._file}: not a key of tombstones", remedy="restore it from a backup")
        return key

    def __repr__(self) -> str:
        return "Tombstones(…)"
