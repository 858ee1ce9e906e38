"""Checks 1 and 4–7: a malicious server, with up to c silos that hand it all their secrets, against the secure sum.

Four silos ``s1`` … ``s4``, c = 1 colluder (``s1``), threshold 3; the victim is ``s4``. Whether an attack
succeeds is measured by `crypt.Spy`: how many of the victim's 2,000 numbers does it get?
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from redteam.checks import Check, Outcome, tally
from redteam.crypt import ALL, HELPED, SERVER, TARGET, Amnesiac, Low, ShortKeys, Stage, code_of, draw
from redteam.node_support import TRAIN, VICTIM, node, other_weights, play, same, uploads, word
from redteam.spy import D, Reading, Spy, compare
from support.goodness import uniform_bytes_p
from support.sums import RING, vectors

from foedus.clients.home import Home
from foedus.compliance.treaty import sign_all
from foedus.documents import Envelope, SigningKey, b64
from foedus.errors import FoedusError
from foedus.federation import messages as m
from foedus.privacy.secagg.keys import KIND, BatchKeys, Roster

# ── 1: the entropy of masks ──────────────────────────────────────────────────────────────────────


def _search(keys: type[BatchKeys]) -> tuple[int, Reading]:
    """Try 2^16 seeds and mask keys against what every node publishes about its own."""
    stage = Stage(keys=keys)
    stage.set_up()
    made = vectors(ALL, D)
    spy = stage.spy()
    for name in ALL:
        stage.send(spy, 1, name, made[name])
    found = spy.search(1, range(2**16), range(0, 2**16, 8))  # X25519 drops the three lowest bits
    found += spy.search(1, (), (s for a in (1, 2, 4) for s in range(a, 2**10, 8)))
    return found, spy.read(1, TARGET, made[TARGET])


def _twins(low: Any) -> int:
    """Secrets drawn twice. In a space of 2^32 some are sure to be, among so many."""
    return int(low.size - np.unique(low).size)


def entropy() -> Outcome:
    count = 2**19
    found, reading = _search(BatchKeys)
    low, sample = draw(BatchKeys, count)
    expected = count**2 / 2**33
    p = uniform_bytes_p(sample)
    weak_found, weak = _search(ShortKeys)
    rng = np.random.default_rng(1)
    weak_twins = _twins(rng.integers(0, 2**32, count, np.uint64))
    return Outcome(
        found == 0 and not reading.broken and _twins(low) == 0 and p > 1e-6,
        f"2^16 candidates against the published commitments and keys: {found} hits, {reading}. Birthdays: "
        f"{_twins(low)} equal among 2^19 seeds and mask keys as nodes make them (a 2^32 space gives ~{expected:.0f}, "
        f"2^28 ~{16 * expected:.0f}); bytes uniform, p = {p:.2f}",
        weak_found > 0 and weak.exact == D and weak_twins > expected / 2,
        f"16-bit seeds: {weak_found} hits, {weak}; 32-bit seeds: {weak_twins} birthdays",
    )


# ── 4: a public key of the server's ──────────────────────────────────────────────────────────────


def _in_the_middle(*, pinned: bool) -> tuple[str, Reading | None]:
    """The server plays the victim's three peers itself, with keys of its own."""
    stage = Stage()
    keys = {name: SigningKey.generate() for name in ALL[:3]}
    fakes = Roster({**stage.roster.signing_keys, **{n: k.public for n, k in keys.items()}}, 1)
    stage.keys |= keys
    if not pinned:  # the victim takes peers' identities from the server instead of from its treaty
        stage.roster = fakes
        stage.silos[TARGET] = stage.silo(TARGET)
    victim = stage.silos[TARGET]
    stage.roster = fakes
    puppets = {name: stage.silo(name) for name in ALL[:3]}
    envelopes = [*(p.advertise() for p in puppets.values()), victim.advertise()]
    try:
        dealt = victim.share(envelopes)
        boxes = {name: puppet.share(envelopes) for name, puppet in puppets.items()}
        victim.receive({name: boxes[name][TARGET] for name in puppets})
        for name, puppet in puppets.items():
            others = {p: boxes[p][name] for p in puppets if p != name}
            puppet.receive({**others, TARGET: dealt[name]})
    except FoedusError as error:
        return code_of(error), None
    spy = Spy(fakes, stage.context)
    spy.hear_keys(envelopes, ALL)
    for puppet in puppets.values():
        spy.turn(puppet)
    truth = vectors(ALL, D)[TARGET]
    stage.send(spy, 1, TARGET, truth)
    return "", spy.read(1, TARGET, truth)


def substituted_key() -> Outcome:
    code, reading = _in_the_middle(pinned=True)
    seen: dict[str, str] = {}
    with play() as rehearsal:
        for silo in rehearsal.silos:
            reply, _ = m.KeysReply.read(rehearsal.ask(silo, rehearsal.keys_request(silo)).message)
            rehearsal.aggregator.add_advertisement(silo, Envelope.from_json(reply.keys))
        good = {str(e.payload["silo"]): e for e in rehearsal.aggregator.advertisements}
        mallory, helper = SigningKey.generate(), Home.load(rehearsal.world.homes["birch-records"]).identity()
        peer = good["cedar-sound"]
        forged = {**peer.payload, "share_key": b64(b"k" * 32)}
        fakes = {
            "unsigned": Envelope(KIND, forged),
            "under the old signature": Envelope(KIND, forged, peer.signatures),
            "signed by the server": Envelope(KIND, forged).signed("cedar-sound", mallory),
            "signed by a colluder": Envelope(KIND, forged).signed("cedar-sound", helper),
            "a colluder's under another name": Envelope(
                KIND, {**good["birch-records"].payload, "silo": "cedar-sound"}
            ).signed("cedar-sound", helper),
            "the victim's own": Envelope(KIND, good[VICTIM].payload, peer.signatures),
        }
        for what, fake in fakes.items():
            keys = [e.to_json() for n, e in good.items() if n != "cedar-sound"] + [fake.to_json()]
            said = rehearsal.ask(VICTIM, rehearsal.shares_request(keys))
            seen[what] = word(said)
        own = Envelope(KIND, {**good[VICTIM].payload, "share_key": b64(b"k" * 32)}, good[VICTIM].signatures)
        keys = [e.to_json() for n, e in good.items() if n != VICTIM] + [own.to_json()]
        seen["its own keys altered"] = word(rehearsal.ask(VICTIM, rehearsal.shares_request(keys)))
        honest = word(rehearsal.ask(VICTIM, rehearsal.shares_request()))
    weak_code, weak = _in_the_middle(pinned=False)
    refused = all(code in ("VERIFICATION", "PROTOCOL") for code in seen.values())
    return Outcome(
        code == "VerificationError" and reading is None and refused and honest == "(answered)",
        f"keys of the server's for all three peers: {code}, no share dealt; {len(seen)} substitutions at the real "
        f"node: {tally(seen)}; then with the honest keys: {honest}",
        weak is not None and weak.exact == D,
        f"a silo that takes its peers' identities from the server: {weak or weak_code}",
    )


# ── 5: a lower threshold ─────────────────────────────────────────────────────────────────────────


def _two_suffice(roster: type[Roster]) -> tuple[dict[str, str], Reading]:
    """Only the victim and the colluder are said to have survived; two shares of everything are had."""
    stage = Stage(roster=roster)
    stage.set_up()
    made = vectors(ALL, D)
    spy = stage.spy(["s1"], made)
    for name in ALL:
        stage.send(spy, 1, name, made[name])
    refused = {}
    two = ("s1", TARGET)
    for survivors, answering in ((two, two), ((TARGET,),) * 2, ((TARGET, *two),) * 2, (ALL, two), (two, ALL)):
        if why := stage.ask(spy, 1, TARGET, survivors, answering):
            refused[f"{survivors} {answering}"] = why
    return refused, spy.read(1, TARGET, made[TARGET])


def lower_threshold() -> Outcome:
    refused, reading = _two_suffice(Roster)
    seen: dict[str, str] = {}
    with play() as rehearsal:
        a, b, *_ = rehearsal.silos
        treaty = rehearsal.world.treaty.model_copy(update={"min_silos": 2})
        homes = rehearsal.world.homes
        other = sign_all(treaty, [(name, Home.load(path).identity()) for name, path in homes.items()])
        study = {**rehearsal.case.study_envelope.payload, "treaty": other.digest}
        signed = Envelope("study", study).signed("dana", rehearsal.world.key("dana")).to_json()
        seen["a study under another treaty"] = word(
            rehearsal.ask(VICTIM, rehearsal.keys_request(VICTIM, study=signed))
        )
        replies = {}
        for silo in rehearsal.silos:
            reply, _ = m.KeysReply.read(rehearsal.ask(silo, rehearsal.keys_request(silo)).message)
            rehearsal.case.seen(silo, reply.log_size)
            replies[silo] = Envelope.from_json(reply.keys)
            rehearsal.aggregator.add_advertisement(silo, replies[silo])
        two = [replies[s].to_json() for s in (a, b)]
        seen["two keys"] = word(rehearsal.ask(VICTIM, rehearsal.shares_request(two)))
        for silo in rehearsal.silos:
            answer, _ = m.SharesReply.read(rehearsal.ask(silo, rehearsal.shares_request()).message)
            rehearsal.aggregator.add_boxes(silo, m.boxes_from_json(answer.boxes))
        request = rehearsal.vector_request(VICTIM, TRAIN)
        assert request.boxes is not None
        one = request.model_copy(update={"boxes": {b: request.boxes[b]}})
        seen["one box"] = word(rehearsal.ask(VICTIM, one, rehearsal.weights))
        uploads(rehearsal)
        for asked in ([a, b], [a], [a, a, b]):
            said = rehearsal.ask(VICTIM, rehearsal.answer_request(TRAIN, asked))
            seen[str(asked)] = word(said)
        for asked in ([a, b], [a], []):
            less = rehearsal.answer_request(TRAIN).model_copy(update={"answering": asked})
            seen[f"{asked} to answer"] = word(rehearsal.ask(VICTIM, less))
        honest = word(rehearsal.ask(VICTIM, rehearsal.answer_request(TRAIN)))
    _, weak = _two_suffice(Low)
    return Outcome(
        len(refused) == 5
        and not reading.broken
        and "(answered)" not in seen.values()
        and honest == "(answered)",
        f"a sum over victim and colluder: {tally(refused)}, {reading}; the real node: {tally(seen)}; "
        f"then asked honestly: {honest}",
        weak.exact == D,
        f"threshold talked down to 2: {weak}",
    )


# ── 6: a set-up or a round again ─────────────────────────────────────────────────────────────────


def _upload_twice(**options: Any) -> tuple[str, Reading | None]:
    """The same round asked for twice with another model: under the same masks the difference lies open."""
    stage = Stage(**options)
    stage.set_up()
    one, two = (vectors(ALL, D, seed=s)[TARGET] // 4 for s in (3, 4))
    spy = stage.spy(["s1"])
    stage.send(spy, 1, TARGET, one)
    first = spy.uploads[1, TARGET]
    try:
        stage.send(spy, 1, TARGET, two)
    except FoedusError as error:
        return code_of(error), None
    change = RING.unwrap(spy.uploads[1, TARGET] - first)
    return "", compare(change, two - one)


def replay() -> Outcome:
    code, reading = _upload_twice()
    seen: dict[str, str] = {}
    with play() as rehearsal:

        def ask(what: str, content: m.Content, data: bytes = b"") -> None:
            seen[what] = word(rehearsal.ask(VICTIM, content, data))

        rehearsal.set_up()
        first = uploads(rehearsal)[VICTIM]
        paid = rehearsal.spent(VICTIM)
        weights, other = rehearsal.weights, other_weights(rehearsal)
        again = rehearsal.vector_request(VICTIM, TRAIN, boxes=False)
        ask("the set-up", rehearsal.keys_request(VICTIM))
        ask("the shares", rehearsal.shares_request())
        ask("the round for another model", again, other)
        fewer = rehearsal.vector_request(VICTIM, TRAIN + 1)
        assert fewer.boxes is not None
        ask("fewer boxes", fewer.model_copy(update={"boxes": dict(list(fewer.boxes.items())[1:])}), weights)
        run = {"run": "2"}
        ask("under another run", rehearsal.keys_request(VICTIM, **run))
        ask("the round of another run", again.model_copy(update=run), weights)
        fresh = word(rehearsal.ask(VICTIM, rehearsal.keys_request(VICTIM, batch=1)))
        second = {"batch": 1}
        ask("the round in a new batch", again.model_copy(update=second), weights)
        ask("old shares in a new batch", rehearsal.shares_request().model_copy(update=second))
        answered = rehearsal.answer_request(TRAIN)
        honest = rehearsal.ask(VICTIM, answered)
        repeated = same(first, rehearsal.ask(VICTIM, again, weights)) and same(
            honest, rehearsal.ask(VICTIM, answered)
        )
        ask("the answer, as of a new batch", answered.model_copy(update=second))
        rehearsal.restart(VICTIM)
        ask("the set-up after a restart", rehearsal.keys_request(VICTIM))
        ask("the round after a restart", again, weights)
        ask("the answer after a restart", answered)
        more = rehearsal.spent(VICTIM) - paid
    with play() as rehearsal:
        node(rehearsal, VICTIM).journal = Amnesiac(rehearsal.home(VICTIM) / "journal.db")
        rehearsal.set_up()
        first = uploads(rehearsal)[VICTIM]
        request = rehearsal.vector_request(VICTIM, TRAIN, boxes=False)
        weak_said = rehearsal.ask(VICTIM, request, other_weights(rehearsal))
    _, weak = _upload_twice(journal=Amnesiac)
    return Outcome(
        code == "ALREADY_DONE"
        and reading is None
        and "(answered)" not in seen.values()
        and (fresh, word(honest)) == ("(answered)", "(answered)")
        and repeated
        and more <= 0,
        f"a second upload: {code}; {len(seen)} replays at the real node: {tally(seen)}; the very same question again gets "
        f"{'the very same bytes' if repeated else 'OTHER BYTES'}; customers paid nothing more",
        weak is not None
        and weak.exact == D
        and word(weak_said) == "(answered)"
        and not same(first, weak_said),
        f"without the journal the round is answered again, its change read: {weak}",
    )


# ── 7: one victim and its puppets ────────────────────────────────────────────────────────────────


def _against(colluders: Iterable[str], members: Sequence[str]) -> tuple[Reading, int]:
    """The smallest sum the victim will help to open, with everything the colluders hold."""
    stage = Stage()
    stage.set_up()
    made = vectors(ALL, D)
    spy = stage.spy(colluders, made)
    for name in ALL:
        stage.send(spy, 1, name, made[name])
    for name in members:
        stage.ask(spy, 1, name, members)
    return spy.read(1, TARGET, made[TARGET]), spy.honest_sums(1)


def puppets() -> Outcome:
    stage = Stage()
    strangers = {f"puppet{i}": SigningKey.generate() for i in range(3)}
    wide = Roster(stage.roster.signing_keys | {n: k.public for n, k in strangers.items()}, 1)
    victim, stage.roster = stage.silos[TARGET], wide
    stage.keys |= strangers
    envelopes = [victim.advertise(), *(stage.silo(name).advertise() for name in strangers)]
    seen: dict[str, str] = {}
    for what, sent in (("with three puppets", envelopes), ("alone", envelopes[:1])):
        try:
            victim.share(sent)
            seen[what] = "(answered)"
        except FoedusError as error:
            seen[what] = code_of(error)
    smallest, opened = _against(["s1"], ["s1", "s3", TARGET])
    customers = _few_customers()
    weak, _ = _against(["s1", "s2"], ["s1", "s2", TARGET])
    return Outcome(
        "(answered)" not in seen.values() and not smallest.broken and opened == 1 and customers[0],
        f"set-up with puppets: {tally(seen)}; the smallest sum it helps to open (colluder, one other, victim): "
        f"{smallest}; {customers[1]}",
        weak.exact == D,
        f"two colluders where the treaty counts with one: {weak}",
    )


def _few_customers() -> tuple[bool, str]:
    """The other cohort: a node that has fewer customers than the treaty's minimum says no, and not how many."""
    from datetime import UTC, datetime

    from foedus.compliance.consent import ConsentRegister

    with play() as rehearsal:
        register = ConsentRegister(rehearsal.home(VICTIM) / "consent.db")
        purpose = rehearsal.case.study.purpose
        for subject in register.in_force(purpose, datetime.now(UTC))["subject"][40:]:
            register.withdraw(subject, purpose)
        said = rehearsal.ask(VICTIM, rehearsal.keys_request(VICTIM))
        assert said.refusal is not None
        told = said.refusal.message
        inside = str(rehearsal.last_refusal(VICTIM)["reason"])
        ok = said.refusal.code == "COHORT_TOO_SMALL" and not any(c.isdigit() for c in told)
        return ok and any(c.isdigit() for c in inside), f"40 customers: {said.refusal.code}, no number said"


CHECKS = [
    Check("1", "searches for masks' seeds", SERVER, entropy),
    Check("4", "substitutes a public key", HELPED, substituted_key),
    Check("5", "lowers the threshold", HELPED, lower_threshold),
    Check("6", "replays a set-up or a round", HELPED, replay),
    Check("7", "shrinks the cohort to a victim and puppets", HELPED, puppets),
]
