"""The silo's side of the secure sum.

States, each method one step, none twice::

    advertise ─▶ share ─▶ receive ─▶ ( mask r ─▶ answer r ) for every round r of the batch

Why the server learns one sum a round and nothing else, though it may lie and up to c silos help it
(Bonawitz et al. 2017, CCS, Theorem 6.5; here the threshold replaces their consistency trip):

1. Masks of honest silos i, j cancel only in a sum that holds both vectors. To open the sum over a
   set U the server needs, of every honest member, the self-mask seed; of every honest non-member it
   must lack the vector or know the mask key. Each takes t shares.
2. An honest silo answers once a round, for one set U, with the seed share of a member or the mask-key
   share of a non-member, never both. Suppose the server gets t shares for set U and t for U' ≠ U.
   Colluders give at most c to each, so honest silos gave t − c to each, and they are different silos:
   2(t − c) ≤ n − c, that is t ≤ (n + c)/2. But t = ⌊(n + c)/2⌋ + 1. So only one set is ever opened.
3. For one silo both secrets would open its vector alone: by the same count it can't have both.
4. Keys are signed by identities pinned in the treaty and bound to (treaty, study, run, batch), so the
   server can neither put itself between two silos nor replay; per-round keys open no other round.
5. |U| ≥ t and i ∈ U: the sum holds t − c honest vectors or more, and as many shares of noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...documents import Envelope, SigningKey
from ...errors import ProtocolError
from . import masks, shares
from .journal import Journal
from .keys import Advertisement, BatchKeys, Context, Roster, mask_agree

UPLOAD = "secure-sum-upload"
ANSWER = "secure-sum-answer"
_BOX_NONCE = bytes(12)  # every box has a key of its own (fresh share keys, context, direction)


class Silo:
    """One silo in one batch of rounds. Holds secrets in memory only; does not print them."""

    def __init__(
        self, name: str, identity: SigningKey, roster: Roster, context: Context, journal: Journal
    ) -> None:
        roster.key(name)
        self.name = name
        self.context = context
        self._identity = identity
        self._roster = roster
        self._journal = journal
        self._keys = BatchKeys(context.rounds)
        self._advertisement: Envelope | None = None
        self._peers: dict[str, Advertisement] = {}
        self._held: dict[str, dict[int, tuple[int, int]]] = {}  # silo -> round -> (mask share, seed share)

    def __repr__(self) -> str:
        return f"Silo({self.name!r}, …)"

    @property
    def participants(self) -> tuple[str, ...]:
        """Who takes part in this batch: those whose shares this silo holds, sorted."""
        return tuple(sorted(self._held))

    def advertise(self) -> Envelope:
        """Set-up, trip 1: this silo's signed public keys."""
        if self._advertisement is not None:
            raise ProtocolError("keys of this batch are advertised already")
        context = self.context
        self._journal.once(context.study, context.run, "set-up", context.batch)
        self._advertisement = self._keys.advertise(context, self.name).signed(self.name, self._identity)
        return self._advertisement

    def share(self, advertisements: Sequence[Envelope]) -> dict[str, bytes]:
        """Set-up, trip 2: shares of this silo's secrets, encrypted to each peer (peer -> box).

        Raises:
            VerificationError, ProtocolError: a key not signed by a silo of the treaty for this batch,
                a silo twice, this silo's own keys missing or altered, or fewer than t silos.
        """
        if self._advertisement is None or self._peers:
            raise ProtocolError("shares are dealt once, after the keys were advertised")
        peers: dict[str, Advertisement] = {}
        for envelope in advertisements:
            silo = envelope.payload.get("silo")
            if not isinstance(silo, str) or silo in peers:
                raise ProtocolError(f"key advertisements: {silo!r} twice or unnamed")
            peers[silo] = Advertisement.verify(envelope, self.context, silo, self._roster.key(silo))
            if silo == self.name and envelope.payload != self._advertisement.payload:
                raise ProtocolError("key advertisements: this silo's own keys were altered")
        if self.name not in peers:
            raise ProtocolError("key advertisements: this silo's own keys are missing")
        self._check_threshold(len(peers), "set-up")
        points = {silo: self._roster.point(silo) for silo in peers}
        t = self._roster.threshold
        dealt: dict[str, dict[int, tuple[int, int]]] = {silo: {} for silo in peers}
        for r in self.context.rounds:
            mask_shares = shares.split(self._keys.mask_secret(r), t, list(points.values()))
            seed_shares = shares.split(self._keys.seed(r), t, list(points.values()))
            for silo, x in points.items():
                dealt[silo][r] = (mask_shares[x], seed_shares[x])
        self._peers = peers
        self._held[self.name] = dealt.pop(self.name)
        return {silo: self._seal(silo, values) for silo, values in dealt.items()}

    def receive(self, boxes: Mapping[str, bytes]) -> None:
        """Take the shares the others dealt to this silo; who dealt some is a participant.

        Raises:
            ProtocolError: an unknown sender, a box that doesn't open, or fewer than t participants.
        """
        if not self._peers or len(self._held) > 1:
            raise ProtocolError("shares are received once, after this silo dealt its own")
        opened = {silo: self._open(silo, box) for silo, box in boxes.items() if silo != self.name}
        self._check_threshold(len(opened) + 1, "set-up")
        self._held.update(opened)

    def mask(self, number: int, vector: masks.Words, *, task: str) -> tuple[masks.Words, Envelope]:
        """Round trip 1: `vector` (uint32, shape (d,)), noise already in it, under all masks; and a signed header.

        The upload is written to the journal before it is returned: it may leave once.
        """
        if number not in self.context.rounds or len(self._held) < self._roster.threshold:
            raise ProtocolError(f"round {number} is not set up")
        context = self.context
        self._journal.require_new(context.study, context.run, "upload", number)
        masked = vector.astype("uint32", copy=True)
        masks.apply(masked, self._self_seed(number, self.name, self._keys.seed(number)))
        for peer in self.participants:
            if peer != self.name:
                secret = mask_agree(self._keys.mask_secret(number), self._peers[peer].mask[number])
                masks.apply(
                    masked, pair_seed(secret, context, number, self.name, peer), subtract=self.name > peer
                )
        header = Envelope(
            UPLOAD,
            {
                "context": context.digest,
                "round": number,
                "silo": self.name,
                "task": task,
                "participants": list(self.participants),
                "dimension": int(masked.size),
                "vector": hashlib.sha256(masks.to_wire(masked)).hexdigest(),
            },
        ).signed(self.name, self._identity)
        self._journal.once(context.study, context.run, "upload", number, header.digest)
        return masked, header

    def answer(
        self, number: int, survivors: Sequence[str]
    ) -> tuple[Envelope, dict[str, bytes], dict[str, bytes]]:
        """Round trip 2: help to open the sum over `survivors`.

        Returns:
            A signed statement of what was answered, seed shares of survivors and mask-key shares of
            the dropped (silo -> 32 bytes). Never both of one silo, never twice for a round.

        Raises:
            ProtocolError: fewer than t survivors, a stranger, this silo missing, or it never uploaded.
            Refused: this round was answered before.
        """
        context = self.context
        if self._journal.done(context.study, context.run, "upload", number) is None:
            raise ProtocolError(f"round {number}: this silo uploaded nothing to be opened")
        self._journal.require_new(context.study, context.run, "answer", number)
        chosen = set(survivors)
        if len(chosen) != len(survivors) or not chosen <= set(self._held):
            raise ProtocolError(f"round {number}: survivors are named twice or never took part")
        if self.name not in chosen:
            raise ProtocolError(f"round {number}: this silo uploaded and is not among the survivors")
        self._check_threshold(len(chosen), f"round {number}")
        dropped = set(self._held) - chosen
        seeds = {silo: shares.to_bytes(self._held[silo][number][1]) for silo in sorted(chosen)}
        mask_keys = {silo: shares.to_bytes(self._held[silo][number][0]) for silo in sorted(dropped)}
        statement = Envelope(
            ANSWER,
            {
                "context": context.digest,
                "round": number,
                "silo": self.name,
                "survivors": sorted(chosen),
                "dropped": sorted(dropped),
                "shares": shares_digest(seeds, mask_keys),
            },
        ).signed(self.name, self._identity)
        self._journal.once(context.study, context.run, "answer", number, statement.digest)
        for silo in self._held:
            self._held[silo].pop(number)
        self._keys.forget(number)
        return statement, seeds, mask_keys

    def _check_threshold(self, present: int, where: str) -> None:
        t = self._roster.threshold
        if present < t:
            raise ProtocolError(f"{where}: {present} silos, below this silo's threshold of {t}")

    def _self_seed(self, number: int, silo: str, seed: int) -> bytes:
        return self_seed(seed, self.context, number, silo)

    def _box_key(self, sender: str, receiver: str, peer: Advertisement) -> bytes:
        secret = self._keys.share_secret(peer.share_key)
        return masks.derive(secret, "shares", self.context.digest, sender, receiver)

    def _seal(self, peer: str, values: Mapping[int, tuple[int, int]]) -> bytes:
        plain = b"".join(
            shares.to_bytes(m) + shares.to_bytes(b) for m, b in (values[r] for r in self.context.rounds)
        )
        return AESGCM(self._box_key(self.name, peer, self._peers[peer])).encrypt(_BOX_NONCE, plain, None)

    def _open(self, peer: str, box: bytes) -> dict[int, tuple[int, int]]:
        if peer not in self._peers:
            raise ProtocolError(f"shares from {peer}, who advertised no keys")
        try:
            plain = AESGCM(self._box_key(peer, self.name, self._peers[peer])).decrypt(_BOX_NONCE, box, None)
        except (InvalidTag, ValueError) as error:
            raise ProtocolError(f"shares from {peer}: the box does not open") from error
        width = 2 * shares.SHARE_BYTES
        if len(plain) != width * len(self.context.rounds):
            raise ProtocolError(f"shares from {peer}: wrong number of rounds")
        values = {}
        for place, r in enumerate(self.context.rounds):
            part = plain[place * width : (place + 1) * width]
            values[r] = (shares.from_bytes(part[:32]), shares.from_bytes(part[32:]))
        return values


def pair_seed(secret: bytes, context: Context, number: int, one: str, other: str) -> bytes:
    """The seed of the mask two silos share in a round; the lesser name adds it, the greater subtracts."""
    low, high = sorted((one, other))
    return masks.derive(secret, "pair", context.digest, number, low, high)


def self_seed(seed: int, context: Context, number: int, silo: str) -> bytes:
    """The seed of a silo's own mask in a round."""
    return masks.derive(shares.to_bytes(seed), "self", context.digest, number, silo)


def shares_digest(seeds: Mapping[str, bytes], mask_keys: Mapping[str, bytes]) -> str:
    """What an answer's signature says of the shares beside it."""
    content = hashlib.sha256()
    for label, values in (("seed", seeds), ("mask", mask_keys)):
        for silo in sorted(values):
            content.update(f"{label}\0{silo}\0".encode() + values[silo])
    return content.hexdigest()
