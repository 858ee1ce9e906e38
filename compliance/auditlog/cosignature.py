"""Cosignatures: a witness says that a head continues every head it cosigned before (c2sp.org/tlog-cosignature, v1).

::

    — bank-a base64(key id ‖ time ‖ signature)        one more line under the log's own signature

    key id     SHA-256(name ‖ 0x0A ‖ 0x04 ‖ public key)[:4]
    time       seconds since 1970, 8 bytes, most significant first
    signature  Ed25519 over "cosignature/v1\\ntime <decimal>\\n" ‖ the three lines of the head

Two heads of one size but different roots can't both have a quorum, if more than half of the witnesses make it up
and those in both quorums are honest: an honest one cosigns one of them. `HeadKeeper.cosign` makes the line, for the
head that the witness has checked and has on disk.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

from ...documents import SigningKey, unb64, verify_signature
from ...errors import Refused, VerificationError
from .checkpoint import KEY_ID_BYTES, Checkpoint, note_parts, signature_line

NO_QUORUM = "NO_QUORUM"
_COSIGNATURE = b"\x04"
_TIME_BYTES = 8


def _key_id(name: str, public: bytes) -> bytes:
    return hashlib.sha256(name.encode() + b"\n" + _COSIGNATURE + public).digest()[:KEY_ID_BYTES]


def _message(text: str, time: int) -> bytes:
    return f"cosignature/v1\ntime {time}\n{text}".encode()


def cosign(head: Checkpoint, name: str, key: SigningKey, time: int) -> str:
    """The signature line of witness `name` at `time` (seconds since 1970), to be put under a note of `head`.

    Sign no head but one that `HeadKeeper` has taken: its `cosign` does.
    """
    public = unb64(key.public)
    stamp = time.to_bytes(_TIME_BYTES, "big")
    return signature_line(name, _key_id(name, public) + stamp + key.sign(_message(head.text, time)))


def cosigners(note: str, witnesses: Mapping[str, str]) -> dict[str, int]:
    """Who of `witnesses` (name → base64 public key) cosigned the head in `note`, and when; of several times the last.

    The log's own signature is not looked at: `open_checkpoint` does that. Lines of others are ignored.

    Raises:
        VerificationError: a malformed note, or a cosignature of a witness that does not hold.
        InputError: a witness's key is no public key.
    """
    text, lines = note_parts(note, "note with cosignatures")
    found: dict[str, int] = {}
    for name, data in lines:
        if name not in witnesses:
            continue
        public = unb64(witnesses[name], length=32, what=f"public key of {name}")
        if data[:KEY_ID_BYTES] != _key_id(name, public):
            continue
        what = f"cosignature of {name}"
        time = int.from_bytes(data[KEY_ID_BYTES : KEY_ID_BYTES + _TIME_BYTES], "big")
        signature = data[KEY_ID_BYTES + _TIME_BYTES :]
        if time >= 2**63 or len(signature) != 64:
            raise VerificationError(f"{what}: malformed")
        verify_signature(witnesses[name], signature, _message(text, time), what=what)
        found[name] = max(time, found.get(name, 0))
    return found


def require_quorum(note: str, witnesses: Mapping[str, str], quorum: int) -> dict[str, int]:
    """`cosigners`, if they are `quorum` or more.

    Raises:
        Refused: ``NO_QUORUM``: fewer. VerificationError: as `cosigners`.
    """
    found = cosigners(note, witnesses)
    if quorum < 1 or len(found) < quorum:
        missing = sorted(set(witnesses) - set(found))
        raise Refused(
            NO_QUORUM,
            f"the log's head is cosigned by {len(found)} witnesses ({_names(sorted(found))}); "
            f"{max(quorum, 1)} must; missing: {_names(missing)}",
            remedy="the others have not seen this head, or refused it: compare heads with them",
        )
    return found


def _names(names: list[str]) -> str:
    more = f" and {len(names) - 10} more" if len(names) > 10 else ""
    return ", ".join(names[:10]) + more or "nobody"


def with_lines(note: str, lines: Mapping[str, str]) -> str:
    """The note with witnesses' lines under it, in the order of their names; each once, none that is there already."""
    there = set(note.rpartition("\n\n")[2].splitlines())
    return note + "".join(line for _, line in sorted(lines.items()) if line.rstrip("\n") not in there)
