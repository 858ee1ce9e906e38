"""A server that forwards anything to anybody, in any order, again and again, with one silo's help.

Hypothesis plays the server. Whatever it does: no silo uploads twice in a round or answers for two sets, also after
restarts and in new batches; of a round one sum is opened at most, over t silos or more; and a total that a silo
accepts is the exact sum.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from support.sums import RING, Cast

from foedus.documents import Envelope
from foedus.errors import FoedusError, ProtocolError, VerificationError
from foedus.privacy.secagg import check, masks, shares
from foedus.privacy.secagg.aggregator import Opened
from foedus.privacy.secagg.client import Silo
from foedus.privacy.secagg.codec import Whole
from foedus.privacy.secagg.keys import Advertisement, mask_agree, mask_public, seed_commitment
from foedus.privacy.secagg.rings import Integers
from foedus.privacy.secagg.seeds import pair_seed, self_seed
from foedus.privacy.secagg.statements import subject

NAMES = ("s1", "s2", "s3", "s4")
HELPER = "s4"
T, D = 3, 3
ROUNDS = (1, 2, 3, 4)
SETS = [names for size in (1, 2, 3, 4) for names in itertools.combinations(NAMES, size)]
LIKELY = [names for names in SETS if len(names) >= T]

silos = st.sampled_from(NAMES)
rounds = st.sampled_from(ROUNDS)
sets = st.one_of(st.just(NAMES), st.just(NAMES), st.sampled_from(LIKELY), st.sampled_from(SETS))
which = st.sampled_from([-1, -1, -1, 0])  # the newest batch mostly; else the first
lost = st.just([]) | st.lists(st.tuples(silos, silos), max_size=2)
SEEN: Counter[str] = Counter()


@dataclass
class Sent:
    """An upload, and the vector in it."""

    data: bytes
    header: Envelope
    vector: Integers


@dataclass
class Answer:
    participants: tuple[str, ...]
    given: dict[str, int]


@dataclass
class Batch:
    """All that the server collected in one batch."""

    number: int
    silos: dict[str, Silo]
    advertised: dict[str, Envelope] = field(default_factory=dict)
    boxes: dict[str, dict[str, bytes]] = field(default_factory=dict)
    sent: dict[tuple[int, str], Sent] = field(default_factory=dict)
    answers: dict[tuple[int, tuple[str, ...], tuple[str, ...]], dict[str, Answer]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    opened: dict[int, tuple[tuple[str, ...], Opened, Integers]] = field(default_factory=dict)


class Server(RuleBasedStateMachine):
    @initialize(withheld=lost)
    def begin(self, withheld: list[tuple[str, str]]) -> None:
        self.cast = Cast(len(NAMES), 1, ROUNDS)
        self.uploads: Counter[tuple[int, str]] = Counter()
        self.answered: dict[tuple[int, str], tuple[str, ...]] = {}
        self.sums: dict[int, tuple[str, ...]] = {}
        self.batches: list[Batch] = []
        self.draws = itertools.count(1)
        self.new_batch(withheld, False)

    def silo(self, name: str, batch: int) -> Silo:
        return self.cast.silo(name, batch=batch)

    # ── set-up ──

    @rule(withheld=lost, short=st.booleans())
    def new_batch(self, withheld: list[tuple[str, str]], short: bool) -> None:
        """Set up again, over the same journals; some boxes reach nobody, some keys not everybody."""
        if len(self.batches) == 3:
            return
        number = len(self.batches)
        batch = Batch(number, {name: self.silo(name, number) for name in NAMES})
        self.batches.append(batch)
        for name in NAMES:
            batch.advertised[name] = batch.silos[name].advertise()
        for name in NAMES:
            shown = [e for n, e in batch.advertised.items() if not (short and (n, name) in withheld)]
            self.deal(batch, name, shown)
        for name in NAMES:
            self.deliver(batch, name, {s for s, r in withheld if r == name} - {name})

    def deal(self, batch: Batch, name: str, shown: list[Envelope]) -> None:
        try:
            batch.boxes[name] = batch.silos[name].share(shown)
        except FoedusError:
            SEEN["refused to deal"] += 1

    def deliver(self, batch: Batch, name: str, without: set[str]) -> None:
        boxes = {s: b[name] for s, b in batch.boxes.items() if name in b and s not in without}
        try:
            batch.silos[name].receive(boxes)
        except FoedusError:
            SEEN["refused to receive"] += 1

    @rule(batch=which, name=silos, other=silos)
    def replay_of_set_up(self, batch: int, name: str, other: str) -> None:
        """Every trip of set-up a second time, and with another batch's messages: always refused."""
        current, foreign = self.batches[batch], self.batches[0]
        silo = current.silos[name]
        known = dict(silo._held)
        with pytest.raises(FoedusError):
            silo.advertise()
        with pytest.raises(FoedusError):
            silo.share(list(foreign.advertised.values()))
        mixed = {s: b[other] for s, b in foreign.boxes.items() if other in b}
        if len(known) > 1 or foreign is not current or other != name:
            with pytest.raises(FoedusError):
                silo.receive(mixed)
        assert silo._held.keys() == known.keys()
        SEEN["replay"] += 1

    @rule(batch=which, name=silos, do=st.sampled_from([True, False, False, False]))
    def restart(self, batch: int, name: str, do: bool) -> None:
        if do and name != HELPER:
            current = self.batches[batch]
            current.silos[name] = self.silo(name, current.number)
            SEEN["restart"] += 1

    # ── rounds ──

    @rule(batch=which, number=rounds, names=sets)
    def ask_for_vectors(self, batch: int, number: int, names: tuple[str, ...]) -> None:
        current = self.batches[batch]
        for name in names:
            draw = next(self.draws)
            vector = np.array([draw, -draw * draw, 7**4 + draw])
            try:
                data, header = current.silos[name].mask(number, Whole(vector, 2**28), RING, task="train")
            except FoedusError:
                continue
            self.uploads[number, name] += 1
            SEEN["uploads"] += 1
            assert self.uploads[number, name] == 1
            current.sent[number, name] = Sent(data, header, vector)

    @rule(
        batch=which,
        number=rounds,
        up=sets,
        survivors=st.none() | sets,
        answering=st.none() | sets,
        lie=st.tuples(silos, st.sampled_from([0, 1, -(2**20)]), st.none() | sets),
        shown=st.booleans(),
    )
    def play(
        self,
        batch: int,
        number: int,
        up: tuple[str, ...],
        survivors: tuple[str, ...] | None,
        answering: tuple[str, ...] | None,
        lie: tuple[str, int, tuple[str, ...] | None],
        shown: bool,
    ) -> None:
        """A round in one go, more or less as it should be."""
        self.ask_for_vectors(batch, number, up)
        self.ask_all(batch, number, survivors or up, answering)
        name, change, claimed = lie
        self.show(batch, number, name, change, claimed)
        if shown:
            self.show_all(batch, number)

    @rule(batch=which, number=rounds)
    def show_all(self, batch: int, number: int) -> None:
        for name in NAMES:
            self.show(batch, number, name, 0, None)

    @rule(batch=which, number=rounds, survivors=sets, answering=st.none() | sets)
    def ask_all(
        self, batch: int, number: int, survivors: tuple[str, ...], answering: tuple[str, ...] | None
    ) -> None:
        """The same question to all whom it concerns, as an honest server would ask."""
        asked = tuple(n for n in (answering or survivors) if n in survivors)
        for name in asked:
            self.ask(batch, number, name, survivors, asked)

    @rule(
        batch=which,
        number=rounds,
        stories=st.lists(st.tuples(silos, sets, sets), min_size=1, max_size=4),
    )
    def ask_each(
        self, batch: int, number: int, stories: list[tuple[str, tuple[str, ...], tuple[str, ...]]]
    ) -> None:
        """Another story to each."""
        for name, survivors, answering in stories:
            self.ask(batch, number, name, survivors, answering)

    def ask(self, batch: int, number: int, name: str, U: tuple[str, ...], Q: tuple[str, ...]) -> None:
        current = self.batches[batch]
        silo = current.silos[name]
        try:
            _, seeds, keys = silo.answer(number, U, answering=Q)
        except FoedusError:
            SEEN["refused to answer"] += 1
            return
        assert self.answered.setdefault((number, name), U) == U  # never for another set, in any batch
        assert (number, name) in current.sent and name in Q and set(Q) <= set(U) and len(Q) >= T
        assert not set(seeds) & set(keys) and set(seeds) == set(silo._held) & set(U)
        given = {owner: shares.from_bytes(value) for owner, value in {**seeds, **keys}.items()}
        current.answers[number, U, Q][name] = Answer(silo.participants, given)
        self.try_to_open(current, number, U, Q)

    # ── opening ──

    def try_to_open(self, batch: Batch, number: int, U: tuple[str, ...], Q: tuple[str, ...]) -> None:
        """All that came for one question, with what the helper can work out for any; checked by public values."""
        answers = dict(batch.answers[number, U, Q])
        participants = next(iter(answers.values())).participants
        helper = batch.silos[HELPER]
        if HELPER in Q and HELPER not in answers and helper.participants == participants:
            answers[HELPER] = self.helpers(helper, number, U, Q)
        if any(name not in answers or not set(participants) <= set(answers[name].given) for name in Q):
            return
        context = batch.silos[HELPER].context
        keys = {
            name: Advertisement.verify(batch.advertised[name], context, name, self.cast.roster.key(name))
            for name in participants
        }
        found = {o: sum(a.given[o] for a in answers.values()) % shares.PRIME for o in participants}
        for owner, secret in found.items():
            right = (
                seed_commitment(secret) == keys[owner].seeds[number]
                if owner in U
                else mask_public(secret) == keys[owner].mask[number]
            )
            if not right:
                SEEN["answers that rebuild nothing"] += 1
                assert len({answers[n].participants for n in Q}) > 1  # all else fits: they were told alike
                return
        if any((number, name) not in batch.sent for name in U):
            SEEN["secrets of a set that did not upload"] += 1
            return
        self.unmask(batch, number, U, found, keys)

    def helpers(self, helper: Silo, number: int, U: tuple[str, ...], Q: tuple[str, ...]) -> Answer:
        if any(number not in held for held in helper._held.values()):
            return Answer((), {})
        weight, given = helper._weight(Q), {}
        for owner, blind in zip(helper.participants, helper._blinds(number, U, Q), strict=True):
            share = helper._held[owner][number][1 if owner in U else 0]
            given[owner] = (weight * share + blind) % shares.PRIME
        return Answer(helper.participants, given)

    def unmask(
        self,
        batch: Batch,
        number: int,
        U: tuple[str, ...],
        found: dict[str, int],
        keys: dict[str, Advertisement],
    ) -> None:
        context = batch.silos[HELPER].context
        words, element = RING.zeros(D), 0
        seeds = [(self_seed(found[name], context, number, name), True) for name in U]
        for name in U:
            sent = batch.sent[number, name]
            words += RING.unpack(sent.data, D)
            element += int(sent.header.payload["check"])
            for other in set(found) - set(U):
                agreed = mask_agree(found[other], keys[name].mask[number])
                about = subject("train", D, RING, "")
                seeds.append((pair_seed(agreed, context, number, name, other, about), name < other))
        on = masks.Masks(seeds, RING)
        on.put_on(words)
        opened = Opened(RING.unwrap(words), (element + on.check) % check.P)
        exact = sum((batch.sent[number, name].vector for name in U), np.zeros(D, np.int64))
        alike = len({batch.silos[n].participants for n in U if len(batch.silos[n]._held) > 1}) == 1
        if opened.total.tolist() == exact.tolist():
            assert len(U) >= T and len(set(U) - {HELPER}) >= T - 1
            assert self.sums.setdefault(number, U) == U  # one sum a round, over all batches
            batch.opened[number] = (U, opened, exact)
            SEEN["opened"] += 1
        else:
            assert not alike  # a member left out a mask that the others put on: nothing comes out
            self.refused_by_all(batch, number, U, opened)
            SEEN["garbage"] += 1

    def refused_by_all(self, batch: Batch, number: int, U: tuple[str, ...], opened: Opened) -> None:
        for name in U:
            with pytest.raises((VerificationError, ProtocolError)):
                batch.silos[name].verify_sum(number, U, opened.total, opened.check)

    @rule(
        batch=which,
        number=rounds,
        name=silos,
        change=st.sampled_from([0, 0, 0, 1, -5, 2**20]),
        claimed=st.none() | sets,
    )
    def show(self, batch: int, number: int, name: str, change: int, claimed: tuple[str, ...] | None) -> None:
        if number not in self.batches[batch].opened:
            return
        current = self.batches[batch]
        survivors, opened, exact = current.opened[number]
        total = opened.total.copy()
        total[1] += change
        said = claimed or survivors
        try:
            current.silos[name].verify_sum(number, said, total, opened.check)
        except (VerificationError, ProtocolError):
            entered = current.silos[name]._entered.get(number)
            same_key = current.silos[name]._check_key == current.silos[survivors[0]]._check_key
            told_so = entered is not None and entered.survivors in ((), survivors)
            assert (
                change or said != survivors or not same_key or not told_so
            )  # the truth is refused for a reason
            SEEN["refused a sum"] += 1
            return
        assert total.tolist() == exact.tolist() and set(said) == set(survivors)
        SEEN["accepted"] += 1


def test_whatever_the_server_does() -> None:
    SEEN.clear()
    run_state_machine_as_test(
        Server,
        settings=settings(
            max_examples=80,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
        ),
    )
    # It did happen: sums were opened and taken, lies refused, replays and restarts tried.
    for event in ("opened", "accepted", "refused a sum", "refused to answer", "restart", "replay"):
        assert SEEN[event] >= 1, (event, SEEN)
