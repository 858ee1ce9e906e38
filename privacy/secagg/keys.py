"""Key advertisements: what a silo signs at set-up, and the pairwise secrets that follow from them.

Each silo makes, for one batch of rounds: an X25519 key to receive shares under, and for every round
an X25519 mask key and a self-mask seed. Private halves never print and are dropped with the batch.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from ...documents import Envelope, Payload, b64, digest, unb64
from ...errors import InputError, ProtocolError
from . import shares

KIND = "secure-sum-keys"


@dataclass(frozen=True)
class Context:
    """What every key and signature of one batch is bound to.

    Args:
        treaty, study: digests. run: Flower's run id, as text. batch: number of this set-up.
        rounds: the rounds its keys serve.
    """

    treaty: str
    study: str
    run: str
    batch: int
    rounds: tuple[int, ...]

    def to_json(self) -> Payload:
        return {
            "treaty": self.treaty,
            "study": self.study,
            "run": self.run,
            "batch": self.batch,
            "rounds": list(self.rounds),
        }

    @cached_property
    def digest(self) -> str:
        """What uploads and answers name their batch by."""
        return digest("secure-sum-context", self.to_json())


@dataclass(frozen=True)
class Roster:
    """Who may take part, from the treaty alone.

    Args:
        signing_keys: silo -> base64 Ed25519 key, in treaty order (a silo's place is its share's x).
        colluders: c, silos that may pool what they know with the server.
    """

    signing_keys: Mapping[str, str]
    colluders: int
    _points: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_points", {silo: x for x, silo in enumerate(self.signing_keys, 1)})
        if not 1 <= self.colluders <= len(self.signing_keys) - 2:
            raise InputError(
                f"{self.colluders} colluders among {len(self.signing_keys)} silos leave nobody to protect"
            )

    @property
    def threshold(self) -> int:
        """t = ⌊(n + c)/2⌋ + 1, over all n silos of the treaty, present or not."""
        return (len(self.signing_keys) + self.colluders) // 2 + 1

    def point(self, silo: str) -> int:
        """The x coordinate of a silo's shares, 1…n."""
        return self._points[silo]

    def key(self, silo: str) -> str:
        """A silo's signing key.

        Raises:
            ProtocolError: it is not on the roster.
        """
        if silo not in self.signing_keys:
            raise ProtocolError(f"{silo} is no silo of this treaty")
        return self.signing_keys[silo]


@dataclass(frozen=True)
class Advertisement:
    """A silo's public keys for one batch: `mask` holds one X25519 key a round.

    `seeds` holds a commitment to the round's self-mask seed, so that a wrong share of it is noticed even
    where just the threshold answered.
    """

    silo: str
    share_key: bytes
    mask: dict[int, bytes]
    seeds: dict[int, bytes]

    @classmethod
    def verify(cls, envelope: Envelope, context: Context, silo: str, signing_key: str) -> Advertisement:
        """Take an advertisement only if `silo` signed it for exactly this context.

        Raises:
            VerificationError (or ProtocolError below it): anything else.
        """
        envelope.check(KIND, silo, signing_key)
        payload = envelope.payload
        if set(payload) != {"context", "silo", "share_key", "mask_keys", "seed_commitments"}:
            raise ProtocolError(f"key advertisement of {silo}: unexpected fields")
        if payload["context"] != context.to_json() or payload["silo"] != silo:
            raise ProtocolError(f"key advertisement of {silo}: made for another run, batch, study or treaty")
        try:
            share_key = unb64(payload["share_key"], length=32)
            mask, seeds = (
                cls._by_round(payload[name], context) for name in ("mask_keys", "seed_commitments")
            )
        except InputError as error:
            raise ProtocolError(f"key advertisement of {silo}: {error.message}") from error
        return cls(silo, share_key, mask, seeds)

    @staticmethod
    def _by_round(values: object, context: Context) -> dict[int, bytes]:
        if not isinstance(values, list) or len(values) != len(context.rounds):
            raise InputError("one mask key and one seed commitment a round are needed")
        return {r: unb64(v, length=32) for r, v in zip(context.rounds, values, strict=True)}


class BatchKeys:
    """The private keys of one batch. Does not print; `forget` drops a round's secrets."""

    def __init__(self, rounds: Sequence[int]) -> None:
        self._share_key = X25519PrivateKey.generate()
        self._mask_secrets = {r: shares.random_element() for r in rounds}
        self._seeds = {r: shares.random_element() for r in rounds}
        self.check_part = os.urandom(32)
        """This silo's part of the batch's check key."""

    def __repr__(self) -> str:
        return "BatchKeys(…)"

    def advertise(self, context: Context, silo: str) -> Envelope:
        """The unsigned advertisement of the public halves."""
        keys = [b64(mask_public(self._mask_secrets[r])) for r in context.rounds]
        seeds = [b64(seed_commitment(self._seeds[r])) for r in context.rounds]
        payload = {
            "context": context.to_json(),
            "silo": silo,
            "share_key": b64(self._share_key.public_key().public_bytes_raw()),
            "mask_keys": keys,
            "seed_commitments": seeds,
        }
        return Envelope(KIND, payload)

    def mask_secret(self, number: int) -> int:
        return self._mask_secrets[number]

    def seed(self, number: int) -> int:
        return self._seeds[number]

    def share_secret(self, peer: bytes) -> bytes:
        """X25519 secret with a peer's share key."""
        return agree(self._share_key, peer)

    def forget(self, number: int) -> None:
        """Drop the secrets of one round."""
        self._mask_secrets.pop(number, None)
        self._seeds.pop(number, None)


def mask_key(secret: int) -> X25519PrivateKey:
    """The X25519 key that a mask secret is."""
    # A field element is 255 bits: exactly what RFC 7748's clamping leaves of a private key's entropy, and more.
    return X25519PrivateKey.from_private_bytes(secret.to_bytes(32, "little"))


def mask_public(secret: int) -> bytes:
    """The public key of a mask secret."""
    return mask_key(secret).public_key().public_bytes_raw()


def seed_commitment(seed: int) -> bytes:
    """SHA-256 of a seed (255 random bits: hiding) under a label of its own."""
    return hashlib.sha256(b"foedus/v1/seed-commitment\0" + shares.to_bytes(seed)).digest()


def mask_agree(secret: int, peer: bytes) -> bytes:
    """The X25519 secret two silos' masks of one round derive from."""
    return agree(mask_key(secret), peer)


def agree(private: X25519PrivateKey, peer: bytes) -> bytes:
    """X25519; refuses a peer's low-order point (the all-zero secret).

    Raises:
        ProtocolError: the peer's key is not usable.
    """
    try:
        return private.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError as error:
        raise ProtocolError("a peer's public key is of low order") from error
