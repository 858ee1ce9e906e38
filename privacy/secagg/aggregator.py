"""The server's side of the secure sum: collect, add up, unmask the sum.

The server is not trusted by anyone (see `client`); what it checks here protects the *result*: a silo
that sends nonsense stops the round with its name, instead of spoiling the sum in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from ...documents import Envelope, Payload, b64, unb64
from ...errors import Abandoned, ProtocolError
from . import masks, shares
from .client import ANSWER, UPLOAD, pair_seed, self_seed, shares_digest
from .codec import Integers, unwrap
from .keys import Advertisement, Context, Roster, mask_agree, mask_public, seed_commitment


@dataclass
class _Round:
    dimension: int
    task: str
    total: masks.Words
    uploads: dict[str, Envelope] = field(default_factory=dict)
    answers: dict[str, Envelope] = field(default_factory=dict)
    seed_shares: dict[str, dict[int, int]] = field(default_factory=dict)
    mask_shares: dict[str, dict[int, int]] = field(default_factory=dict)
    closed: bool = False


class Aggregator:
    """One batch of rounds at the server."""

    def __init__(self, roster: Roster, context: Context) -> None:
        self._roster = roster
        self.context = context
        self._advertised: dict[str, tuple[Envelope, Advertisement]] = {}
        self._boxes: dict[str, dict[str, bytes]] = {}
        self._rounds: dict[int, _Round] = {}

    @property
    def advertisements(self) -> list[Envelope]:
        """The keys collected, for set-up trip 2 and for the evidence."""
        return [envelope for _, (envelope, _) in sorted(self._advertised.items())]

    @property
    def participants(self) -> tuple[str, ...]:
        """The silos that finished set-up, sorted."""
        return tuple(sorted(self._boxes))

    def add_advertisement(self, silo: str, envelope: Envelope) -> None:
        """Set-up trip 1: one silo's keys."""
        advertisement = Advertisement.verify(envelope, self.context, silo, self._roster.key(silo))
        self._advertised[silo] = (envelope, advertisement)

    def require(self, present: int, what: str) -> None:
        """Raise Abandoned if fewer than t silos are present."""
        t = self._roster.threshold
        if present < t:
            raise Abandoned(
                f"{what}: {present} of {len(self._roster.signing_keys)} silos answered in time, {t} are needed",
                remedy="nothing was revealed; see why the others are silent, then run the study again",
            )

    def add_boxes(self, silo: str, boxes: Mapping[str, bytes]) -> None:
        """Set-up trip 2: the shares one silo dealt, encrypted to each peer."""
        if silo not in self._advertised or set(boxes) != set(self._advertised) - {silo}:
            raise ProtocolError(f"{silo} dealt shares to others than those who advertised keys")
        self._boxes[silo] = dict(boxes)

    def boxes_for(self, silo: str) -> dict[str, bytes]:
        """What the other participants dealt to `silo`."""
        return {sender: boxes[silo] for sender, boxes in self._boxes.items() if sender != silo}

    def open_round(self, number: int, dimension: int, task: str) -> None:
        """Begin to collect vectors of a round, which every silo's header must say is for `task`."""
        if number not in self.context.rounds or number in self._rounds:
            raise ProtocolError(f"round {number} is not in this batch, or was opened before")
        self._rounds[number] = _Round(dimension, task, np.zeros(dimension, np.uint32))

    def add_vector(self, number: int, silo: str, data: bytes, header: Envelope) -> None:
        """Round trip 1: one silo's masked vector (4-byte words) and its signed header."""
        current = self._rounds[number]
        if silo not in self._boxes or silo in current.uploads or current.closed:
            raise ProtocolError(f"round {number}: a vector of {silo} was not expected")
        header.check(UPLOAD, silo, self._roster.key(silo))
        said = header.payload
        expected = {
            "context": self.context.digest,
            "round": number,
            "silo": silo,
            "task": current.task,
            "participants": list(self.participants),
            "dimension": current.dimension,
            "vector": hashlib.sha256(data).hexdigest(),
        }
        if {k: said.get(k) for k in expected} != expected or len(data) != 4 * current.dimension:
            raise ProtocolError(f"round {number}: the vector of {silo} is not what its header says")
        current.total += masks.from_wire(data)
        current.uploads[silo] = header

    def survivors(self, number: int) -> tuple[str, ...]:
        """Whose vectors are in the sum; closes trip 1. Abandoned if fewer than t."""
        current = self._rounds[number]
        self.require(len(current.uploads), f"round {number}, vectors")
        current.closed = True
        return tuple(sorted(current.uploads))

    def add_answer(
        self,
        number: int,
        silo: str,
        statement: Envelope,
        seeds: Mapping[str, bytes],
        mask_keys: Mapping[str, bytes],
    ) -> None:
        """Round trip 2: one silo's shares."""
        current = self._rounds[number]
        survivors = sorted(current.uploads)
        dropped = sorted(set(self._boxes) - set(survivors))
        if silo not in current.uploads or silo in current.answers or not current.closed:
            raise ProtocolError(f"round {number}: an answer of {silo} was not expected")
        statement.check(ANSWER, silo, self._roster.key(silo))
        expected = {
            "context": self.context.digest,
            "round": number,
            "silo": silo,
            "survivors": survivors,
            "dropped": dropped,
            "shares": shares_digest(seeds, mask_keys),
        }
        if statement.payload != expected or sorted(seeds) != survivors or sorted(mask_keys) != dropped:
            raise ProtocolError(f"round {number}: {silo} answered something else than was asked")
        point = self._roster.point(silo)
        # All are read before any is kept: a silo that is refused leaves nothing behind.
        seed_shares = {owner: shares.from_bytes(value) for owner, value in seeds.items()}
        mask_shares = {owner: shares.from_bytes(value) for owner, value in mask_keys.items()}
        for store, read in ((current.seed_shares, seed_shares), (current.mask_shares, mask_shares)):
            for owner, element in read.items():
                store.setdefault(owner, {})[point] = element
        current.answers[silo] = statement

    def total(self, number: int) -> Integers:
        """The exact integer sum over the survivors, noise included (int64, shape (d,)).

        Raises:
            Abandoned: fewer than t answers. ProtocolError: shares that disagree or rebuild a wrong key.
        """
        current = self._rounds[number]
        self.require(len(current.answers), f"round {number}, answers")
        t = self._roster.threshold
        total = current.total.copy()
        for silo in sorted(current.uploads):
            seed = shares.combine(current.seed_shares[silo], t)
            if seed_commitment(seed) != self._advertised[silo][1].seeds[number]:
                raise ProtocolError(f"round {number}: the shares rebuild a wrong seed of {silo}")
            masks.apply(total, self_seed(seed, self.context, number, silo), subtract=True)
        for silo in sorted(set(self._boxes) - set(current.uploads)):
            secret = shares.combine(current.mask_shares[silo], t)
            if mask_public(secret) != self._advertised[silo][1].mask[number]:
                raise ProtocolError(f"round {number}: the shares rebuild a wrong mask key of {silo}")
            for peer in sorted(current.uploads):
                agreed = mask_agree(secret, self._advertised[peer][1].mask[number])
                seed_bytes = pair_seed(agreed, self.context, number, peer, silo)
                # The survivor added it if its name is the lesser: take away just that.
                masks.apply(total, seed_bytes, subtract=peer < silo)
        return unwrap(total)

    def transcript(self, number: int) -> dict[str, list[Envelope]]:
        """The signed headers and answers of a round, for the evidence."""
        current = self._rounds[number]
        return {
            "uploads": [current.uploads[s] for s in sorted(current.uploads)],
            "answers": [current.answers[s] for s in sorted(current.answers)],
        }

    # ── to go on in another process: what the server knows anyway, and no share or seed ──────────

    def set_up_state(self) -> Payload:
        """What set-up gathered, as JSON: signed public keys and sealed boxes."""
        boxes = {sender: {to: b64(box) for to, box in dealt.items()} for sender, dealt in self._boxes.items()}
        return {"keys": [envelope.to_json() for envelope in self.advertisements], "boxes": boxes}

    def restore_set_up(self, state: Payload) -> None:
        """Take what `set_up_state` gave of this batch; every signature is checked again."""
        for document in state["keys"]:
            envelope = Envelope.from_json(document)
            self.add_advertisement(str(envelope.payload["silo"]), envelope)
        for sender, dealt in state["boxes"].items():
            self.add_boxes(sender, {to: unb64(box) for to, box in dealt.items()})

    def round_state(self, number: int) -> tuple[Payload, bytes]:
        """A round whose first trip is closed: signed headers as JSON, and the masked total's bytes."""
        current = self._rounds[number]
        headers = [envelope.to_json() for _, envelope in sorted(current.uploads.items())]
        state = {"dimension": current.dimension, "task": current.task, "uploads": headers}
        return state, masks.to_wire(current.total)

    def restore_round(self, number: int, state: Payload, total: bytes) -> None:
        """Take what `round_state` gave; answers may be added at once."""
        self.open_round(number, state["dimension"], state["task"])
        current = self._rounds[number]
        for document in state["uploads"]:
            header = Envelope.from_json(document)
            silo = str(header.payload["silo"])
            header.check(UPLOAD, silo, self._roster.key(silo))
            current.uploads[silo] = header
        current.total += masks.from_wire(total)
        current.closed = True
