"""Signed documents: RFC 8785 canonical JSON under Ed25519.

A document that decides something (treaty, study, approval, key advertisement, receipt) is an
*envelope*: ``{"kind": ..., "payload": {...}, "signatures": {signer: base64}}``. What is signed is
``b"foedus/v1/" + kind + b"\\n" + canonical(payload)``, so a signature over one kind never passes
for another. Integers beyond 2**53 can't be canonical JSON: they travel as decimal strings.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import os
import secrets
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from .errors import InputError, VerificationError

_DOMAIN = b"foedus/v1/"
Payload = dict[str, Any]


def canonical(value: Any) -> bytes:
    """RFC 8785 bytes of a JSON value.

    Raises:
        InputError: NaN, infinity, integers beyond 2**53, or types JSON does not have.
    """
    try:
        return rfc8785.dumps(value)
    except (rfc8785.CanonicalizationError, UnicodeError, RecursionError) as error:
        raise InputError(f"not representable as canonical JSON: {error}") from error


def digest(kind: str, payload: Payload) -> str:
    """SHA-256 (hex) of what a signature over this document covers."""
    return hashlib.sha256(_signed_bytes(kind, payload)).hexdigest()


def _signed_bytes(kind: str, payload: Payload) -> bytes:
    return _DOMAIN + kind.encode() + b"\n" + canonical(payload)


def b64(data: bytes) -> str:
    """Standard base64, as text."""
    return base64.b64encode(data).decode()


def unb64(text: str, *, length: int | None = None, what: str = "base64 value") -> bytes:
    """Decode strict base64; `length` is the number of bytes it must hold.

    Raises:
        InputError: not base64, or of another length.
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise InputError(f"{what}: not base64") from error
    if length is not None and len(data) != length:
        raise InputError(f"{what}: {len(data)} bytes where {length} are needed")
    return data


class SigningKey:
    """An Ed25519 identity. It does not print, and its file must be mode 0600."""

    __slots__ = ("_key",)

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def generate(cls) -> SigningKey:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a key written by `save`.

        Raises:
            InputError: missing, unreadable, not Ed25519, or readable by others.
        """
        raw = read_private_file(path)
        try:
            key = serialization.load_pem_private_key(raw, None)
        except (ValueError, TypeError) as error:
            raise InputError(f"{path}: not a PEM private key") from error
        if not isinstance(key, Ed25519PrivateKey):
            raise InputError(f"{path}: not an Ed25519 key")
        return cls(key)

    def save(self, path: Path) -> None:
        """Write the key as PKCS #8 PEM, mode 0600; an existing file is never overwritten."""
        pem = self._key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        write_private_file(path, pem)

    @property
    def public(self) -> str:
        """The public key: base64 of its 32 bytes."""
        return b64(self._key.public_key().public_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)

    def __repr__(self) -> str:
        return "SigningKey(…)"

    def __reduce__(self) -> Any:
        raise TypeError("a signing key is not to be pickled")


def read_text(path: Path) -> str:
    """A UTF-8 text file.

    Raises:
        InputError: unreadable, or not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text") from error


def write_private_file(path: Path, data: bytes) -> None:
    """Create `path` with mode 0600 and write `data`; refuse to overwrite."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise InputError(
            f"{path}: exists already", remedy="move it away first: keys are never overwritten"
        ) from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def ensure_private_file(path: Path, data: bytes) -> None:
    """Make `path` (mode 0600) with `data` if there is none: whole or not at all, whoever else tries or fails."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write_private_file(draft, data)
        with suppress(FileExistsError):  # another process was first: theirs counts
            os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def read_private_file(path: Path) -> bytes:
    """Read a secret file, refusing one that others may read (mode wider than 0600)."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise InputError(f"{path}: readable by others (mode {mode:04o})", remedy=f"chmod 600 {path}")
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error


def verify_signature(public: str, signature: bytes, message: bytes, *, what: str) -> None:
    """Check an Ed25519 signature by the base64 public key.

    Raises:
        VerificationError: it does not hold.
    """
    try:
        Ed25519PublicKey.from_public_bytes(unb64(public, length=32, what="public key")).verify(
            signature, message
        )
    except (InvalidSignature, InputError) as error:
        raise VerificationError(f"{what}: the signature does not hold") from error


@dataclass(frozen=True)
class Envelope:
    """A document and its signatures: ``signer name -> base64 signature``."""

    kind: str
    payload: Payload
    signatures: Mapping[str, str] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        return digest(self.kind, self.payload)

    def signed(self, signer: str, key: SigningKey) -> Envelope:
        """The same document with one more signature."""
        signature = b64(key.sign(_signed_bytes(self.kind, self.payload)))
        return Envelope(self.kind, self.payload, {**self.signatures, signer: signature})

    def check(self, kind: str, signer: str, public: str) -> None:
        """Raise unless this is a `kind` signed by `signer`, whose base64 public key is `public`.

        Raises:
            VerificationError: another kind, no such signature, or it does not hold.
        """
        if self.kind != kind:
            raise VerificationError(f"a {kind!r} document was expected, this is a {self.kind!r}")
        text = self.signatures.get(signer)
        if text is None:
            raise VerificationError(f"{kind} {self.digest[:12]}: {signer} has not signed it")
        try:
            signature = unb64(text, length=64)
        except InputError as error:
            raise VerificationError(
                f"{kind} {self.digest[:12]}: the signature of {signer} is malformed"
            ) from error
        verify_signature(
            public,
            signature,
            _signed_bytes(self.kind, self.payload),
            what=f"{kind} {self.digest[:12]} by {signer}",
        )

    def to_json(self) -> Payload:
        return {"kind": self.kind, "payload": self.payload, "signatures": dict(self.signatures)}

    def dumps(self) -> bytes:
        """Canonical bytes of the whole envelope, for files and messages."""
        return canonical(self.to_json())

    @classmethod
    def from_json(cls, value: Any) -> Envelope:
        """Take an envelope from parsed JSON.

        Raises:
            InputError: any other shape.
        """
        if not isinstance(value, dict) or set(value) != {"kind", "payload", "signatures"}:
            raise InputError("not a signed document: it must have exactly kind, payload and signatures")
        kind, payload, signatures = value["kind"], value["payload"], value["signatures"]
        if not isinstance(kind, str) or not isinstance(payload, dict) or not isinstance(signatures, dict):
            raise InputError("not a signed document: kind is text, payload and signatures are objects")
        if not all(isinstance(k, str) and isinstance(v, str) for k, v in signatures.items()):
            raise InputError("not a signed document: signatures are text by signer")
        canonical(value)  # refuses what could not have been signed
        return cls(kind, payload, signatures)

    @classmethod
    def loads(cls, data: bytes | str) -> Envelope:
        return cls.from_json(parse_json(data))

    @classmethod
    def load(cls, path: Path) -> Envelope:
        """Read an envelope from a file."""
        try:
            return cls.loads(path.read_bytes())
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from error
        except InputError as error:
            raise InputError(f"{path}: {error.message}") from error


def _no_duplicates(pairs: list[tuple[str, Any]]) -> Payload:
    out: Payload = {}
    for key, value in pairs:
        if key in out:
            raise ValueError(f"key {key!r} twice")
        out[key] = value
    return out


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text[:20]} is too large")
    return value


def parse_json(data: bytes | str) -> Any:
    """Parse strict JSON: no duplicate keys, no NaN or infinity, UTF-8.

    Raises:
        InputError: anything else.
    """
    try:
        # json.loads guesses UTF-16 and UTF-32 from bytes: decode first.
        text = data if isinstance(data, str) else data.decode()
        return json.loads(
            text, object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise InputError(f"not JSON: {error}") from error
