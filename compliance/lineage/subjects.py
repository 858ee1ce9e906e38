"""Which customers went into which use of their data, at their own silo only.

A *use* is one side of a study's run, or a scoring. For each the silo keeps one sorted list of pseudonyms:

    use key   = HKDF-SHA-256(lineage.key, info = "foedus lineage use\\0" || use), 32 bytes
    pseudonym = HMAC-SHA-256(use key, "foedus lineage subject\\0" || customer in UTF-8), the first 16 bytes

So the file names nobody, and without `lineage.key` (mode 0600) nobody can tell a customer in it, nor follow one from
use to use; deleting the key shreds all of it. With the key and a customer's id the silo finds what they were used for.
`forget` takes a customer out of every list; the freed bytes are overwritten.

A list holds whoever was in the use in any of its rounds, noted before the round: also where it was refused in the end.
Nothing of this leaves the silo.
"""

from __future__ import annotations

import hmac
import secrets
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...documents import ensure_private_file, read_private_file
from ...errors import InputError, VerificationError
from ..auditlog.database import Schema, connection, establish, transaction

KEY_BYTES, NAME_BYTES = 32, 16
_SCHEMA = Schema(
    title="a register of lineage's subjects",
    application_id=0x666F6C73,  # "fols"
    statements=(
        (
            "CREATE TABLE use (id INTEGER PRIMARY KEY, study TEXT NOT NULL, study_run TEXT NOT NULL, what TEXT NOT NULL, "
            "began TEXT NOT NULL, names BLOB NOT NULL, UNIQUE (study, study_run, what)) STRICT"
        ),
    ),
)


@dataclass(frozen=True)
class Use:
    """What customers' data was used for: a study (digest), its run, and ``train``, ``validate``, ``test`` or ``scored``."""

    study: str
    run: str
    what: str

    @property
    def info(self) -> bytes:
        return f"foedus lineage use\0{self.study}\0{self.run}\0{self.what}".encode()


@dataclass(frozen=True)
class Touch:
    """That a customer was in a use, which began then."""

    use: Use
    began: str


class Subjects:
    """The register of one silo, in one file; threads and processes may share it.

    Args:
        path: the file; made (mode 0600) if there is none.
        key_file: 32 bytes, mode 0600; made when it is first needed.

    Raises:
        InputError: something else. VerificationError: damaged.
    """

    def __init__(self, path: Path, key_file: Path) -> None:
        self._path, self._key_file = path, key_file
        establish(path, _SCHEMA)

    def record(self, use: Use, customers: Iterable[str], at: datetime | None = None) -> int:
        """Note who is in a use, before it happens; on disk when the call returns. Returns how many are new in it.

        Raises:
            InputError: the key can't be read or made.
        """
        key = self._key(use)
        told = {_name(key, customer) for customer in customers}
        with connection(self._path) as db:
            known = self._names(db, use)
        if known is not None and told <= known:
            return 0
        with transaction(self._path) as db:
            db.execute("PRAGMA secure_delete = ON")
            known = self._names(db, use) or set()
            began = (at or datetime.now(UTC)).isoformat(timespec="seconds")
            db.execute(
                "INSERT INTO use (study, study_run, what, began, names) VALUES (?, ?, ?, ?, ?) "
                "ON CONFLICT DO UPDATE SET names = excluded.names",
                (use.study, use.run, use.what, began, b"".join(sorted(told | known))),
            )
        return len(told - known)

    def touched(self, customer: str) -> list[Touch]:
        """The uses that a customer was in, oldest first.

        Raises:
            InputError: the key is lost or not ours. VerificationError: damaged.
        """
        found = []
        with connection(self._path) as db:
            for number, touch, names in self._uses(db):
                if _find(names, _name(self._key(touch.use), customer)) is not None:
                    found.append((number, touch))
        return [touch for _, touch in found]

    def forget(self, customer: str) -> list[Touch]:
        """Take a customer out of every use, for good. Returns the uses they were in, which is then known to nobody else.

        What remains is what the uses made: models are not changed by it (see the rights of customers).
        """
        found = []
        with transaction(self._path) as db:
            db.execute("PRAGMA secure_delete = ON")
            for number, touch, names in list(self._uses(db)):
                place = _find(names, _name(self._key(touch.use), customer))
                if place is not None:
                    rest = names[: place * NAME_BYTES] + names[(place + 1) * NAME_BYTES :]
                    db.execute("UPDATE use SET names = ? WHERE id = ?", (rest, number))
                    found.append(touch)
        return found

    def empty(self, uses: Iterable[Use]) -> None:
        """Forget everybody who was in these uses, for good; that the uses were stays."""
        with transaction(self._path) as db:
            db.execute("PRAGMA secure_delete = ON")
            for use in uses:
                db.execute(
                    "UPDATE use SET names = x'' WHERE study = ? AND study_run = ? AND what = ?",
                    (use.study, use.run, use.what),
                )

    def uses(self) -> list[Touch]:
        """All uses, oldest first."""
        with connection(self._path) as db:
            return [touch for _, touch, _ in self._uses(db)]

    def _uses(self, db: object) -> Iterable[tuple[int, Touch, bytes]]:
        query = "SELECT id, study, study_run, what, began, names FROM use ORDER BY id"
        for number, study, run, what, began, names in db.execute(query):  # type: ignore[attr-defined]
            if len(names) % NAME_BYTES:
                raise VerificationError(
                    f"{self._path}: damaged: a list of pseudonyms is cut off",
                    remedy="restore it from a backup",
                )
            yield number, Touch(Use(study, run, what), began), names

    def _names(self, db: object, use: Use) -> set[bytes] | None:
        query = "SELECT names FROM use WHERE study = ? AND study_run = ? AND what = ?"
        row = db.execute(query, (use.study, use.run, use.what)).fetchone()  # type: ignore[attr-defined]
        if row is None:
            return None
        return {row[0][i : i + NAME_BYTES] for i in range(0, len(row[0]), NAME_BYTES)}

    def _key(self, use: Use) -> bytes:
        if not self._key_file.exists() and self.uses():
            raise InputError(
                f"{self._key_file}: no such file: nobody can tell a customer in {self._path.name} any more",
                remedy="restore the key from a backup; if it was deleted on purpose, remove the register too",
            )
        ensure_private_file(self._key_file, secrets.token_bytes(KEY_BYTES))
        secret = read_private_file(self._key_file)
        if len(secret) != KEY_BYTES:
            raise InputError(f"{self._key_file}: not a key of lineage", remedy="restore it from a backup")
        return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=use.info).derive(secret)


def _name(key: bytes, customer: str) -> bytes:
    return hmac.digest(key, b"foedus lineage subject\0" + customer.encode(), "sha256")[:NAME_BYTES]


def _find(names: bytes, name: bytes) -> int | None:
    """The place of a pseudonym in a sorted list."""
    count = len(names) // NAME_BYTES
    place = bisect_left(range(count), name, key=lambda i: names[i * NAME_BYTES : (i + 1) * NAME_BYTES])
    there = place < count and names[place * NAME_BYTES : (place + 1) * NAME_BYTES] == name
    return place if there else None
