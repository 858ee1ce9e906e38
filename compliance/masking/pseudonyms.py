"""Keyed pseudonyms: equal people get equal texts within one purpose, and without the key nobody gets from one to the other.

::

    pseudonym = "p" version "." hex(HMAC-SHA256(key(version, purpose, kind), normal form)[:16])
    key       = HKDF-SHA256(master key of the version, info = labels, lengths before each)   (RFC 5869, 2104)

So pseudonyms of two purposes, two kinds or two versions can't be linked, and those of one can: that is what they are
for, and what the purpose must cover. Deleting a version's master key leaves its pseudonyms unlinkable to anything,
for whoever has no copy of the file: backups of it must expire too.

*Why keyed.* All 7·10^9 mobile numbers are hashed by SHA-256 in hours on one core; a hash without a key is no
pseudonym. Whoever has the key can do just that, so pseudonyms stay personal data (GDPR art. 4(5), PIPL art. 73(3)).
128 bits: among 10^9 people, two share a pseudonym with probability 10^-21.

A master key file is JSON, mode 0600, of ``os.urandom``'s bytes.
"""

from __future__ import annotations

import hmac
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from ...documents import b64, read_private_file, unb64, write_private_file
from ...errors import InputError
from .identifiers import card, e164, email_form, iban, id_shape
from .values import clean, distinct

_FORMAT = "foedus pseudonym keys 1"
_VERSION = re.compile(r"[1-9][0-9]{0,8}")
Gap = Literal["refuse", "keep"]


class Subject(StrEnum):
    """What is hashed; each has its normal form and its own keys."""

    PHONE = "phone"
    RESIDENT_ID = "resident_id"
    EMAIL = "email"
    CARD = "card"
    IBAN = "iban"
    NAME = "name"
    TEXT = "text"


def normal_form(value: Any, kind: Subject, *, region: str = "CN") -> str:
    """The one form of a value that is hashed; "" if there is no value, or none of this kind.

    ============  ==============================================================================================
    phone         E.164; numbers without a country are of `region`
    resident_id   18 characters, 15 digits made 18; the check character is not checked: a misprint is a person, too
    email         NFKC, case folded, the domain in its ASCII form
    card, iban    digits or letters, checked, without spaces
    name          NFKC, one space between words, none between Han characters, case folded
    text          NFKC without invisible characters or space around; case counts
    ============  ==============================================================================================
    """
    return _NORMAL[kind](value, region)


def _phone(value: Any, region: str) -> str:
    return e164(value, region=region)


def _email(value: Any, _: str) -> str:
    return email_form(value)


def _card(value: Any, _: str) -> str:
    found = card(value)
    return found.canonical if found else ""


def _iban(value: Any, _: str) -> str:
    found = iban(value)
    return found.canonical if found else ""


def _name(value: Any, _: str) -> str:
    text = clean(value).casefold()
    if len(words := text.split()) == 1:
        return text
    return re.sub(r"(?<=[^\x00-\u2fff]) (?=[^\x00-\u2fff])", "", " ".join(words))


_NORMAL: Mapping[Subject, Callable[[Any, str], str]] = {
    Subject.PHONE: _phone,
    Subject.RESIDENT_ID: lambda value, _: id_shape(value),
    Subject.EMAIL: _email,
    Subject.CARD: _card,
    Subject.IBAN: _iban,
    Subject.NAME: _name,
    Subject.TEXT: lambda value, _: clean(value),
}


@dataclass(frozen=True)
class Keyring:
    """The master keys of a file, by version. Prints no key and is not pickled.

    Args:
        path: its file.
        latest: the highest version that ever was; numbers are not given twice.
    """

    path: Path
    latest: int
    _keys: Mapping[int, bytes]

    @classmethod
    def create(cls, path: Path) -> Keyring:
        """A new file with version 1.

        Raises:
            InputError: it exists, or can't be written.
        """
        ring = cls(path, 1, {1: os.urandom(32)})
        try:
            write_private_file(path, ring._bytes())
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        return ring

    @classmethod
    def load(cls, path: Path) -> Keyring:
        """The keys of a file.

        Raises:
            InputError: no such file, readable by others, or not of this form.
        """
        data = read_private_file(path)
        try:
            content = json.loads(data)
            keys = {
                int(v): unb64(k, length=32, what="key")
                for v, k in content["keys"].items()
                if _VERSION.fullmatch(v)
            }
            if content["format"] != _FORMAT or len(keys) != len(content["keys"]):
                raise ValueError
            latest = content["latest"]
            if type(latest) is not int or latest < max(keys, default=1):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, InputError):
            # Without its cause: that would show a piece of the file.
            raise InputError(f"{path}: not a file of pseudonym keys") from None
        return cls(path, latest, keys)

    @property
    def versions(self) -> list[int]:
        """The versions whose keys there are."""
        return sorted(self._keys)

    def rotate(self) -> Keyring:
        """The same with a new key, under the next version; older ones stay, until they are deleted."""
        return self._changed(self.latest + 1, {**self._keys, self.latest + 1: os.urandom(32)})

    def delete(self, version: int) -> Keyring:
        """The same without one version. Its pseudonyms can't be made or matched again.

        The old file is replaced; a disk may keep its blocks for a while, and a backup keeps the file.

        Raises:
            InputError: no such version.
        """
        self._key(version)
        return self._changed(self.latest, {v: k for v, k in self._keys.items() if v != version})

    def derived(self, label: str, purpose: str, kind: str, *, version: int | None = None) -> bytes:
        """The 32-byte key for one use, purpose and kind.

        Args:
            label: what it is used for ("pseudonym", "ff1"): no two uses share a key.
            version: the latest by default.

        Raises:
            InputError: no purpose, or no such version.
        """
        if not purpose.strip():
            raise InputError("a pseudonym is for a purpose; none is given")
        info = b"".join(
            len(t).to_bytes(4) + t for t in (x.encode() for x in ("foedus/1", label, purpose, kind))
        )
        key = self._key(self.latest if version is None else version)
        return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=info).derive(key)

    def _key(self, version: int) -> bytes:
        if version not in self._keys:
            there = ", ".join(map(str, self.versions)) or "none"
            remedy = "foedus pseudonyms key rotate makes a new one" if version == self.latest else ""
            raise InputError(f"{self.path}: no key of version {version}; there are: {there}", remedy=remedy)
        return self._keys[version]

    def _bytes(self) -> bytes:
        keys = {str(v): b64(k) for v, k in sorted(self._keys.items())}
        return json.dumps({"format": _FORMAT, "latest": self.latest, "keys": keys}, indent=1).encode() + b"\n"

    def _changed(self, latest: int, keys: Mapping[int, bytes]) -> Keyring:
        """Written beside, then renamed: there is one whole file at any time, and of two who change it at once one fails."""
        ring = Keyring(self.path, latest, keys)
        beside = self.path.with_name(f"{self.path.name}.partial")
        try:
            write_private_file(beside, ring._bytes())
            try:
                if Keyring.load(self.path) != self:
                    raise InputError(f"{self.path}: changed meanwhile by somebody else", remedy="do it again")
                beside.replace(self.path)
            finally:
                beside.unlink(missing_ok=True)
            directory = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise InputError(f"{self.path}: {error.strerror or error}") from error
        return ring

    def __repr__(self) -> str:
        return f"Keyring({str(self.path)!r}, versions {self.versions})"

    def __reduce__(self) -> Any:
        raise TypeError("keys are not to be pickled")


def pseudonymise(
    column: pd.Series[Any],
    kind: Subject,
    *,
    keys: Keyring,
    purpose: str,
    version: int | None = None,
    missing: Gap = "refuse",
    invalid: Gap = "refuse",
    region: str = "CN",
) -> pd.Series[Any]:
    """A column's pseudonyms, with its index and name; shape (rows,), texts.

    Each different value is worked on once.

    Args:
        keys, purpose, version: whose pseudonyms; the latest version by default.
        missing: what becomes of missing and empty values: the column is refused, or they are kept missing.
        invalid: the same for values that are not of `kind`: a missing value instead of them. They are never passed on.
        region: as in `normal_form`.

    Raises:
        InputError: a value is missing or not of `kind` (counted, and by position: never shown), no purpose, no such version.
    """
    key = keys.derived("pseudonym", purpose, kind, version=version)
    prefix = f"p{keys.latest if version is None else version}."
    codes, values = distinct(column)
    made = np.empty(len(values) + 1, dtype=object)  # the last is for code −1: missing
    absent = np.zeros(len(values) + 1, dtype=bool)
    made[-1], absent[-1] = None, True
    normal, digest = _NORMAL[kind], hmac.digest
    for i, value in enumerate(values):
        text = normal(value, region)
        if text:
            # A lone surrogate is no UTF-8; it comes of reading a file wrongly, and is one text as well as another.
            made[i] = prefix + digest(key, text.encode("utf-8", "surrogatepass"), "sha256")[:16].hex()
        else:
            absent[i] = not clean(value)
    gone = np.asarray(pd.isna(made))
    for gaps, choice, what in (
        (gone & absent, missing, "missing"),
        (gone & ~absent, invalid, f"not of kind {kind}"),
    ):
        rows = np.flatnonzero(gaps[codes])
        if rows.size and choice == "refuse":
            first = ", ".join(map(str, rows[:5]))
            raise InputError(
                f"column {str(column.name)!r}: {rows.size} of {len(column)} values are {what} (rows {first}"
                f"{', …' if rows.size > 5 else ''}, from 0)",
                remedy="correct them, or have them kept as missing values",
            )
    return pd.Series(made[codes], index=column.index, name=column.name, dtype="str")
