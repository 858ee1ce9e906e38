"""The silo's side of the secure sum.

States, each method one step, none twice but `answer`; `ready` and `confirm` on a sparse graph only::

    advertise ─▶ share ─▶ receive ─▶ [ready] ─▶ ( mask r ─▶ [confirm r] ─▶ answer r … ─▶ verify_sum r ) for every round r

Why the server learns one sum a round and nothing else, though it may lie and up to c silos help it
(Bonawitz et al. 2017, CCS, Theorem 6.5, without their consistency trip):

1. Masks of honest silos i, j cancel only in a sum that holds both vectors. To open the sum over a
   set U the server needs, of every honest member, the self-mask seed; of every honest non-member it
   must lack the vector or know the mask key. Each takes t shares.
2. A silo answers for one set U a round, with its shares of members' seeds and of non-members' mask keys.
   It does not send the shares themselves: it multiplies each by its Lagrange weight over the
   answering set Q ⊆ U, |Q| ≥ t, and adds blinds that cancel in the sum over Q; each pair's blinds come
   from a key of their own, bound to (round, participants, U, Q). So what silos say counts for nothing unless every
   honest silo of Q was told the same U and Q: answers for different sets can't be mixed.
3. Suppose secrets are opened for (U, Q) and for (U', Q'), U' ≠ U. Colluders are at most c of each, so t − c
   honest silos or more answered for either, and they are different ones: 2(t − c) ≤ n − c, that is
   t ≤ (n + c)/2. But t = ⌊(n + c)/2⌋ + 1. So only one U is ever opened, and of no silo both secrets.
4. Keys are signed by identities pinned in the treaty and bound to (treaty, study, run, batch), so the
   server can neither put itself between two silos nor replay; per-round keys open no other round.
5. Pair masks are bound to what is summed (task, model digest, dimension, modulus). Of silos that were told
   different things none cancels: the server can't give all but one a model with nothing left to learn
   (Pasquini, Francati and Ateniese 2022, CCS), nor read one mask in two moduli.
6. |U| ≥ t, and an honest silo of Q masks with every member: the sum holds t − c honest vectors or more,
   and as many shares of noise. Two honest members that left out each other's mask (each was told
   that the other dealt nothing) still mask with every honest silo of Q, so no part of U is opened alone.

On a sparse graph (Bell et al. 2020) each secret has few holders, so 3. does not count. There U is agreed
first: a silo signs one U a round, and answers for a U that ⌊(n + c)/2⌋ + 1 silos signed; by 3.'s count there
is only one such. And all agree on the participants, each in a signed statement once a batch: shares of a member's seed are
given only where that member stated the same. That this opens the sum over U and no part of it is `graph`'s argument.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from ...documents import Envelope, SigningKey
from ...errors import ProtocolError, VerificationError
from . import check, masks, shares
from .codec import Source
from .journal import Journal
from .keys import Advertisement, BatchKeys, Context, Roster, agree, mask_key
from .rings import Integers, Ring
from .seeds import pad, pad_key, pair_seed, self_seed, tag_of
from .statements import ANSWER, CONFIRM, READY, UPLOAD, confirmation, readiness, shares_digest, subject
from .topology import Topology, names_digest, peers, topology

_BOX_NONCE = bytes(12)  # every box has a key of its own (fresh share keys, context, direction)
_PART = 32  # bytes of a check key's part


@dataclass
class _Entered:
    """A round this silo has uploaded to."""

    ring: Ring
    dimension: int
    survivors: tuple[str, ...] = ()  # once it has answered


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
        self._shape: Topology | None = None
        self._peers: dict[str, Advertisement] = {}
        self._held: dict[str, dict[int, tuple[int, int]]] = {}  # silo -> round -> (mask share, seed share)
        self._check_key: bytes | None = None
        self._everyone: tuple[str, ...] = ()  # who takes part in the batch; on a sparse graph once stated
        self._entered: dict[int, _Entered] = {}
        self._ready: set[str] = set()  # on a sparse graph: silos known to mask with the same participants
        self._unseen: set[int] = set()  # rounds answered whose sum has not been shown to this silo

    def __repr__(self) -> str:
        return f"Silo({self.name!r}, …)"

    @property
    def participants(self) -> tuple[str, ...]:
        """Those whose shares this silo holds, its own among them, sorted: all who take part, if all are its neighbours."""
        return tuple(sorted(self._held))

    def advertise(self) -> Envelope:
        """Set-up, trip 1: this silo's signed public keys."""
        if self._advertisement is not None:
            raise ProtocolError("keys of this batch are advertised already")
        context = self.context
        self._journal.once(context.study, context.run, "set-up", context.batch)
        self._advertisement = self._keys.advertise(context, self.name).signed(self.name, self._identity)
        return self._advertisement

    def share(
        self, advertisements: Sequence[Envelope], digests: Mapping[str, str] | None = None
    ) -> dict[str, bytes]:
        """Set-up, trip 2: shares of this silo's secrets, encrypted to each peer (peer -> box).

        Args:
            advertisements: of this silo and its peers at least.
            digests: silo -> digest of its advertisement, of all who advertised, where there are more.

        Raises:
            VerificationError, ProtocolError: a key not signed by a silo of the treaty for this batch,
                a silo twice, a peer missing, this silo's own keys missing or altered, or fewer than t silos.
        """
        if self._advertisement is None or self._peers:
            raise ProtocolError("shares are dealt once, after the keys were advertised")
        found = self._verified(advertisements)
        told = {silo: envelope.digest for silo, envelope in found.items()}
        if digests is not None:
            strangers = set(digests) - set(self._roster.signing_keys)
            if strangers or any(digests.get(silo) != digest for silo, digest in told.items()):
                raise ProtocolError("key advertisements: their digests name other keys or other silos")
            told = dict(digests)
        if len(told) < self._roster.threshold:
            raise ProtocolError(
                f"set-up: {len(told)} silos, below this silo's threshold of {self._roster.threshold}"
            )
        shape = topology(told, self._roster, self.context)
        wanted = peers(shape, self.name)
        if missing := wanted - set(found):
            raise ProtocolError(f"key advertisements: those of {', '.join(sorted(missing)[:5])} are missing")
        self._peers = {
            silo: Advertisement.verify(envelope, self.context, silo, self._roster.key(silo))
            for silo, envelope in found.items()
            if silo in wanted
        }
        self._shape = shape
        dealt = self._deal(shape)
        self._held[self.name] = dealt.pop(self.name)
        return {silo: self._seal(silo, dealt.get(silo)) for silo in sorted(wanted)}

    def _verified(self, advertisements: Sequence[Envelope]) -> dict[str, Envelope]:
        found: dict[str, Envelope] = {}
        for envelope in advertisements:
            silo = envelope.payload.get("silo")
            if not isinstance(silo, str) or silo in found:
                raise ProtocolError(f"key advertisements: {silo!r} twice or unnamed")
            self._roster.key(silo)
            found[silo] = envelope
        own = found.get(self.name)
        if own is None or self._advertisement is None:
            raise ProtocolError("key advertisements: this silo's own keys are missing")
        if own.payload != self._advertisement.payload:
            raise ProtocolError("key advertisements: this silo's own keys were altered")
        return found

    def _deal(self, shape: Topology) -> dict[str, dict[int, tuple[int, int]]]:
        """Holder -> round -> the shares it gets."""
        points = {silo: self._roster.point(silo) for silo in sorted(shape.holders(self.name))}
        dealt: dict[str, dict[int, tuple[int, int]]] = {silo: {} for silo in points}
        for r in self.context.rounds:
            mask_shares = shares.split(self._keys.mask_secret(r), shape.threshold, list(points.values()))
            seed_shares = shares.split(self._keys.seed(r), shape.threshold, list(points.values()))
            for silo, x in points.items():
                dealt[silo][r] = (mask_shares[x], seed_shares[x])
        return dealt

    def receive(self, boxes: Mapping[str, bytes]) -> None:
        """Take what the others dealt to this silo; who dealt something is a participant.

        Raises:
            ProtocolError: an unknown sender, a box that doesn't open, or too few participants.
        """
        shape = self._shape
        if shape is None or len(self._held) > 1:
            raise ProtocolError("shares are received once, after this silo dealt its own")
        holders = shape.holders(self.name)
        held: dict[str, dict[int, tuple[int, int]]] = {}
        parts = {self.name: self._keys.check_part} if self.name in shape.dealers else {}
        for silo, box in boxes.items():
            if silo == self.name:
                continue
            part, values = self._open(silo, box, shares_too=silo in holders)
            if silo in holders:
                held[silo] = values
            if silo in shape.dealers:
                parts[silo] = part
        if len(held) + 1 < shape.threshold or not parts:
            raise ProtocolError(
                f"set-up: {len(held) + 1} silos, below this silo's threshold of {shape.threshold}"
            )
        self._held.update(held)
        if not shape.sparse:
            self._everyone, self._ready = self.participants, set(self._held)
        secret = b"".join(parts[silo] for silo in sorted(parts))
        self._check_key = masks.derive(secret, "check-key", self.context.digest, *sorted(parts))

    def ready(self, participants: Sequence[str]) -> Envelope:
        """Set-up, trip 3, on a sparse graph: state who takes part, and so whom this silo masks with.

        Args:
            participants: all silos that dealt shares, as the server says.

        Raises:
            ProtocolError: they are not those whose boxes came, or strangers, or too few.
            Refused: another statement was made in this batch.
        """
        shape, context = self._shape, self.context
        if shape is None or self._check_key is None or not shape.sparse:
            raise ProtocolError("there is nothing to state before the shares were received")
        named = set(participants)
        if len(named) != len(participants) or not named <= set(shape.names):
            raise ProtocolError("participants: a silo twice, or one that advertised no keys")
        if named & shape.holders(self.name) != set(self._held) or len(named) < self._roster.threshold:
            raise ProtocolError("participants: not those who dealt this silo their shares, or too few")
        statement = Envelope(READY, readiness(context, self.name, shape, participants))
        self._journal.once(context.study, context.run, "ready", context.batch, names_digest(participants))
        self._everyone = tuple(sorted(named))
        return statement.signed(self.name, self._identity)

    def take_ready(self, statements: Mapping[str, Envelope]) -> None:
        """Neighbours' statements of `ready`: shares of whose seeds this silo may give."""
        shape = self._shape
        if shape is None or not shape.sparse:
            raise ProtocolError("statements of participants belong to a sparse graph")
        for silo, envelope in statements.items():
            envelope.check(READY, silo, self._roster.key(silo))
            if envelope.payload != readiness(self.context, silo, shape, self._everyone):
                raise ProtocolError(f"{silo} masks with other participants than this silo")
            self._ready.add(silo)

    def mask(
        self, number: int, source: Source, ring: Ring, *, task: str, model: str = ""
    ) -> tuple[bytearray, Envelope]:
        """Round trip 1: a vector, noise already in it, under all masks, packed; and a signed header.

        The upload is written to the journal before it is returned: it may leave once.

        Args:
            model: digest of the model the vector was worked out from, for the header.

        Raises:
            ProtocolError: not set up, or a sum it helped to open has not been shown to it.
            InputError: a value that would wrap around. Refused: the round was entered before.
        """
        if number not in self.context.rounds or not self._everyone or not self._check_key or not self._shape:
            raise ProtocolError(f"round {number} is not set up")
        if self._unseen:
            raise ProtocolError(
                f"round {number}: the sum of round {min(self._unseen)} has not been shown to this silo"
            )
        context = self.context
        self._journal.require_new(context.study, context.run, "upload", number)
        for past in [r for r in self._entered if r < number]:
            self._forget(past)  # a round that was never opened, and will not be
        about = subject(task, source.size, ring, model)
        wall = masks.Masks(self._mask_seeds(number, about), ring)
        tag = tag_of(self._check_key, context, number)
        data = bytearray(ring.wire_bytes(source.size))
        for start, stop in masks.chunks(source.size):
            values = source.chunk(start, stop)
            words = ring.wrap(values)
            tag.update(values)
            wall.put_on(words)
            ring.pack_into(words, data, start)
        element = (tag.value + pad(self._check_key, context, number, self.name) + wall.check) % check.P
        header = Envelope(
            UPLOAD,
            {
                "context": context.digest,
                "round": number,
                "silo": self.name,
                "task": task,
                "topology": self._shape.digest,
                "participants": names_digest(self._everyone),
                "dimension": source.size,
                "bits": ring.bits,
                "model": model,
                "vector": hashlib.sha256(data).hexdigest(),
                "check": str(element),
            },
        ).signed(self.name, self._identity)
        self._journal.once(context.study, context.run, "upload", number, header.digest)
        self._entered[number] = _Entered(ring, source.size)
        return data, header

    def _mask_seeds(self, number: int, about: str) -> list[tuple[bytes, bool]]:
        seeds = [(self_seed(self._keys.seed(number), self.context, number, self.name), False)]
        private = mask_key(self._keys.mask_secret(number))
        for peer in self.participants:
            if peer != self.name:
                secret = agree(private, self._peers[peer].mask[number])
                seed = pair_seed(secret, self.context, number, self.name, peer, about)
                seeds.append((seed, self.name > peer))
        return seeds

    def confirm(self, number: int, survivors: Sequence[str]) -> Envelope:
        """Round trip 2 on a sparse graph: sign the one set whose sum this silo will help to open.

        Raises:
            ProtocolError: a set `answer` would refuse. Refused: a set was confirmed in this round before.
        """
        shape = self._checked(number, survivors)
        context = self.context
        statement = Envelope(CONFIRM, confirmation(context, number, self.name, shape, survivors))
        digest = names_digest(survivors)
        # The same said again is the same statement.
        if self._journal.done(context.study, context.run, "confirm", number) != digest:
            self._journal.once(context.study, context.run, "confirm", number, digest)
        return statement.signed(self.name, self._identity)

    def answer(
        self,
        number: int,
        survivors: Sequence[str],
        *,
        answering: Sequence[str] = (),
        confirmed: Mapping[str, Envelope] | None = None,
    ) -> tuple[Envelope, dict[str, bytes], dict[str, bytes]]:
        """The round's last trip: help to open the sum over `survivors`.

        It may be asked again with fewer `answering`, should one of them have fallen silent; never
        for other survivors.

        Args:
            answering: the survivors who are asked (not on a sparse graph).
            confirmed: on a sparse graph, the statements of the quorum that agreed on the survivors.

        Returns:
            A signed statement of what was answered, and two lots of 32 bytes for each silo: of seeds for
            survivors, of mask keys for the dropped. Never both of one silo.

        Raises:
            ProtocolError: fewer than t survivors or answering, a stranger, this silo missing, or it never uploaded.
            Refused: this round was answered for other survivors.
        """
        context = self.context
        shape = self._checked(number, survivors)
        chosen, named = set(survivors), names_digest(survivors)
        before = self._journal.done(context.study, context.run, "answer", number)
        if before not in (None, named):
            self._journal.require_new(context.study, context.run, "answer", number)
        if any(number not in held for held in self._held.values()):
            raise ProtocolError(f"round {number} is over: its secrets are gone")
        if shape.sparse:
            self._check_agreed(number, survivors, confirmed or {}, shape)
            blinds, weight = [0] * len(self._held), 1
        else:
            blinds, weight = self._blinds(number, survivors, answering), self._weight(answering)
        seeds: dict[str, bytes] = {}
        mask_keys: dict[str, bytes] = {}
        for silo, blind in zip(self.participants, blinds, strict=True):
            for_mask, for_seed = self._held[silo][number]
            share = for_seed if silo in chosen else for_mask
            given = shares.to_bytes((weight * share + blind) % shares.PRIME)
            (seeds if silo in chosen else mask_keys)[silo] = given
        statement = Envelope(
            ANSWER,
            {
                "context": context.digest,
                "round": number,
                "silo": self.name,
                "survivors": named,
                "answering": names_digest(answering),
                "shares": shares_digest(seeds, mask_keys),
            },
        ).signed(self.name, self._identity)
        if before is None:
            self._journal.once(context.study, context.run, "answer", number, named)
        self._entered[number].survivors = tuple(sorted(chosen))
        self._unseen.add(number)
        return statement, seeds, mask_keys

    def _weight(self, answering: Sequence[str]) -> int:
        points = [self._roster.point(silo) for silo in answering]
        return shares.weight(self._roster.point(self.name), points)

    def _blinds(self, number: int, survivors: Sequence[str], answering: Sequence[str]) -> list[int]:
        """One blind for each participant; those of all `answering` add up to zero."""
        asked, t = set(answering), self._roster.threshold
        if len(asked) != len(answering) or self.name not in asked or not asked <= set(survivors):
            raise ProtocolError(f"round {number}: who answers are survivors, each once, this silo among them")
        if len(asked) < t:
            raise ProtocolError(f"round {number}: {len(asked)} answer, below this silo's threshold of {t}")
        bound = (
            names_digest(self._everyone),
            names_digest(survivors),
            names_digest(answering),
        )
        blinds = [0] * len(self._held)
        for peer in sorted(asked - {self.name}):
            low, high = sorted((self.name, peer))
            secret = self._keys.share_secret(self._peers[peer].share_key)
            key = masks.derive(secret, "answer", self.context.digest, number, low, high, *bound)
            stream = masks.keystream(key, shares.SHARE_BYTES * len(blinds))
            for place in range(len(blinds)):
                at = place * shares.SHARE_BYTES
                element = int.from_bytes(stream[at : at + shares.SHARE_BYTES], "little")
                blinds[place] += element if self.name == low else -element
        return blinds

    def _checked(self, number: int, survivors: Sequence[str]) -> Topology:
        """The topology, if this silo may help to open the sum over `survivors`."""
        shape = self._shape
        if shape is None or number not in self._entered:  # an upload of another batch has other masks
            raise ProtocolError(f"round {number}: this silo uploaded nothing to be opened")
        chosen = set(survivors)
        if len(chosen) != len(survivors) or not chosen <= set(self._everyone):
            raise ProtocolError(f"round {number}: survivors are named twice or never took part")
        if self.name not in chosen:
            raise ProtocolError(f"round {number}: this silo uploaded and is not among the survivors")
        if len(chosen) < self._roster.threshold:
            raise ProtocolError(
                f"round {number}: {len(chosen)} silos, below this silo's threshold of {self._roster.threshold}"
            )
        if strangers := (chosen & set(self._held)) - self._ready - {self.name}:
            raise ProtocolError(f"round {number}: {min(strangers)} has not stated the same participants")
        shape.check(survivors)
        return shape

    def _check_agreed(
        self, number: int, survivors: Sequence[str], confirmed: Mapping[str, Envelope], shape: Topology
    ) -> None:
        confirmed_here = self._journal.done(self.context.study, self.context.run, "confirm", number)
        if confirmed_here != names_digest(survivors):
            raise ProtocolError(f"round {number}: this silo confirmed another set of survivors, or none")
        for silo, envelope in confirmed.items():
            envelope.check(CONFIRM, silo, self._roster.key(silo))
            if envelope.payload != confirmation(self.context, number, silo, shape, survivors):
                raise ProtocolError(f"round {number}: {silo} confirmed another set of survivors")
        if len(confirmed) < self._roster.threshold:
            raise ProtocolError(
                f"round {number}: {len(confirmed)} silos confirmed the survivors, {self._roster.threshold} must"
            )

    def verify_sum(self, number: int, survivors: Sequence[str], total: Integers, opened: int) -> None:
        """After a round: the sum shown is the sum of the survivors' vectors, by its check value.

        Args:
            total: shape (d,), signed. opened: the check value that was opened with it.

        Raises:
            ProtocolError: this silo was not in that round. VerificationError: the sum was altered, or
                is over other survivors than this silo answered for.
        """
        key = self._check_shown(number, survivors, total)
        tag = tag_of(key, self.context, number)
        for start, stop in masks.chunks(total.size):
            tag.update(total[start:stop])
        expected = tag.value + check.pads(pad_key(key, self.context, number, silo) for silo in survivors)
        if (expected - opened) % check.P:
            raise VerificationError(
                f"round {number}: the sum shown is not the sum of the silos' vectors; the server altered it,"
                " or it wrapped around"
            )
        self._close(number)

    def take_unchecked(self, number: int, survivors: Sequence[str], total: Integers) -> None:
        """After a round to whose sum the server had to add noise: taken on its word, no check value fits it.

        Raises:
            ProtocolError, VerificationError: as `verify_sum`, but for the numbers themselves.
        """
        self._check_shown(number, survivors, total)
        self._close(number)

    def _check_shown(self, number: int, survivors: Sequence[str], total: Integers) -> bytes:
        """A sum shown has the shape of one this silo was in, over those it answered for; the check key."""
        entered = self._entered.get(number)
        if entered is None or self._check_key is None:
            raise ProtocolError(f"round {number}: this silo was not in it, and can't check its sum")
        if entered.survivors and tuple(sorted(survivors)) != entered.survivors:
            raise VerificationError(
                f"round {number}: the sum shown is over other silos than this one answered for"
            )
        if len(set(survivors)) != len(survivors) or not set(survivors) <= set(self._everyone):
            # Twice the sum, over everybody twice, would have twice the check value.
            raise VerificationError(f"round {number}: the survivors shown are named twice or never took part")
        if total.shape != (entered.dimension,) or total.dtype.kind != "i":
            raise VerificationError(
                f"round {number}: the sum shown is {total.size} numbers of type {total.dtype},"
                f" not {entered.dimension} signed integers"
            )
        half = entered.ring.half
        if total.size and not -half <= int(total.min()) <= int(total.max()) < half:
            raise VerificationError(f"round {number}: the sum shown lies outside the modulus of the round")
        return self._check_key

    def _close(self, number: int) -> None:
        if number in self._unseen:
            self._unseen.discard(number)
            self._forget(number)

    def _forget(self, number: int) -> None:
        for held in self._held.values():
            held.pop(number, None)
        self._keys.forget(number)

    def _box_key(self, sender: str, receiver: str, peer: Advertisement) -> bytes:
        secret = self._keys.share_secret(peer.share_key)
        if self._shape is None:
            raise ProtocolError("boxes have keys once the neighbours are known")
        # On a complete graph the digest is the context's; on a sparse one it names the graph.
        return masks.derive(secret, "shares", self._shape.digest, sender, receiver)

    def _seal(self, peer: str, values: Mapping[int, tuple[int, int]] | None) -> bytes:
        plain = self._keys.check_part + b"".join(
            shares.to_bytes(m) + shares.to_bytes(b)
            for m, b in ((values[r] for r in self.context.rounds) if values is not None else ())
        )
        return AESGCM(self._box_key(self.name, peer, self._peers[peer])).encrypt(_BOX_NONCE, plain, None)

    def _open(self, peer: str, box: bytes, *, shares_too: bool) -> tuple[bytes, dict[int, tuple[int, int]]]:
        if peer not in self._peers:
            raise ProtocolError(f"shares from {peer}, who advertised no keys")
        try:
            plain = AESGCM(self._box_key(peer, self.name, self._peers[peer])).decrypt(_BOX_NONCE, box, None)
        except (InvalidTag, ValueError) as error:
            raise ProtocolError(f"shares from {peer}: the box does not open") from error
        width = 2 * shares.SHARE_BYTES
        rounds = self.context.rounds if shares_too else ()
        if len(plain) != _PART + width * len(rounds):
            raise ProtocolError(f"shares from {peer}: wrong number of rounds")
        values = {}
        for place, r in enumerate(rounds):
            part = plain[_PART + place * width : _PART + (place + 1) * width]
            values[r] = (shares.from_bytes(part[:32]), shares.from_bytes(part[32:]))
        return plain[:_PART], values
