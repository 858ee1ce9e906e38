"""What an entry is about, kept beside the log under a key that can be deleted: then nobody can read it any more.

::

    entry    {"commitment": base64(SHA-256("foedus/v1/log-payload\\n" ‖ salt ‖ canonical JSON))}   in the log, for good
    payload  nonce ‖ AES-256-GCM(key, salt ‖ canonical JSON, bound to the commitment)            payloads.db
    key      32 random bytes for each holder: a subject, a study                                 a file of its own

The salt is 32 random bytes and goes with the payload, so that a commitment can't be guessed at once the key is
gone; until then its opening (salt, payload) can be shown to anybody who has the entry (`verify_opening`). Payloads
of one holder can be told to be of one holder afterwards, but not of which: its name is in the key's folder only.

Deleting a key overwrites its file and removes it. What a file system's journal, an SSD or a backup keeps is out of
reach here: encrypt the disk, and let backups of the folder expire within the time that erasure is promised in.
(Not in SQLite: its rollback journal would hold a copy of every deleted key, merely unlinked.)
"""

from __future__ import annotations

import fcntl
import hashlib
import hmac
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ... import durable
from ...documents import b64, canonical, parse_json, unb64
from ...errors import InputError, VerificationError
from .database import Schema, append_only, connection, establish, transaction

_DOMAIN = b"foedus/v1/log-payload\n"
_KEY_BYTES = _SALT_BYTES = 32
_NONCE_BYTES = 12
_KEY_ID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_SCHEMA = Schema(
    title="a store of sealed payloads",
    application_id=0x666F6C70,  # "folp"
    statements=(
        (
            "CREATE TABLE payload (commitment BLOB PRIMARY KEY CHECK (length(commitment) = 32), "
            "key_id TEXT NOT NULL, sealed BLOB NOT NULL) STRICT, WITHOUT ROWID"
        ),
        *append_only("payload", "EXISTS (SELECT 1 FROM payload WHERE commitment = NEW.commitment)", "ABORT"),
    ),
)


@dataclass(frozen=True)
class Opening:
    """What a commitment was made of. Whoever has it and the entry can check one against the other."""

    salt: bytes = field(repr=False)
    payload: dict[str, Any] = field(repr=False)

    @property
    def commitment(self) -> bytes:
        """32 bytes."""
        return _commit(self.salt, canonical(self.payload))


def verify_opening(commitment: str, opening: Opening) -> None:
    """Check that the commitment of an entry (base64) is to this payload.

    Raises:
        VerificationError: it is to another, or malformed.
    """
    if len(opening.salt) != _SALT_BYTES or not hmac.compare_digest(_bytes(commitment), opening.commitment):
        raise VerificationError("the payload is not the one that the log entry commits to")


class SealedPayloads:
    """Payloads in a file, keys in a folder of their own; threads and processes may share them.

    Args:
        path: the file of the sealed payloads; made if there is none. It may be kept and backed up like the log.
        keys: the folder of keys (mode 0700); made if there is none. Its backups must expire.
    """

    def __init__(self, path: Path, keys: Path) -> None:
        self._path, self._keys = path, keys
        establish(path, _SCHEMA)
        try:
            keys.mkdir(mode=0o700, parents=True, exist_ok=True)
            with self._lock():
                if not (keys / "salt").exists():
                    _write_new(keys / "salt", os.urandom(_SALT_BYTES))
        except OSError as error:
            raise InputError(f"{keys}: {error.strerror or error}") from error

    def seal(self, holder: str, payload: Mapping[str, Any]) -> str:
        """Keep a payload under the key of `holder`, which is made if there is none. It is on disk on return.

        Call it before the entry is appended: a crash between the two leaves a payload without an entry, which says
        nothing, and never an entry whose payload is lost.

        Returns:
            The commitment (base64) for the entry's details.

        Raises:
            InputError: an empty holder; a payload that is not canonical JSON; or a file can't be written.
        """
        if not holder:
            raise InputError(
                "a sealed payload has a holder: the subject or study whose key is deleted one day"
            )
        text, salt, nonce = canonical(dict(payload)), os.urandom(_SALT_BYTES), os.urandom(_NONCE_BYTES)
        commitment = _commit(salt, text)
        with self._lock():  # so that no key is deleted between its look-up and the payload's commit
            key_id, key = self._key_of(holder)
            sealed = nonce + AESGCM(key).encrypt(nonce, salt + text, commitment)
            with transaction(self._path) as db:
                db.execute("INSERT INTO payload VALUES (?, ?, ?)", (commitment, key_id, sealed))
        return b64(commitment)

    def open(self, commitment: str) -> Opening | None:
        """The opening of a commitment (base64), or None if its key was deleted.

        Raises:
            VerificationError: the payload is missing, was changed, or is not what the commitment says.
        """
        wanted = _bytes(commitment)
        with connection(self._path) as db:
            row = db.execute("SELECT key_id, sealed FROM payload WHERE commitment = ?", (wanted,)).fetchone()
        if row is None:
            raise VerificationError(
                f"{self._path}: no payload of the commitment {commitment}",
                remedy="restore the file from a backup: payloads are never removed, only their keys are",
            )
        with self._lock():  # not while the key is being overwritten
            key = self._key(row[0])
        if key is None:
            return None
        sealed = bytes(row[1])
        try:
            plain = AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], wanted)
            opening = Opening(plain[:_SALT_BYTES], parse_json(plain[_SALT_BYTES:]))
        except (InvalidTag, InputError, ValueError) as error:
            raise VerificationError(f"{self._path}: the payload of {commitment} was changed") from error
        verify_opening(commitment, opening)
        return opening

    def shred(self, holder: str) -> bool:
        """Delete the key of `holder`: its payloads can't be read again. Whether there was one.

        A holder that comes back gets a new key; what was shredded stays so.
        """
        with self._lock():
            name = self._name_path(holder)
            found = self._read(name)
            if found is None:
                return False
            key = self._key_path(found.decode())
            there = key.exists()
            # The key first: cut off in between, the name leads to no key, and another call ends the work.
            _overwrite_and_remove(key, _KEY_BYTES)
            _overwrite_and_remove(name, len(found))
            return there

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────

    def _key_of(self, holder: str) -> tuple[str, bytes]:
        name = self._name_path(holder)
        found = self._read(name)
        if found is not None and (kept := self._key(found.decode())) is not None:
            return found.decode(), kept
        key_id, key = os.urandom(16).hex(), os.urandom(_KEY_BYTES)
        _write_new(self._key_path(key_id), key)
        durable.replace(name, key_id.encode())
        return key_id, key

    def _key(self, key_id: str) -> bytes | None:
        path = self._key_path(key_id)
        key = self._read(path)
        if key is None or key == bytes(_KEY_BYTES):  # overwritten, and cut off before it was removed
            return None
        if len(key) != _KEY_BYTES:
            raise VerificationError(f"{path}: damaged", remedy="restore it from a backup of the keys")
        return key

    def _key_path(self, key_id: str) -> Path:
        if not _KEY_ID.fullmatch(key_id):
            raise VerificationError(f"{self._path}: a key id was changed")
        return self._keys / f"{key_id}.key"

    def _name_path(self, holder: str) -> Path:
        """By a salted hash: a holder may be any text, and a listing of the folder should not say who it was."""
        salt = self._read(self._keys / "salt")
        if salt is None:
            raise InputError(f"{self._keys}: its salt is gone, so no holder's key can be found")
        return self._keys / f"{hmac.new(salt, holder.encode(), hashlib.sha256).hexdigest()}.name"

    @staticmethod
    def _read(path: Path) -> bytes | None:
        try:
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error

    @contextmanager
    def _lock(self) -> Iterator[None]:
        descriptor = os.open(self._keys / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _commit(salt: bytes, text: bytes) -> bytes:
    return hashlib.sha256(_DOMAIN + salt + text).digest()


def _bytes(commitment: str) -> bytes:
    try:
        return unb64(commitment, length=32, what="commitment")
    except InputError as error:
        raise VerificationError(error.message) from error


def _write_new(path: Path, data: bytes) -> None:
    """A new file, mode 0600; it and its name are on disk on return."""
    temporary = path.with_name(f"{path.name}.new")
    with suppress(FileNotFoundError):  # of a crash
        temporary.unlink()
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    durable.move(temporary, path)


def _overwrite_and_remove(path: Path, length: int) -> None:
    try:
        with path.open("r+b") as file:
            file.write(bytes(length))
            file.flush()
            os.fsync(file.fileno())
        path.unlink()
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}: the key may still be there") from error
