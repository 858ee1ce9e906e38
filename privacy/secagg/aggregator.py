"""The server's side of the secure sum: collect, add up, unmask the sum.

The server is not trusted by anyone (see `client`); what it checks here protects the *result*: a silo
that sends nonsense stops the round with its name, instead of spoiling the sum in silence.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ...documents import Envelope, Payload, b64, unb64
from ...errors import Abandoned, ProtocolError
from . import check, masks, shares
from .keys import Advertisement, Context, Roster, agree, mask_key, mask_public, seed_commitment
from .rings import Integers, Ring, Words
from .seeds import pair_seed, self_seed
from .statements import ANSWER, CONFIRM, READY, UPLOAD, confirmation, readiness, shares_digest, subject
from .topology import Topology, names_digest, peers, topology


@dataclass(frozen=True)
class Opened:
    """A round's result: the exact integer sum, noise included (shape (d,)), and its opened check value."""

    total: Integers
    check: int


@dataclass
class _Round:
    dimension: int
    task: str
    ring: Ring
    total: Words
    check: int = 0
    model: str = ""
    uploads: dict[str, Envelope] = field(default_factory=dict)
    confirmed: dict[str, Envelope] = field(default_factory=dict)
    asked: tuple[str, ...] = ()
    answers: dict[str, Envelope] = field(default_factory=dict)
    given: dict[str, dict[int, int]] = field(
        default_factory=dict
    )  # owner -> point -> share, of either secret
    closed: bool = False


class Aggregator:
    """One batch of rounds at the server."""

    def __init__(self, roster: Roster, context: Context) -> None:
        self._roster = roster
        self.context = context
        self._advertised: dict[str, tuple[Envelope, Advertisement]] = {}
        self._shape: Topology | None = None
        self._boxes: dict[str, dict[str, bytes]] = {}
        self._ready: dict[str, Envelope] = {}
        self._rounds: dict[int, _Round] = {}

    @property
    def advertisements(self) -> list[Envelope]:
        """The keys collected, for set-up trip 2 and for the evidence."""
        return [envelope for _, (envelope, _) in sorted(self._advertised.items())]

    @property
    def participants(self) -> tuple[str, ...]:
        """The silos that dealt shares, sorted."""
        return tuple(sorted(self._boxes))

    @property
    def topology(self) -> Topology:
        """Who shares with whom. Closes set-up trip 1."""
        if self._shape is None:
            self._shape = topology(self.digests, self._roster, self.context)
        return self._shape

    @property
    def digests(self) -> dict[str, str]:
        """Silo -> digest of its advertisement."""
        return {silo: envelope.digest for silo, (envelope, _) in sorted(self._advertised.items())}

    def add_advertisement(self, silo: str, envelope: Envelope) -> None:
        """Set-up trip 1: one silo's keys."""
        if self._shape is not None:
            raise ProtocolError(f"keys of {silo} came after the others were dealt with")
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

    def keys_for(self, silo: str) -> list[Envelope]:
        """Set-up trip 2: the keys that `silo` needs, its own among them."""
        wanted = peers(self.topology, silo) | {silo}
        return [envelope for name, (envelope, _) in sorted(self._advertised.items()) if name in wanted]

    def add_boxes(self, silo: str, boxes: Mapping[str, bytes]) -> None:
        """Set-up trip 2: the shares one silo dealt, encrypted to each peer."""
        if silo not in self._advertised or set(boxes) != peers(self.topology, silo):
            raise ProtocolError(f"{silo} dealt shares to others than those it should")
        self._boxes[silo] = dict(boxes)

    def boxes_for(self, silo: str) -> dict[str, bytes]:
        """What the other participants dealt to `silo`."""
        return {sender: boxes[silo] for sender, boxes in self._boxes.items() if silo in boxes}

    def add_ready(self, silo: str, statement: Envelope) -> None:
        """Set-up trip 3 on a sparse graph: one silo's word on who takes part."""
        if silo not in self._boxes or not self.topology.sparse:
            raise ProtocolError(f"a statement of participants by {silo} was not expected")
        statement.check(READY, silo, self._roster.key(silo))
        if statement.payload != readiness(self.context, silo, self.topology, self.participants):
            raise ProtocolError(f"{silo} stated other participants")
        self._ready[silo] = statement

    def ready_for(self, silo: str) -> dict[str, Envelope]:
        """The statements that `silo` needs of its neighbours."""
        return {name: self._ready[name] for name in self._neighbours(silo) if name in self._ready}

    def _neighbours(self, silo: str) -> list[str]:
        """Participants that hold shares of this silo's secrets, itself among them, sorted."""
        return sorted(self.topology.holders(silo) & set(self._boxes))

    def open_round(self, number: int, dimension: int, task: str, ring: Ring, *, model: str = "") -> None:
        """Begin to collect vectors of a round, which every silo's header must say is for `task` and `model`."""
        if number not in self.context.rounds or number in self._rounds:
            raise ProtocolError(f"round {number} is not in this batch, or was opened before")
        self._rounds[number] = _Round(dimension, task, ring, ring.zeros(dimension), model=model)

    def add_vector(self, number: int, silo: str, data: bytes | bytearray, header: Envelope) -> None:
        """Round trip 1: one silo's masked vector, packed, and its signed header."""
        current = self._rounds[number]
        expected_of = self._ready if self.topology.sparse else self._boxes
        if silo not in expected_of or silo in current.uploads or current.closed:
            raise ProtocolError(f"round {number}: a vector of {silo} was not expected")
        header.check(UPLOAD, silo, self._roster.key(silo))
        said = header.payload
        expected = {
            "context": self.context.digest,
            "round": number,
            "silo": silo,
            "task": current.task,
            "topology": self.topology.digest,
            "participants": names_digest(self._boxes),
            "dimension": current.dimension,
            "bits": current.ring.bits,
            "model": current.model,
            "vector": hashlib.sha256(data).hexdigest(),
        }
        if {k: said.get(k) for k in said if k != "check"} != expected:
            raise ProtocolError(f"round {number}: the vector of {silo} is not what its header says")
        element = _element(said.get("check"), f"round {number}: the check value of {silo}")
        words = current.ring.unpack(data, current.dimension)
        current.total += words
        current.check = (current.check + element) % check.P
        current.uploads[silo] = header

    def survivors(self, number: int) -> tuple[str, ...]:
        """Whose vectors are in the sum; closes trip 1. Abandoned if they are too few to be opened."""
        current = self._rounds[number]
        self.require(len(current.uploads), f"round {number}, vectors")
        try:
            self.topology.check(current.uploads)
        except ProtocolError as error:
            raise Abandoned(error.message, remedy="nothing was revealed; run the study again") from error
        current.closed = True
        return tuple(sorted(current.uploads))

    def add_confirmation(self, number: int, silo: str, statement: Envelope) -> None:
        """Round trip 2 on a sparse graph: one silo's word on who survived."""
        current = self._rounds[number]
        if silo not in current.uploads or not current.closed:
            raise ProtocolError(f"round {number}: a confirmation of {silo} was not expected")
        statement.check(CONFIRM, silo, self._roster.key(silo))
        survivors = sorted(current.uploads)
        if statement.payload != confirmation(self.context, number, silo, self.topology, survivors):
            raise ProtocolError(f"round {number}: {silo} confirmed something else than was asked")
        current.confirmed[silo] = statement

    def confirmed(self, number: int) -> dict[str, Envelope]:
        """A quorum of confirmations, to show to everybody. Abandoned if there is none."""
        found = self._rounds[number].confirmed
        self.require(len(found), f"round {number}, confirmations")
        return {silo: found[silo] for silo in sorted(found)[: self._roster.threshold]}

    def ask(self, number: int) -> tuple[str, ...]:
        """Begin the last trip: whom to ask. First all survivors; again, those who answered the last time.

        Raises:
            Abandoned: fewer than t of them.
        """
        current = self._rounds[number]
        current.asked = tuple(sorted(current.answers if current.asked else current.uploads))
        self.require(len(current.asked), f"round {number}, answers")
        current.answers, current.given = {}, {}
        return current.asked

    def answered(self, number: int) -> bool:
        """Whether all who were asked have answered: without one of them the others' answers say nothing.

        On a sparse graph shares are given as they are, and as many as there are will do if they suffice.
        """
        current = self._rounds[number]
        return self.topology.sparse or set(current.answers) == set(current.asked)

    def add_answer(
        self,
        number: int,
        silo: str,
        statement: Envelope,
        seeds: Mapping[str, bytes],
        mask_keys: Mapping[str, bytes],
    ) -> None:
        """The round's last trip: one silo's shares."""
        current = self._rounds[number]
        if silo not in current.asked or silo in current.answers:
            raise ProtocolError(f"round {number}: an answer of {silo} was not expected")
        neighbours = self._neighbours(silo)
        kept = [s for s in neighbours if s in current.uploads]
        dropped = [s for s in neighbours if s not in current.uploads]
        statement.check(ANSWER, silo, self._roster.key(silo))
        expected = {
            "context": self.context.digest,
            "round": number,
            "silo": silo,
            "survivors": names_digest(current.uploads),
            "answering": names_digest(() if self.topology.sparse else current.asked),
            "shares": shares_digest(seeds, mask_keys),
        }
        if statement.payload != expected or sorted(seeds) != kept or sorted(mask_keys) != dropped:
            raise ProtocolError(f"round {number}: {silo} answered something else than was asked")
        point = self._roster.point(silo)
        # All are read before any is kept: a silo that is refused leaves nothing behind.
        read = {owner: shares.from_bytes(value) for owner, value in {**seeds, **mask_keys}.items()}
        for owner, element in read.items():
            current.given.setdefault(owner, {})[point] = element
        current.answers[silo] = statement

    def total(self, number: int) -> Opened:
        """The exact integer sum over the survivors, noise included, and the check value behind it.

        Raises:
            Abandoned: too few answers. ProtocolError: shares that rebuild a wrong key.
        """
        current = self._rounds[number]
        self.require(len(current.answers), f"round {number}, answers")
        if not self.answered(number):
            raise ProtocolError(f"round {number}: not all who were asked have answered")
        on = masks.Masks(self._masks_in(number, current), current.ring)
        words = current.total.copy()
        for start, stop in masks.chunks(words.size):
            on.put_on(words[start:stop])
        return Opened(current.ring.unwrap(words), (current.check + on.check) % check.P)

    def _masks_in(self, number: int, current: _Round) -> list[tuple[bytes, bool]]:
        """The masks that do not cancel in the sum of the uploads, with the signs that take them away."""
        secrets = self._secrets(number, current)
        about = subject(current.task, current.dimension, current.ring, current.model)
        found: list[tuple[bytes, bool]] = []
        for silo in sorted(current.uploads):
            seed = secrets(silo)
            if seed_commitment(seed) != self._advertised[silo][1].seeds[number]:
                raise ProtocolError(f"round {number}: the shares rebuild a wrong seed of {silo}")
            found.append((self_seed(seed, self.context, number, silo), True))
        for silo in sorted(set(self._boxes) - set(current.uploads)):
            partners = [s for s in self._neighbours(silo) if s in current.uploads]
            if not partners:
                continue  # nobody's vector holds a mask of this silo
            secret = secrets(silo)
            if mask_public(secret) != self._advertised[silo][1].mask[number]:
                raise ProtocolError(f"round {number}: the shares rebuild a wrong mask key of {silo}")
            private = mask_key(secret)
            for peer in partners:
                agreed = agree(private, self._advertised[peer][1].mask[number])
                # The survivor added it if its name is the lesser: take away just that.
                seed_of_both = pair_seed(agreed, self.context, number, peer, silo, about)
                found.append((seed_of_both, peer < silo))
        return found

    def _secrets(self, number: int, current: _Round) -> Callable[[str], int]:
        """What rebuilds a silo's secret of the round from what the others gave."""
        if not self.topology.sparse:  # weighted and blinded: they need only be added up
            return lambda owner: sum(current.given[owner].values()) % shares.PRIME
        t = self.topology.threshold
        combiners: dict[frozenset[int], shares.Combiner] = {}

        def rebuild(owner: str) -> int:
            held = current.given.get(owner, {})
            if len(held) < t:
                raise Abandoned(
                    f"round {number}: {len(held)} shares of {owner}'s secret, {t} are needed",
                    remedy="nothing was revealed; run the study again",
                )
            points = frozenset(held)
            if points not in combiners:
                combiners[points] = shares.Combiner(points, t)
            return combiners[points].combine(held)

        return rebuild

    def transcript(self, number: int) -> dict[str, list[Envelope]]:
        """The signed headers, confirmations and answers of a round, for the evidence."""
        current = self._rounds[number]
        return {
            "uploads": [current.uploads[s] for s in sorted(current.uploads)],
            "confirmations": [current.confirmed[s] for s in sorted(current.confirmed)],
            "answers": [current.answers[s] for s in sorted(current.answers)],
        }

    # ── to go on in another process: what the server knows anyway, and no share or seed ──────────

    def set_up_state(self) -> Payload:
        """What set-up gathered, as JSON: signed public keys and sealed boxes."""
        boxes = {sender: {to: b64(box) for to, box in dealt.items()} for sender, dealt in self._boxes.items()}
        ready = {silo: envelope.to_json() for silo, envelope in sorted(self._ready.items())}
        return {"keys": [e.to_json() for e in self.advertisements], "boxes": boxes, "ready": ready}

    def restore_set_up(self, state: Payload) -> None:
        """Take what `set_up_state` gave of this batch; every signature is checked again."""
        for document in state["keys"]:
            envelope = Envelope.from_json(document)
            self.add_advertisement(str(envelope.payload["silo"]), envelope)
        for sender, dealt in state["boxes"].items():
            self.add_boxes(sender, {to: unb64(box) for to, box in dealt.items()})
        for silo, statement in state["ready"].items():
            self.add_ready(silo, Envelope.from_json(statement))

    def round_state(self, number: int) -> tuple[Payload, bytes]:
        """A round whose first trip is closed: signed headers as JSON, and the masked total's bytes."""
        current = self._rounds[number]
        headers = [envelope.to_json() for _, envelope in sorted(current.uploads.items())]
        state = {
            "dimension": current.dimension,
            "task": current.task,
            "bits": current.ring.bits,
            "model": current.model,
            "check": str(current.check),
            "uploads": headers,
        }
        return state, current.ring.pack(current.total)

    def restore_round(self, number: int, state: Payload, total: bytes) -> None:
        """Take what `round_state` gave; the survivors stand, and may be asked at once."""
        ring, dimension = Ring(state["bits"]), state["dimension"]
        self.open_round(number, dimension, state["task"], ring, model=state["model"])
        current = self._rounds[number]
        for document in state["uploads"]:
            header = Envelope.from_json(document)
            silo = str(header.payload["silo"])
            header.check(UPLOAD, silo, self._roster.key(silo))
            current.uploads[silo] = header
        current.total += ring.unpack(total, dimension)
        current.check = int(state["check"])
        current.closed = True


def _element(value: object, what: str) -> int:
    """An element of Z_p as silos write it: decimal digits."""
    if not isinstance(value, str) or not value.isascii() or not value.isdecimal() or len(value) > 19:
        raise ProtocolError(f"{what} is not a number")
    element = int(value)
    if element >= check.P:
        raise ProtocolError(f"{what} is not below 2^61 − 1")
    return element
