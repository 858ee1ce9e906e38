"""A server that lies, drops, replays and tells different silos different things learns nothing more."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from support.sums import BOUND, RING, Cast, total, vectors

from foedus.documents import Envelope, SigningKey, b64
from foedus.errors import FoedusError, ProtocolError, Refused, VerificationError
from foedus.privacy.secagg import check, shares
from foedus.privacy.secagg.aggregator import Aggregator
from foedus.privacy.secagg.codec import Whole
from foedus.privacy.secagg.journal import Journal
from foedus.privacy.secagg.keys import KIND
from foedus.privacy.secagg.seeds import pad_key
from foedus.privacy.secagg.statements import UPLOAD, shares_digest
from foedus.privacy.secagg.topology import names_digest

ALL = ("s1", "s2", "s3", "s4")


@pytest.fixture
def cast() -> Cast:
    """Four silos, one colluder, t = 3; set up, and every silo's vector of round 1 is with the server."""
    cast = Cast(4, 1, [1, 2])
    cast.set_up()
    for name in ALL:
        cast.upload(1, name, np.zeros(6, np.int64))
    return cast


# ── at the unmasking trip ────────────────────────────────────────────────────────────────────────


def answer(cast: Cast, name: str, survivors: tuple[str, ...], answering: tuple[str, ...] = ()) -> Any:
    return cast.silos[name].answer(1, survivors, answering=answering or survivors)


def test_both_shares_of_one_silo_are_never_had(cast: Cast) -> None:
    """First as a survivor, then as a dropped one: the second question stays without an answer."""
    for name in ("s1", "s2", "s3"):
        _, seeds, mask_keys = answer(cast, name, ALL)
        assert set(seeds) == set(ALL) and not mask_keys
        for fewer in itertools.combinations(ALL, 3):
            with pytest.raises((Refused, ProtocolError), match=r"once only|not among the survivors"):
                answer(cast, name, fewer)


def test_an_answer_names_each_silo_once_as_survivor_or_as_dropped(cast: Cast) -> None:
    statement, seeds, mask_keys = answer(cast, "s1", ("s1", "s2", "s3"))
    assert (set(seeds), set(mask_keys)) == ({"s1", "s2", "s3"}, {"s4"})
    assert statement.payload == {
        "context": cast.context.digest,
        "round": 1,
        "silo": "s1",
        "survivors": names_digest(["s1", "s2", "s3"]),
        "answering": names_digest(["s1", "s2", "s3"]),
        "shares": shares_digest(seeds, mask_keys),
    }


def test_the_same_question_twice_has_the_same_answer_and_another_set_has_none(cast: Cast) -> None:
    """It may be asked again if the others fell silent. Nothing in it is drawn anew, so nothing averages out."""
    first = answer(cast, "s1", ALL)
    again = answer(cast, "s1", ALL)
    assert (first[0].to_json(), *first[1:]) == (again[0].to_json(), *again[1:])
    for others in (("s1", "s2", "s3"), ("s1", "s2", "s4"), ("s1", "s3", "s4")):
        with pytest.raises(Refused) as found:
            answer(cast, "s1", others)
        assert found.value.code == "ALREADY_DONE"


def test_with_fewer_who_answer_a_silo_blinds_anew(cast: Cast) -> None:
    first, again = (answer(cast, "s1", ALL, asked) for asked in (ALL, ("s1", "s2", "s3")))
    assert first[0].payload["survivors"] == again[0].payload["survivors"]
    assert first[0].payload["answering"] != again[0].payload["answering"]
    assert not set(first[1].values()) & set(again[1].values())


@pytest.mark.parametrize(
    ("answering", "why"),
    [
        ((), "each once, this silo among them"),
        (("s2", "s3", "s4"), "each once, this silo among them"),
        (("s1", "s2"), "below this silo's threshold"),
        (("s1", "s2", "s2"), "each once"),
        (("s1", "s2", "mallory"), "survivors"),
        (("s1", "s2", "s4"), "are survivors"),
    ],
)
def test_who_answers_is_checked_by_the_silo(cast: Cast, answering: tuple[str, ...], why: str) -> None:
    with pytest.raises(ProtocolError, match=why):
        cast.silos["s1"].answer(1, ("s1", "s2", "s3"), answering=answering)
    answer(cast, "s1", ALL)  # the refusal used nothing up


def test_two_stories_are_never_both_opened(cast: Cast) -> None:
    """s4 helps the server with both; s1 and s2 hear one story, s3 the other.

    Even by plain shares only one of them reaches t: the count, before any blind (see `test_secagg_mixing`).
    """
    one, two = ALL, ("s2", "s3", "s4")
    told = {"s1": [one], "s2": [one], "s3": [two], "s4": [one, two]}
    held = cast.silos["s4"]._held  # the colluder answers twice, outside of the code
    seeds_for: dict[tuple[str, ...], dict[str, set[int]]] = {one: {}, two: {}}
    for name, stories in told.items():
        for story in stories:
            owners = held if name == "s4" else answer(cast, name, story)[1]
            for owner in set(owners) & set(story):
                seeds_for[story].setdefault(owner, set()).add(cast.roster.point(name))
    opened = [story for story, got in seeds_for.items() if all(len(got.get(s, ())) >= cast.t for s in story)]
    assert opened == [one]


@pytest.mark.parametrize(
    ("survivors", "why"),
    [
        (("s2", "s3", "s4"), "not among the survivors"),
        (("s1", "s2"), "below this silo's threshold"),
        (("s1",), "below this silo's threshold"),
        ((), "not among"),
        (("s1", "s2", "s3", "mallory"), "never took part"),
        (("s1", "s2", "s2", "s3"), "named twice"),
        (("s1", "s1", "s1"), "named twice"),
    ],
)
def test_a_set_of_survivors_that_would_show_too_much_is_refused(
    cast: Cast, survivors: tuple[str, ...], why: str
) -> None:
    with pytest.raises(ProtocolError, match=why):
        answer(cast, "s1", survivors)
    answer(cast, "s1", ALL)  # the refusal used nothing up


@pytest.mark.parametrize("number", [2, 3, 99])
def test_a_round_without_an_upload_is_not_answered(cast: Cast, number: int) -> None:
    with pytest.raises(ProtocolError, match="uploaded nothing"):
        cast.silos["s1"].answer(number, ALL, answering=ALL)


def test_a_second_vector_of_one_round_is_refused(cast: Cast) -> None:
    with pytest.raises(Refused, match="once only"):
        cast.upload(1, "s1", np.ones(6, np.int64))
    cast.upload(2, "s1", np.ones(6, np.int64))
    with pytest.raises(ProtocolError, match="not set up"):
        cast.upload(3, "s1", np.ones(6, np.int64))


def opened(cast: Cast, number: int) -> Any:
    """Opens the sum of zeros over all four, shown to nobody yet."""
    aggregator = Aggregator(cast.roster, cast.context)
    for name in ALL:
        aggregator.add_advertisement(name, cast.silos[name]._advertisement)
    aggregator._boxes = cast.aggregator._boxes
    aggregator.open_round(number, 6, "train", RING)
    for name in ALL:
        aggregator.add_vector(number, name, *cast.upload(number, name, np.zeros(6, np.int64)))
    for name in aggregator.ask(number):
        aggregator.add_answer(number, name, *cast.silos[name].answer(number, ALL, answering=ALL))
    return aggregator.total(number)


def test_a_silo_gives_no_vector_before_it_saw_the_sum_it_helped_to_open() -> None:
    cast = Cast(4, 1, [1, 2, 3])
    cast.set_up()
    shown = opened(cast, 1)
    silo = cast.silos["s1"]
    for number in (2, 3):
        with pytest.raises(ProtocolError, match="sum of round 1 has not been shown"):
            cast.upload(number, "s1", np.zeros(6, np.int64))
    with pytest.raises(VerificationError, match="altered"):
        silo.verify_sum(1, ALL, shown.total + 1, shown.check)
    with pytest.raises(ProtocolError, match="sum of round 1 has not been shown"):
        cast.upload(2, "s1", np.zeros(6, np.int64))
    silo.verify_sum(1, ALL, shown.total, shown.check)
    cast.upload(2, "s1", np.zeros(6, np.int64))


def test_rounds_entered_in_any_order_must_all_be_shown() -> None:
    """Of two rounds answered, to show the later does not do for the earlier."""
    cast = Cast(4, 1, [1, 2, 3])
    cast.set_up()
    silo = cast.silos["s1"]
    for name in ALL:
        for number in (2, 1):
            cast.upload(number, name, np.zeros(6, np.int64))
    for number in (1, 2):
        silo.answer(number, ALL, answering=ALL)
    assert silo._unseen == {1, 2}
    key = silo._check_key
    assert key is not None
    zeros = np.zeros(6, np.int64)
    for number in (2, 1):
        with pytest.raises(ProtocolError, match="has not been shown"):
            cast.upload(3, "s1", zeros)
        pads = check.pads(pad_key(key, cast.context, number, name) for name in ALL)  # the sum is zero
        silo.verify_sum(number, ALL, zeros, pads)
    cast.upload(3, "s1", zeros)


# ── a restart ────────────────────────────────────────────────────────────────────────────────────


def test_a_restarted_silo_does_nothing_twice(cast: Cast) -> None:
    again = cast.silo("s1")
    with pytest.raises(Refused, match="set-up 0"):
        again.advertise()
    with pytest.raises(ProtocolError, match="not set up"):
        again.mask(1, Whole(np.zeros(6, np.int64), BOUND), RING, task="train")
    with pytest.raises(ProtocolError, match="uploaded nothing"):
        again.answer(1, ALL, answering=ALL)
    with pytest.raises(ProtocolError, match="was not in it"):
        again.verify_sum(1, ALL, np.zeros(6, np.int64), 0)


@pytest.mark.parametrize("answered", [True, False])
def test_a_restarted_silo_in_a_new_batch_still_uploads_and_answers_each_round_once(
    cast: Cast, answered: bool
) -> None:
    """The server may set up again (a new batch), not sum the same round again."""
    if answered:
        answer(cast, "s1", ALL)
    again = Cast(4, 1, [1, 2], folder=cast.folder)
    again.keys, again.roster = cast.keys, cast.roster
    again.silos = {name: cast.silo(name, batch=1) for name in ALL}
    again.context = again.silos["s1"].context
    again.aggregator = Aggregator(cast.roster, again.context)
    again.set_up()
    for name in ALL:
        with pytest.raises(Refused, match="upload 1"):
            again.upload(1, name, np.zeros(6, np.int64))
    with pytest.raises(ProtocolError, match="uploaded nothing to be opened"):
        answer(again, "s1", ALL)  # the upload was another batch's
    made = vectors(ALL)
    assert again.round(2, made).tolist() == total(made, ALL)


def test_a_step_asked_for_by_many_at_once_is_taken_once(cast: Cast) -> None:
    journals = [Journal(cast.folder / "crowd.db") for _ in range(6)]
    together, taken = threading.Barrier(6), []

    def take(journal: Journal) -> None:
        for number in range(10):
            together.wait()
            try:
                journal.once("study", "run", "answer", number)
                taken.append(number)
            except Refused:
                pass

    threads = [threading.Thread(target=take, args=(journal,)) for journal in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(taken) == list(range(10))


# ── at set-up ────────────────────────────────────────────────────────────────────────────────────


def advertised(**changes: Any) -> tuple[Cast, list[Envelope]]:
    cast = Cast(4, 1, [1, 2])
    return cast, [cast.silos[name].advertise() for name in ALL]


def resigned(
    cast: Cast, envelope: Envelope, signer: str, key: SigningKey | None = None, **changes: Any
) -> Envelope:
    payload = {**envelope.payload, **changes}
    return Envelope(KIND, payload).signed(signer, key or cast.keys[signer])


LOW_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex("ec" + "ff" * 30 + "7f"),
    bytes.fromhex("ed" + "ff" * 30 + "7f"),
]
OTHER = "8" * 64

Attack = Callable[[Cast, list[Envelope]], list[Envelope]]
ATTACKS: dict[str, Attack] = {
    "a key of the server's, unsigned": lambda c, e: [*e[:3], Envelope(KIND, {**e[3].payload, "share_key": b64(b"k" * 32)})],
    "a key of the server's, old signature": lambda c, e: [
        *e[:3], Envelope(KIND, {**e[3].payload, "share_key": b64(b"k" * 32)}, e[3].signatures)
    ],
    "a key signed by another": lambda c, e: [*e[:3], resigned(c, e[3], "s4", SigningKey.generate())],
    "s3's keys as s4's": lambda c, e: [*e[:3], resigned(c, e[2], "s3", silo="s4")],
    "a stranger": lambda c, e: [*e, resigned(c, e[3], "s5", SigningKey.generate(), silo="s5")],
    "a silo twice": lambda c, e: [*e, e[3]],
    "nameless": lambda c, e: [*e[:3], Envelope(KIND, {k: v for k, v in e[3].payload.items() if k != "silo"})],
    "of another batch": lambda c, e: [*e[:3], c.silo("s4", batch=1).advertise()],
    "of another run": lambda c, e: [*e[:3], c.silo("s4", run="2").advertise()],
    "of another study": lambda c, e: [*e[:3], c.silo("s4", study=OTHER).advertise()],
    "of another treaty": lambda c, e: [*e[:3], c.silo("s4", treaty=OTHER, run="9").advertise()],
    "of other rounds": lambda c, e: [*e[:3], c.silo("s4", rounds=(1, 3), run="9").advertise()],
    "too few mask keys": lambda c, e: [*e[:3], resigned(c, e[3], "s4", mask_keys=e[3].payload["mask_keys"][:1])],
    "a short mask key": lambda c, e: [*e[:3], resigned(c, e[3], "s4", mask_keys=[b64(b"k" * 31), b64(b"k" * 32)])],
    "a mask key that is no text": lambda c, e: [*e[:3], resigned(c, e[3], "s4", mask_keys=[1, 2])],
    "more fields": lambda c, e: [*e[:3], resigned(c, e[3], "s4", more=1)],
    "its own keys altered": lambda c, e: [resigned(c, e[0], "s1", share_key=b64(b"k" * 32)), *e[1:]],
    "its own keys missing": lambda c, e: e[1:],
    "a lower threshold": lambda c, e: e[:2],
    "nobody else": lambda c, e: e[:1],
    "another kind": lambda c, e: [*e[:3], Envelope("study", e[3].payload).signed("s4", c.keys["s4"])],
}  # fmt: skip


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_no_shares_are_dealt_to_keys_that_do_not_hold(attack: Attack) -> None:
    cast, envelopes = advertised()
    with pytest.raises(VerificationError):
        cast.silos["s1"].share(attack(cast, envelopes))


@pytest.mark.parametrize("point", LOW_ORDER)
def test_points_of_low_order_give_no_secret(point: bytes) -> None:
    cast, e = advertised()
    weak = resigned(cast, e[3], "s4", share_key=b64(point))
    with pytest.raises(ProtocolError, match="low order"):
        cast.silos["s1"].share([*e[:3], weak])
    cast, e = advertised()  # and as a mask key, at the upload
    weak = resigned(cast, e[3], "s4", mask_keys=[b64(point)] * 2)
    everybody = [*e[:3], weak]
    boxes = {name: cast.silos[name].share(everybody) for name in ALL[:3]}
    cast.silos["s1"].receive({name: boxes[name]["s1"] for name in ("s2", "s3")})
    cast.upload(1, "s1", np.zeros(3, np.int64))  # s4 dealt nothing: no mask with it
    silo = cast.silos["s2"]
    boxes["s4"] = {"s2": _sealed(cast, "s4", silo, everybody)}
    silo.receive({"s1": boxes["s1"]["s2"], "s3": boxes["s3"]["s2"], "s4": boxes["s4"]["s2"]})
    with pytest.raises(ProtocolError, match="low order"):
        cast.upload(1, "s2", np.zeros(3, np.int64))


def _sealed(cast: Cast, sender: str, receiver: Any, everybody: list[Envelope]) -> bytes:
    attacker = cast.silos[sender]
    attacker._advertisement = next(e for e in everybody if e.payload["silo"] == sender)
    return attacker.share(everybody)[receiver.name]


def dealt() -> tuple[Cast, dict[str, bytes]]:
    cast, envelopes = advertised()
    boxes = {name: cast.silos[name].share(envelopes) for name in ALL}
    return cast, {name: boxes[name]["s1"] for name in ALL[1:]}


BOXES: dict[str, Callable[[dict[str, bytes]], dict[str, bytes]]] = {
    "swapped": lambda b: {**b, "s2": b["s3"], "s3": b["s2"]},
    "truncated": lambda b: {**b, "s2": b["s2"][:-1]},
    "empty": lambda b: {**b, "s2": b""},
    "longer": lambda b: {**b, "s2": b["s2"] + b"\0"},
    "first bit flipped": lambda b: {**b, "s2": bytes([b["s2"][0] ^ 1]) + b["s2"][1:]},
    "last bit flipped": lambda b: {**b, "s2": b["s2"][:-1] + bytes([b["s2"][-1] ^ 128])},
    "of a stranger": lambda b: {**b, "mallory": b["s2"]},
    "from too few": lambda b: {"s2": b["s2"]},
    "none": lambda b: {},
}


@pytest.mark.parametrize("attack", BOXES.values(), ids=BOXES.keys())
def test_boxes_that_were_touched_are_refused(attack: Callable[[dict[str, bytes]], dict[str, bytes]]) -> None:
    cast, boxes = dealt()
    with pytest.raises(ProtocolError):
        cast.silos["s1"].receive(attack(boxes))
    with pytest.raises(ProtocolError, match="not set up"):
        cast.upload(1, "s1", np.zeros(3, np.int64))
    cast.silos["s1"].receive(boxes)  # nothing of it was kept
    cast.upload(1, "s1", np.zeros(3, np.int64))


def test_a_silo_goes_through_its_states_once() -> None:
    cast, boxes = dealt()
    silo = cast.silos["s1"]
    with pytest.raises(ProtocolError, match="advertised already"):
        silo.advertise()
    with pytest.raises(ProtocolError, match="dealt once"):
        silo.share([])
    silo.receive(boxes)
    with pytest.raises(ProtocolError, match="received once"):
        silo.receive(boxes)
    fresh = Cast(4, 1).silos["s1"]
    with pytest.raises(ProtocolError, match="after the keys"):
        fresh.share([])
    with pytest.raises(ProtocolError, match="received once, after"):
        fresh.receive({})


# ── a silo that sends nonsense, at the server ────────────────────────────────────────────────────


def test_a_vector_that_is_not_what_its_header_says_is_refused_by_name(cast: Cast) -> None:
    cast.aggregator.open_round(2, 6, "train", RING)
    data, header = cast.upload(2, "s1", np.ones(6, np.int64))
    aggregator = cast.aggregator

    def changed(**fields: Any) -> Envelope:
        return Envelope(UPLOAD, {**header.payload, **fields}).signed("s1", cast.keys["s1"])

    wrong: list[tuple[str, bytes, Envelope]] = [
        ("s1", data[:-4], header),
        ("s1", data + b"\0\0\0\0", header),
        ("s1", bytes(24), header),
        ("s1", data[:-4], changed(dimension=5)),
        ("s1", data, changed(round=1)),
        ("s1", data, changed(context=OTHER)),
        ("s1", data, changed(task="evaluate")),
        ("s1", data, changed(participants=names_digest(["s1", "s2", "s3"]))),
        ("s1", data, changed(topology=OTHER)),
        ("s1", data, changed(bits=24)),
        ("s1", data, changed(model=OTHER)),
        ("s1", data, changed(silo="s2")),
        ("s1", data, changed(vector=OTHER)),
        ("s1", data, changed(more=1)),
        (
            "s1",
            data,
            Envelope(UPLOAD, {k: v for k, v in header.payload.items() if k != "model"}).signed(
                "s1", cast.keys["s1"]
            ),
        ),
        *(
            ("s1", data, changed(check=value))
            for value in (1, "", "-1", "+1", "1.0", "²", "١", " 1", "9" * 20, str(check.P))
        ),
        (
            "s1",
            data,
            Envelope(UPLOAD, {k: v for k, v in header.payload.items() if k != "check"}).signed(
                "s1", cast.keys["s1"]
            ),
        ),
        ("s1", data, Envelope(UPLOAD, header.payload)),
        ("s1", data, Envelope(UPLOAD, header.payload).signed("s1", cast.keys["s2"])),
        ("s1", data, Envelope("answer", header.payload).signed("s1", cast.keys["s1"])),
        ("s2", data, header),
        ("mallory", data, header),
    ]
    for silo, sent, with_header in wrong:
        with pytest.raises(FoedusError, match=f"{silo}|was expected"):
            aggregator.add_vector(2, silo, sent, with_header)
    aggregator.add_vector(2, "s1", data, header)
    with pytest.raises(ProtocolError, match="s1 was not expected"):
        aggregator.add_vector(2, "s1", data, header)
    for name in ALL[1:]:
        aggregator.add_vector(2, name, *cast.upload(2, name, np.ones(6, np.int64)))
    survivors = aggregator.survivors(2)
    for name in aggregator.ask(2):
        aggregator.add_answer(2, name, *cast.silos[name].answer(2, survivors, answering=survivors))
    result = aggregator.total(2)
    assert result.total.tolist() == [4] * 6  # what was refused left no trace
    cast.silos["s3"].verify_sum(2, survivors, result.total, result.check)


def three_uploaded() -> tuple[Cast, dict[str, Any], tuple[str, ...]]:
    """s1, s2, s3 have sent their vectors, s4 has not; the survivors are asked."""
    cast = Cast(4, 1)
    cast.set_up()
    made = vectors(ALL)
    cast.aggregator.open_round(1, 6, "train", RING)
    for name in ALL[:3]:
        cast.aggregator.add_vector(1, name, *cast.upload(1, name, made[name]))
    survivors = cast.aggregator.survivors(1)
    assert cast.aggregator.ask(1) == survivors
    return cast, made, survivors


def test_an_answer_to_something_else_is_refused_by_name() -> None:
    cast, made, survivors = three_uploaded()
    statement, seeds, keys = answer(cast, "s1", survivors)

    def changed(**fields: Any) -> Envelope:
        return Envelope(statement.kind, {**statement.payload, **fields}).signed("s1", cast.keys["s1"])

    wrong: list[tuple[str, Envelope, dict[str, bytes], dict[str, bytes]]] = [
        ("s1", statement, {**seeds, "s2": bytes(32)}, keys),
        ("s1", statement, {k: v for k, v in seeds.items() if k != "s2"}, keys),
        ("s1", statement, seeds, {}),
        ("s1", statement, {**seeds, "s4": keys["s4"]}, {}),
        ("s2", statement, seeds, keys),
        ("s4", statement, seeds, keys),
        ("s1", changed(round=2), seeds, keys),
        ("s1", changed(survivors=names_digest(ALL)), seeds, keys),
        ("s1", changed(answering=names_digest(ALL)), seeds, keys),
        ("s1", changed(context=OTHER), seeds, keys),
        ("s1", changed(more=1), seeds, keys),
    ]
    for silo, document, a, b in wrong:
        with pytest.raises(VerificationError, match=silo):
            cast.aggregator.add_answer(1, silo, document, a, b)
    outside = {**seeds, "s2": b"\xff" * 32}
    with pytest.raises(ProtocolError, match="field element"):
        cast.aggregator.add_answer(1, "s1", changed(shares=shares_digest(outside, keys)), outside, keys)
    cast.aggregator.add_answer(1, "s1", statement, seeds, keys)
    with pytest.raises(ProtocolError, match="s1 was not expected"):
        cast.aggregator.add_answer(1, "s1", statement, seeds, keys)
    for name in ("s2", "s3"):
        cast.aggregator.add_answer(1, name, *answer(cast, name, survivors))
    assert cast.aggregator.total(1).total.tolist() == total(made, survivors)  # what was refused left no trace


def test_a_wrong_mask_key_share_is_noticed_and_the_owner_named() -> None:
    cast = Cast(4, 1)
    cast.set_up()
    silo = cast.silos["s1"]
    mask_share, seed_share = silo._held["s4"][1]
    silo._held["s4"][1] = ((mask_share + (1 << 100)) % shares.PRIME, seed_share)
    with pytest.raises(ProtocolError, match="wrong mask key of s4"):
        cast.round(1, vectors(ALL), uploads=("s1", "s2", "s3"))


@pytest.mark.parametrize("answers", [ALL, ALL[:3]])
def test_a_wrong_seed_share_is_noticed_however_many_answer(answers: tuple[str, ...]) -> None:
    """By the commitment in the advertisement: answers are weighted, so there are no surplus shares."""
    cast = Cast(4, 1)
    cast.set_up()
    silo = cast.silos["s1"]
    mask_share, seed_share = silo._held["s2"][1]
    silo._held["s2"][1] = (mask_share, (seed_share + 1) % shares.PRIME)
    with pytest.raises(ProtocolError, match="wrong seed of s2"):
        cast.round(1, vectors(ALL), answers=answers)


def test_boxes_for_others_than_the_advertisers_are_refused() -> None:
    cast, envelopes = advertised()
    for name, envelope in zip(ALL, envelopes, strict=True):
        cast.aggregator.add_advertisement(name, envelope)
    boxes = cast.silos["s1"].share(envelopes)
    for wrong in ({}, {**boxes, "s1": b""}, {k: v for k, v in boxes.items() if k != "s2"}):
        with pytest.raises(ProtocolError, match="s1 dealt"):
            cast.aggregator.add_boxes("s1", wrong)
    with pytest.raises(ProtocolError, match="mallory"):
        cast.aggregator.add_boxes("mallory", boxes)


def test_values_beyond_a_silos_part_of_the_ring_never_leave(cast: Cast) -> None:
    with pytest.raises(FoedusError, match="wrap around"):
        cast.upload(2, "s1", np.array([BOUND + 1], np.int64))
    assert RING.unwrap(RING.wrap(Whole(np.array([-BOUND], np.int64), BOUND).chunk(0, 1))).tolist() == [-BOUND]


def test_a_forged_answer_is_noticed_where_just_the_threshold_answers() -> None:
    """No surplus share contradicts it: the commitment in the advertisement does, where else the sum were garbage."""
    cast, _, survivors = three_uploaded()
    for name in survivors:
        statement, seeds, keys = answer(cast, name, survivors)
        if name == "s2":
            seeds = {**seeds, "s1": shares.to_bytes(7)}
            told = {**statement.payload, "shares": shares_digest(seeds, keys)}
            statement = Envelope(statement.kind, told).signed(name, cast.keys[name])
        cast.aggregator.add_answer(1, name, statement, seeds, keys)
    with pytest.raises(ProtocolError, match="wrong seed of s1"):
        cast.aggregator.total(1)
