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
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

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
        "CREATE INDEX payload_key ON payload (key_id)",
        *append_only("payload", "EXISTS (SELECT 1 FROM payload WHERE commitment = NEW.commitment)", "ABORT"),
    ),
)

Sealed = tuple[str, bytes]
"""``(key id, nonce ‖ ciphertext)``."""


class Rows(Protocol):
    """Where sealed payloads lie, append-only. `place` names it in messages."""

    @property
    def place(self) -> str: ...

    def add(self, commitment: bytes, sealed: Sealed) -> None:
        """On disk on return."""

    def get(self, commitments: Iterable[bytes]) -> dict[bytes, Sealed]:
        """Those of them that are there."""

    def count(self, key_id: str) -> int:
        """How many there are under a key."""


class SqliteRows:
    """`Rows` in an SQLite file, made with the first of them."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.exists():
            establish(path, _SCHEMA)

    @property
    def place(self) -> str:
        return str(self._path)

    def add(self, commitment: bytes, sealed: Sealed) -> None:
        if not self._path.exists():
            establish(self._path, _SCHEMA)
        with transaction(self._path) as db:
            db.execute("INSERT INTO payload VALUES (?, ?, ?)", (commitment, *sealed))

    def get(self, commitments: Iterable[bytes]) -> dict[bytes, Sealed]:
        if not self._path.exists():
            return {}
        found: dict[bytes, Sealed] = {}
        with connection(self._path) as db:
            for one in commitments:
                row = db.execute("SELECT key_id, sealed FROM payload WHERE commitment = ?", (one,)).fetchone()
                if row is not None:
                    found[one] = (str(row[0]), bytes(row[1]))
        return found

    def count(self, key_id: str) -> int:
        if not self._path.exists():
            return 0
        with connection(self._path) as db:
            return int(db.execute("SELECT count(*) FROM payload WHERE key_id = ?", (key_id,)).fetchone()[0])


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
    """Payloads in a store, keys in a folder of their own; threads and processes may share them.

    Args:
        rows: where the sealed payloads lie; may be kept and backed up like the log.
        keys: the folder of keys (mode 0700), made with the first of them. Its backups must expire. Without one, nothing
            can be sealed, opened or shredded.
    """

    def __init__(self, rows: Rows, keys: Path | None) -> None:
        self._rows, self._folder = rows, keys

    @property
    def _keys(self) -> Path:
        if self._folder is None:
            raise InputError(
                f"{self._rows.place}: no folder for the keys of sealed payloads was named",
                remedy="name one that only this process' user can read, and that is not in the database",
            )
        return self._folder

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
        self._make()
        with self._lock():  # so that no key is deleted between its look-up and the payload's commit
            key_id, key = self._key_of(holder)
            sealed = nonce + AESGCM(key).encrypt(nonce, salt + text, commitment)
            self._rows.add(commitment, (key_id, sealed))
        return b64(commitment)

    def open(self, commitment: str) -> Opening | None:
        """The opening of a commitment (base64), or None if its key was deleted.

        Raises:
            VerificationError: the payload is missing, was changed, or is not what the commitment says.
        """
        return self.open_many([commitment])[0]

    def open_many(self, commitments: Iterable[str]) -> list[Opening | None]:
        """`open` of each, in one reading."""
        wanted = [_bytes(one) for one in commitments]
        rows = self._rows.get(wanted) if wanted else {}
        keys: dict[str, bytes | None] = {}
        if rows:
            self._make()
            with self._lock():  # not while a key is being overwritten
                keys = {key_id: self._key(key_id) for key_id, _ in rows.values()}
        return [self._opened(one, rows, keys) for one in wanted]

    def _opened(
        self, wanted: bytes, rows: Mapping[bytes, Sealed], keys: Mapping[str, bytes | None]
    ) -> Opening | None:
        if wanted not in rows:
            raise VerificationError(
                f"{self._rows.place}: no payload of the commitment {b64(wanted)}",
                remedy="restore it from a backup: payloads are never removed, only their keys are",
            )
        key_id, sealed = rows[wanted]
        key = keys[key_id]
        if key is None:
            return None
        try:
            plain = AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], wanted)
            opening = Opening(plain[:_SALT_BYTES], parse_json(plain[_SALT_BYTES:]))
        except (InvalidTag, InputError, ValueError) as error:
            raise VerificationError(
                f"{self._rows.place}: the payload of {b64(wanted)} was changed"
            ) from error
        verify_opening(b64(wanted), opening)
        return opening

    def shred(self, holder: str, *, announce: Callable[[int], object] = lambda count: None) -> int | None:
        """Delete the key of `holder`: its payloads can't be read again. How many there are; None without a key.

        A holder that comes back gets a new key; what was shredded stays so.

        Args:
            announce: called with the number of payloads before the key is touched; if it raises, nothing is.

        Raises:
            InputError: the key can't be overwritten or removed; it may still be there.
        """
        if not self._keys.exists():
            return None
        with self._lock():
            name = self._name_path(holder)
            found = self._read(name)
            if found is None:
                return None
            key = self._key_path(found.decode())
            count = self._rows.count(found.decode())
            announce(count)
            # The key first: cut off in between, the name leads to no key, and another call ends the work.
            _overwrite_and_remove(key, _KEY_BYTES)
            _overwrite_and_remove(name, len(found))
            return count

    # ── keys ─────────────────────────────────────────────────────────────────────────────────────

    def _make(self) -> None:
        """The folder and its salt, if they are not there."""
        try:
            if not (self._keys / "salt").exists():
                self._keys.mkdir(mode=0o700, parents=True, exist_ok=True)
                with self._lock():
                    if not (self._keys / "salt").exists():
                        _write_new(self._keys / "salt", os.urandom(_SALT_BYTES))
        except OSError as error:
            raise InputError(f"{self._keys}: {error.strerror or error}") from error

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
            raise VerificationError(f"{self._rows.place}: a key id was changed")
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
