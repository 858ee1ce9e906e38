"""What every party's node does each round: keep the last head of the log, and accept only its future.

A log on its own can drop its tail, or be rewritten and re-hashed, and look flawless. It can't once
somebody else holds an earlier signed head: the next head must be shown, by a consistency proof, to
continue it. Two nodes that were shown different histories hold two heads that no proof can join.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ... import durable
from ...documents import SigningKey, b64, canonical
from ...errors import InputError, VerificationError
from .checkpoint import Checkpoint, open_checkpoint
from .cosignature import cosign
from .merkle import EMPTY_ROOT, verify_consistency

_MAX_EVIDENCE = 100  # files; one is proof enough, and a log that signs nonsense can't fill the disk
_MAX_PROOF = 128  # hashes; a consistency proof between logs of under 2**63 entries has fewer
_journal = logging.getLogger(__name__)


class HeadKeeper:
    """The last head of one log, as this party saw it.

    The file at `path` is the signed note itself: readable, and authenticated anew whenever it is
    read. Losing it means trusting the next head as a first one, so it belongs in the node's backup.

    Args:
        path: the file of the head; its directory is made if needed.
        log_name: the log's origin, which is also its key name, from the treaty.
        log_public_key: base64 of the log's Ed25519 public key, from the treaty.
    """

    def __init__(self, path: Path, log_name: str, log_public_key: str) -> None:
        self._path, self._name, self._public = path, log_name, log_public_key
        self.unkept = False  # there was evidence, and no room for it

    @property
    def head(self) -> Checkpoint | None:
        """The head kept, or None before the first contact.

        Raises:
            VerificationError: the kept file is not a note signed by this log.
            InputError: it can't be read.
        """
        note = self._note()
        return None if note is None else self._open(note)

    def advance(
        self,
        note: str,
        proof: Sequence[bytes],
        *,
        accept: Callable[[Checkpoint, Checkpoint], None] = lambda kept, offered: None,
    ) -> Checkpoint:
        """Move to a newer head of the log, or stay; afterwards the head is on disk.

        1. *Authenticate*: the log's key has signed the note, and the note is about this log.
        2. *Check*: it continues the head kept: never smaller, the same root at the same size, and for a
           larger one `proof` (hashes, from the log's `consistency_proof(head.size, new size)`) holds.
           At first contact there is nothing to continue: the head is trusted as it is, with a warning
           in the log of the process, and `proof` must be empty.
        3. *Persist*, then return it.

        Args:
            accept: called between 2 and 3 with the head kept (of size 0 at first contact) and the one
                offered; if it raises, the head stays.

        Raises:
            VerificationError: refused, as truncated or forked; the contradicting note is kept beside the
                head, with the head and the proof, as ``<name>.refused-<digest>.json``.
        """
        # 1.
        offered = self._open(note)
        with self._lock():
            # 2.
            kept_note = self._note()
            kept = Checkpoint(self._name, 0, EMPTY_ROOT) if kept_note is None else self._open(kept_note)
            try:
                self._continues(kept, offered, proof)
            except VerificationError as refusal:
                self._keep_evidence(kept_note, note, proof, refusal.message)
                raise
            accept(kept, offered)
            # 3.
            if kept_note is None:
                _journal.warning(
                    "first contact with the log %s: its head of size %d is trusted as it is",
                    self._name,
                    offered.size,
                )
            if kept_note is None or offered != kept:
                durable.replace(self._path, note.encode())
        return offered

    def cosign(
        self, name: str, key: SigningKey, *, clock: Callable[[], float] = time.time
    ) -> tuple[Checkpoint, str]:
        """The head kept, and this party's cosignature line for it (`cosignature`): it was checked, and is on disk.

        Raises:
            InputError: no head was seen yet. VerificationError: the kept file is not a note signed by this log.
        """
        with self._lock():  # none that is not the last one any more
            head = self.head
            if head is None:
                raise InputError(
                    f"log {self._name}: no head of it was seen yet, so there is none to cosign",
                    remedy="take part in a study first, or advance to a head of the log",
                )
            return head, cosign(head, name, key, int(clock()))

    def compare(self, note: str) -> Checkpoint:
        """A head that others were shown: the head in `note`, which contradicts the one kept here in no visible way.

        Heads of different sizes can't be compared without a proof; of one size they must be one.

        Raises:
            VerificationError: not a head of this log, or another one of the same size: a split view. Both are kept
                as evidence, as in `advance`.
        """
        other = self._open(note)
        with self._lock():
            kept_note = self._note()
            kept = None if kept_note is None else self._open(kept_note)
            if kept is not None and kept.size == other.size and kept.root != other.root:
                reason = (
                    f"log {self._name}: split view: others were shown another head of {other.size} entries "
                    "than this party"
                )
                self._keep_evidence(kept_note, note, [], reason)
                raise VerificationError(
                    reason,
                    remedy="take part in no study of this server until the parties have compared heads",
                )
        return other

    @property
    def evidence(self) -> list[Path]:
        """The files that hold contradicting heads and were not settled yet, in order of name."""
        try:
            return sorted(self._path.parent.glob(f"{self._path.name}.refused-*.json"))
        except OSError as error:
            raise InputError(f"{self._path.parent}: {error.strerror or error}") from error

    def settle(self) -> list[Path]:
        """Call the evidence looked into: it stays, as ``<name>.settled-….json``; returns where."""
        settled = []
        with self._lock():
            for path in self.evidence:
                new = path.with_name(path.name.replace(".refused-", ".settled-"))
                try:
                    durable.move(path, new)
                except OSError as error:
                    raise InputError(f"{path}: {error.strerror or error}") from error
                settled.append(new)
        return settled

    def _continues(self, kept: Checkpoint, offered: Checkpoint, proof: Sequence[bytes]) -> None:
        if offered.size < kept.size:
            raise VerificationError(
                f"log {self._name}: truncated: it shows {offered.size} entries, and had {kept.size} "
                "(or an old head was sent)",
                remedy="take part in no study of this server until the parties have compared heads",
            )
        try:
            verify_consistency(kept.size, kept.root, offered.size, offered.root, proof)
        except VerificationError as error:
            raise VerificationError(
                f"log {self._name}: fork: its head of {offered.size} entries is not shown to continue "
                f"the one of {kept.size} kept here ({error.message})",
                remedy="take part in no study of this server until the parties have compared heads",
            ) from error

    def _open(self, note: str) -> Checkpoint:
        checkpoint = open_checkpoint(note, self._name, self._public)
        if checkpoint.origin != self._name:  # one key may sign two logs: they are not one history
            raise VerificationError(f"a head of the log {checkpoint.origin}, not of {self._name}")
        return checkpoint

    def _note(self) -> str | None:
        try:
            return self._path.read_bytes().decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:  # damaged is not absent: no first contact
            raise VerificationError(f"{self._path}: the kept head is damaged") from error
        except OSError as error:
            raise InputError(f"{self._path}: {error.strerror or error}") from error

    def _keep_evidence(self, kept: str | None, refused: str, proof: Sequence[bytes], reason: str) -> None:
        folder, prefix = self._path.parent, f"{self._path.name}.refused-"
        path = folder / f"{prefix}{hashlib.sha256(refused.encode()).hexdigest()[:16]}.json"
        earlier = [other for other in folder.iterdir() if other.name.startswith(prefix)]
        if path in earlier or len(earlier) >= _MAX_EVIDENCE:
            return
        hashes = [b64(part) for part in proof[:_MAX_PROOF] if isinstance(part, bytes)]
        evidence = canonical({"kept": kept, "refused": refused, "proof": hashes, "reason": reason})
        try:
            durable.replace(path, evidence)
        except InputError as error:  # a full disk must not turn the refusal into another error
            self.unkept = True
            _journal.error("evidence against the log %s could not be kept: %s", self._name, error.message)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """One advance at a time, across threads and processes (each takes a descriptor of its own)."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(
                self._path.with_name(f"{self._path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600
            )
        except OSError as error:
            raise InputError(f"{self._path}: {error.strerror or error}") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
