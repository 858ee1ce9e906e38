"""Signed heads of the audit log: C2SP tlog-checkpoint in a C2SP signed-note, under Ed25519.

::

    example.com/log                                  origin: which log
    42                                               size: number of entries
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=     root hash of RFC 6962

    — example.com/log Az3grlgtzPICa5OS8npVmf1My…     key name, base64(key id ‖ signature)

The signature covers the three lines. Other parties may add signature lines of their own; those of
unknown keys are ignored, as the format demands. Extension lines, which the format allows but advises
against, are refused: no monitor can audit them. (c2sp.org/signed-note, c2sp.org/tlog-checkpoint)
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from ...documents import SigningKey, b64, unb64, verify_signature
from ...errors import InputError, VerificationError
from .merkle import EMPTY_ROOT, HASH_BYTES

_ED25519 = b"\x01"
KEY_ID_BYTES = 4
MAX_NOTE = 4 << 20  # characters; a quorum of 20,000 witnesses, 170 each
_SIZE = re.compile(r"0|[1-9][0-9]{0,17}", re.ASCII)
_NAME = re.compile(r"[^\s+]+")


@dataclass(frozen=True)
class Checkpoint:
    """The head of a log: its origin, size and root hash (32 bytes)."""

    origin: str
    size: int
    root: bytes

    @property
    def text(self) -> str:
        """The three lines that are signed."""
        return f"{self.origin}\n{self.size}\n{b64(self.root)}\n"

    def sign(self, name: str, key: SigningKey) -> str:
        """The checkpoint as a note signed by `key` under the key name `name`.

        Raises:
            InputError: a name, origin, size or root that the format can't carry.
        """
        try:
            _parse(self.text)
        except VerificationError as error:
            raise InputError(error.message) from error
        return sign_note(self.text, name, key)


def open_checkpoint(note: str, name: str, public_key_b64: str) -> Checkpoint:
    """The checkpoint in a note that the key `name` has signed.

    Raises:
        VerificationError: malformed in any way, not signed by that key, or the signature does not hold.
    """
    return _parse(open_note(note, name, public_key_b64))


def _parse(text: str) -> Checkpoint:
    lines = text.split("\n")
    if len(lines) != 4 or lines[3]:
        raise VerificationError("checkpoint: it must have exactly three lines")
    origin, size, root_text, _ = lines
    if not origin or not origin.isprintable():
        raise VerificationError("checkpoint: the origin is empty or not printable")
    if not _SIZE.fullmatch(size):
        raise VerificationError(f"checkpoint of {origin}: the size is not a decimal number")
    try:
        root = unb64(root_text, length=HASH_BYTES, what=f"checkpoint of {origin}: root hash")
    except InputError as error:
        raise VerificationError(error.message) from error
    if b64(root) != root_text:  # the last character has spare bits: one root, one text
        raise VerificationError(f"checkpoint of {origin}: the root hash is not canonical base64")
    if size == "0" and root != EMPTY_ROOT:
        raise VerificationError(f"checkpoint of {origin}: size 0 with a root that is not the empty log's")
    return Checkpoint(origin, int(size), root)


# ── signed-note ──────────────────────────────────────────────────────────────────────────────────


def key_id(name: str, public: bytes) -> bytes:
    """``SHA-256(name ‖ 0x0A ‖ 0x01 ‖ public key)[:4]``: which key of that name, under Ed25519."""
    return hashlib.sha256(name.encode() + b"\n" + _ED25519 + public).digest()[:KEY_ID_BYTES]


def sign_note(text: str, name: str, key: SigningKey) -> str:
    """`text` (which ends in a newline) with one signature line.

    Raises:
        InputError: a key name with spaces or plus signs; a text the format can't carry.
    """
    if not text.endswith("\n") or _controls(text):
        raise InputError("a note ends in a newline and has no control characters")
    signature = key_id(name, unb64(key.public)) + key.sign(text.encode())
    return f"{text}\n{signature_line(name, signature)}"


def signature_line(name: str, data: bytes) -> str:
    """One signature line of a note; `data` begins with a key id.

    Raises:
        InputError: a key name with spaces or plus signs.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r}: a key name has neither spaces nor plus signs")
    return f"— {name} {b64(data)}\n"


def open_note(note: str, name: str, public_key_b64: str) -> str:
    """The text of a note, once the key `name` is seen to have signed it.

    Raises:
        VerificationError: malformed, not signed by that key, or a signature of it does not hold.
        InputError: `public_key_b64` is not a public key.
    """
    public = unb64(public_key_b64, length=32, what=f"public key of {name}")
    what = f"note signed by {name}"
    # 1. the form
    text, lines = note_parts(note, what)
    # 2. signatures of this key: none may fail; those of other keys are ignored once well-formed
    wanted, found = (name, key_id(name, public)), False
    for signer, signature in lines:
        if (signer, signature[:KEY_ID_BYTES]) == wanted:
            verify_signature(public_key_b64, signature[KEY_ID_BYTES:], text.encode(), what=what)
            found = True
    # 3. the empty set of signatures refuses
    if not found:
        raise VerificationError(f"{what}: {name} has not signed it with this key")
    return text


def note_parts(note: str, what: str) -> tuple[str, list[tuple[str, bytes]]]:
    """The text of a note and its signature lines (name, bytes from the key id on), none of them checked.

    Raises:
        VerificationError: malformed.
    """
    if len(note) > MAX_NOTE:
        raise VerificationError(f"{what}: longer than {MAX_NOTE} characters")
    if not _encodable(note) or _controls(note):
        raise VerificationError(f"{what}: not UTF-8, or with control characters")
    body, separator, tail = note.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise VerificationError(f"{what}: no signature lines")
    return body + "\n", [_signature_line(line, what) for line in tail[:-1].split("\n")]


def _signature_line(line: str, what: str) -> tuple[str, bytes]:
    dash, _, rest = line.partition(" ")
    signer, _, encoded = rest.partition(" ")
    if dash != "—" or not _NAME.fullmatch(signer):
        raise VerificationError(f"{what}: a malformed signature line")
    try:
        signature = unb64(encoded, what=f"{what}: signature of {signer}")
    except InputError as error:
        raise VerificationError(error.message) from error
    if len(signature) <= KEY_ID_BYTES:
        raise VerificationError(f"{what}: the signature of {signer} is too short")
    return signer, signature


def _controls(text: str) -> bool:
    return any(character < " " and character != "\n" for character in text)


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
