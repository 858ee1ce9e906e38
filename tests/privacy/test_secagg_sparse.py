"""The secure sum on a sparse graph: 66 silos, two colluders, each with its twenty neighbours only."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from support.sums import RING, Cast, total, vectors

from foedus.documents import Envelope, SigningKey
from foedus.errors import Abandoned, ProtocolError, Refused, VerificationError
from foedus.privacy.secagg import shares
from foedus.privacy.secagg.client import Silo
from foedus.privacy.secagg.graph import parameters
from foedus.privacy.secagg.statements import CONFIRM, READY, confirmation, readiness, shares_digest
from foedus.privacy.secagg.topology import CHECK_DEALERS, Sparse, names_digest, peers, topology

N, C, T = 66, 2, 35


def neighbours(cast: Cast, name: str) -> list[str]:
    return sorted(cast.aggregator.topology.holders(name) - {name})


def far_from(cast: Cast, name: str) -> list[str]:
    return sorted(set(cast.names) - cast.aggregator.topology.holders(name))


class Scene:
    """A batch in which two dealers of the check key and one more dealt nothing, and one stated nothing."""

    def __init__(self) -> None:
        self.cast = cast = Cast(N, C, range(1, 11))
        for name in cast.names:
            cast.aggregator.add_advertisement(name, cast.silos[name].advertise())
        shape = cast.aggregator.topology
        assert isinstance(shape, Sparse)
        self.shape, self.order = shape, shape._graph.order
        self.silent = {self.order[1], self.order[5], self.order[30]}
        self.mute = self.order[45]
        self.dealt = sorted(set(cast.names) - self.silent)
        self.ready = [name for name in self.dealt if name != self.mute]
        for name in self.dealt:
            boxes = cast.silos[name].share(cast.aggregator.keys_for(name), cast.aggregator.digests)
            cast.aggregator.add_boxes(name, boxes)
        for name in self.dealt:
            cast.silos[name].receive(cast.aggregator.boxes_for(name))
        for name in self.ready:
            cast.aggregator.add_ready(name, cast.silos[name].ready(self.dealt))
        for name in self.ready:
            cast.silos[name].take_ready(cast.aggregator.ready_for(name))
        self.made = {name: x // 64 for name, x in vectors(cast.names).items()}

    def upload(self, number: int, names: Sequence[str]) -> None:
        self.cast.aggregator.open_round(number, 6, "train", RING)
        for name in names:
            sent = self.cast.upload(number, name, self.made[name])
            self.cast.aggregator.add_vector(number, name, *sent)

    def confirmations(
        self, number: int, survivors: Sequence[str], by: Sequence[str] = ()
    ) -> dict[str, Envelope]:
        return {name: self.cast.silos[name].confirm(number, survivors) for name in by or survivors}


@pytest.fixture(scope="module")
def once() -> Scene:
    return Scene()


@pytest.fixture
def scene(once: Scene) -> Iterator[Scene]:
    yield once
    for silo in once.cast.silos.values():
        silo._unseen.clear()  # rounds that a test left unopened hold up no other test


# ── sums ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_graph_is_sparse(scene: Scene) -> None:
    chosen = parameters(N, C)
    assert chosen is not None and (chosen.half, chosen.window, chosen.threshold) == (10, 2, 5)
    assert scene.cast.t == T and scene.shape.threshold == 5
    for name in scene.cast.names:
        assert len(neighbours(scene.cast, name)) == 20
    silo = scene.cast.silos[scene.ready[0]]
    assert set(silo._held) == scene.shape.holders(silo.name) - scene.silent


@pytest.mark.parametrize("number", [1, 2])
def test_sums_are_exact_whoever_falls_silent_at_random(scene: Scene, number: int) -> None:
    draw = random.Random(number)
    up = sorted(draw.sample(scene.ready, len(scene.ready) - 4))
    back = sorted(draw.sample(up, len(up) - 5))
    assert scene.cast.round(number, scene.made, uploads=up, answers=back).tolist() == total(scene.made, up)


def test_a_silo_gives_one_share_of_each_neighbour_and_of_nobody_else(scene: Scene) -> None:
    up = [name for name in scene.ready if name != scene.order[20]]
    scene.upload(3, up)
    confirmed = scene.confirmations(3, up)
    name = next(n for n in neighbours(scene.cast, scene.order[20]) if n in up)
    silo = scene.cast.silos[name]
    first = silo.answer(3, up, confirmed=confirmed)
    _, seeds, keys = first
    assert set(seeds) | set(keys) == scene.shape.holders(name) - scene.silent
    assert not set(seeds) & set(keys) and scene.order[20] in keys and name in seeds
    again = silo.answer(3, up, confirmed=confirmed)
    assert (again[0].to_json(), *again[1:]) == (first[0].to_json(), *first[1:])


# ── who takes part ───────────────────────────────────────────────────────────────────────────────


def test_the_check_key_reaches_everybody_through_the_dealers(scene: Scene) -> None:
    assert len(scene.shape.dealers) == CHECK_DEALERS == 8
    assert {scene.cast.silos[name]._check_key for name in scene.dealt} == {
        scene.cast.silos[scene.dealt[0]]._check_key
    }
    for name in scene.cast.names:
        linked = peers(scene.shape, name)
        assert scene.shape.dealers - {name} <= linked
        assert all(name in peers(scene.shape, other) for other in linked)
        boxes = scene.cast.aggregator._boxes.get(name, {})
        for receiver, box in boxes.items():  # those who hold no share get the key's part and no more
            length = 32 + (64 * 10 if receiver in scene.shape.holders(name) else 0) + 16
            assert len(box) == length


def test_who_stated_nothing_uploads_nothing_and_is_in_no_sum(scene: Scene) -> None:
    mute = scene.cast.silos[scene.mute]
    with pytest.raises(ProtocolError, match="not set up"):
        scene.cast.upload(4, scene.mute, scene.made[scene.mute])
    scene.upload(4, scene.ready)
    with_mute = [*scene.ready, scene.mute]
    near = next(n for n in neighbours(scene.cast, scene.mute) if n in scene.ready)
    for step in (
        lambda: scene.cast.silos[near].confirm(4, with_mute),
        lambda: scene.cast.silos[near].answer(4, with_mute, confirmed={}),
    ):
        with pytest.raises(ProtocolError, match=f"{scene.mute} has not stated the same participants"):
            step()
    # Later it does, and its neighbours take its word.
    statement = mute.ready(scene.dealt)
    scene.cast.silos[near].take_ready({scene.mute: statement})
    scene.cast.silos[near].confirm(4, with_mute)
    assert mute.participants == tuple(sorted(mute._held))


def test_participants_are_stated_once(scene: Scene) -> None:
    silo = scene.cast.silos[scene.ready[0]]
    far = next(n for n in far_from(scene.cast, silo.name) if n in scene.ready)
    for participants in (scene.dealt, [n for n in scene.dealt if n != far]):
        with pytest.raises(Refused, match="once only"):
            silo.ready(participants)
    assert silo._everyone == tuple(scene.dealt)


def test_participants_that_a_silo_knows_to_be_wrong_are_not_stated(scene: Scene) -> None:
    silo = scene.cast.silos[scene.ready[0]]
    silent = next(iter(scene.silent & scene.shape.holders(silo.name)), None)
    near = next(n for n in neighbours(scene.cast, silo.name) if n in scene.ready)
    wrong = [
        [n for n in scene.dealt if n != near],
        [n for n in scene.dealt if n != silo.name],
        [*scene.dealt, near],
        [*scene.dealt, "mallory"],
        sorted(set(silo._held)),
        [],
        *([[*scene.dealt, silent]] if silent else []),
    ]
    for participants in wrong:
        with pytest.raises(ProtocolError, match="participants"):
            silo.ready(participants)


def test_a_neighbour_with_other_participants_is_refused(scene: Scene) -> None:
    """Each was told that somebody else dealt nothing: they would leave out masks that others put on."""
    name = scene.ready[0]
    near = next(n for n in neighbours(scene.cast, name) if n in scene.ready)
    silo, context, key = scene.cast.silos[near], scene.cast.context, scene.cast.keys[name]
    silo._ready.discard(name)
    good = readiness(context, name, scene.shape, scene.dealt)
    far = next(n for n in far_from(scene.cast, name) if n in scene.dealt)
    wrong = [
        Envelope(READY, readiness(context, name, scene.shape, [n for n in scene.dealt if n != far])),
        Envelope(READY, {**good, "topology": "0" * 64}),
        Envelope(READY, {**good, "context": "0" * 64}),
        Envelope(READY, {**good, "silo": near}),
        Envelope(READY, {**good, "more": 1}),
        Envelope(CONFIRM, good),
    ]
    forged = [Envelope(READY, good).signed(name, SigningKey.generate()), Envelope(READY, good)]
    for statement in [*(envelope.signed(name, key) for envelope in wrong), *forged]:
        with pytest.raises(VerificationError):
            silo.take_ready({name: statement})
        assert name not in silo._ready
    with pytest.raises(ProtocolError, match="no silo of this treaty"):
        silo.take_ready({"mallory": forged[0]})
    silo.take_ready({name: Envelope(READY, good).signed(name, key)})
    assert name in silo._ready
    with pytest.raises(ProtocolError, match="stated other participants"):
        scene.cast.aggregator.add_ready(name, wrong[0].signed(name, key))
    for unexpected in (scene.order[1], "mallory"):
        with pytest.raises(ProtocolError, match="was not expected"):
            scene.cast.aggregator.add_ready(unexpected, forged[0])


def test_on_a_complete_graph_nothing_is_stated() -> None:
    cast = Cast(4, 1)
    cast.set_up()
    with pytest.raises(ProtocolError, match="nothing to state"):
        cast.silos["s1"].ready(cast.names)
    with pytest.raises(ProtocolError, match="sparse graph"):
        cast.silos["s1"].take_ready({})
    with pytest.raises(ProtocolError, match="was not expected"):
        cast.aggregator.add_ready("s1", Envelope(READY, {}))


# ── which graph ──────────────────────────────────────────────────────────────────────────────────


def fresh() -> Cast:
    cast = Cast(N, C, [1])
    for name in cast.names:
        cast.aggregator.add_advertisement(name, cast.silos[name].advertise())
    return cast


def test_shares_dealt_on_another_graph_do_not_open() -> None:
    """One silo was shown another digest of a silo far away; its box names its graph in its key."""
    cast = fresh()
    aggregator = cast.aggregator
    name = cast.names[0]
    for silo in far_from(cast, name):
        forged = {**aggregator.digests, silo: "0" * 64}
        linked = peers(topology(forged, cast.roster, cast.context), name)
        common = linked & set(neighbours(cast, name))
        if silo not in linked and common:
            break
    receiver = min(common)
    shown = [
        envelope for envelope in aggregator.advertisements if envelope.payload["silo"] in linked | {name}
    ]
    boxes = cast.silos[name].share(shown, forged)
    assert set(boxes) == linked
    cast.silos[receiver].share(aggregator.keys_for(receiver), aggregator.digests)
    with pytest.raises(ProtocolError, match="the box does not open"):
        cast.silos[receiver].receive({name: boxes[receiver]})


def test_digests_that_do_not_hold_are_refused() -> None:
    cast = fresh()
    aggregator, name = cast.aggregator, cast.names[0]
    silo, keys, digests = cast.silos[name], cast.aggregator.keys_for(cast.names[0]), cast.aggregator.digests
    near = neighbours(cast, name)[0]
    wrong: list[tuple[list[Envelope], dict[str, str], str]] = [
        (keys, {**digests, near: "0" * 64}, "name other keys"),
        (keys, {**digests, name: "0" * 64}, "name other keys"),
        (keys, {k: v for k, v in digests.items() if k != near}, "name other keys"),
        (keys, {**digests, "mallory": "0" * 64}, "other silos"),
        ([e for e in keys if e.payload["silo"] != near], digests, f"{near} are missing"),
    ]
    for envelopes, told, why in wrong:
        with pytest.raises(ProtocolError, match=why):
            silo.share(envelopes, told)
    some = {k: v for k, v in digests.items() if k in {e.payload["silo"] for e in keys}}
    if len(some) < T:
        with pytest.raises(ProtocolError, match="below this silo's threshold"):
            silo.share(keys, some)
    boxes = silo.share(keys, digests)
    assert set(boxes) == peers(aggregator.topology, name)


def test_headers_are_bound_to_the_graph(scene: Scene) -> None:
    scene.cast.aggregator.open_round(5, 6, "train", RING)
    name = scene.ready[0]
    data, header = scene.cast.upload(5, name, scene.made[name])
    assert header.payload["topology"] == scene.shape.digest != scene.cast.context.digest
    assert header.payload["participants"] == names_digest(scene.dealt)
    for change in ({"topology": scene.cast.context.digest}, {"participants": names_digest(scene.ready)}):
        altered = Envelope(header.kind, {**header.payload, **change}).signed(name, scene.cast.keys[name])
        with pytest.raises(ProtocolError, match=f"the vector of {name} is not what its header says"):
            scene.cast.aggregator.add_vector(5, name, data, altered)
    scene.cast.aggregator.add_vector(5, name, data, header)


# ── which survivors ──────────────────────────────────────────────────────────────────────────────


def refuses(silo: Silo, number: int, survivors: Sequence[str], why: str) -> None:
    for step in (
        lambda: silo.confirm(number, survivors),
        lambda: silo.answer(number, survivors, confirmed={}),
    ):
        with pytest.raises(ProtocolError, match=why):
            step()


def test_a_window_that_is_too_empty_is_refused_by_all(scene: Scene) -> None:
    """Ten places next to each other of which only two survive: they might both be colluders."""
    window = scene.order[32:42]
    thin = [name for name in scene.ready if name not in window[2:]]
    enough = [name for name in scene.ready if name not in window[3:]]
    assert len(thin) >= T and not scene.silent & set(window) and scene.mute not in window
    scene.upload(6, thin)
    for name in thin:
        refuses(scene.cast.silos[name], 6, thin, "too few to hide who is beside them")
    with pytest.raises(Abandoned, match="too few to hide"):
        scene.cast.aggregator.survivors(6)
    scene.cast.silos[thin[0]].confirm(6, enough)  # by its own count three are enough


def test_two_sets_are_never_both_opened(scene: Scene) -> None:
    """64 honest silos, half told of one set and half of the other; the two colluders sign both."""
    everybody = scene.ready
    colluders, honest = everybody[:C], everybody[C:]
    less = [name for name in everybody if name != honest[0]]
    scene.upload(7, everybody)
    stories = {0: everybody, 1: less}
    confirmed: dict[int, dict[str, Envelope]] = {0: {}, 1: {}}
    for place, name in enumerate(honest):
        story = 0 if name == honest[0] else place % 2
        confirmed[story][name] = scene.cast.silos[name].confirm(7, stories[story])
        if name == honest[0]:  # it is in one of the sets only; the same again is the same statement
            assert scene.cast.silos[name].confirm(7, everybody) == confirmed[story][name]
            continue
        with pytest.raises(Refused, match="once only"):
            scene.cast.silos[name].confirm(7, stories[1 - story])
    for story, survivors in stories.items():
        for name in colluders:
            said = confirmation(scene.cast.context, 7, name, scene.shape, survivors)
            confirmed[story][name] = Envelope(CONFIRM, said).signed(name, scene.cast.keys[name])
        assert len(confirmed[story]) < T
        for name in confirmed[story]:
            if name in honest:
                with pytest.raises(ProtocolError, match=f"confirmed the survivors, {T} must"):
                    scene.cast.silos[name].answer(7, survivors, confirmed=confirmed[story])
        both = {**confirmed[story], **{k: v for k, v in confirmed[1 - story].items() if k in honest}}
        name = next(n for n in confirmed[story] if n in honest)
        with pytest.raises(ProtocolError, match="confirmed another set"):
            scene.cast.silos[name].answer(7, survivors, confirmed=both)


def test_a_quorum_counts_only_true_confirmations(scene: Scene) -> None:
    survivors = scene.ready
    scene.upload(8, survivors)
    assert scene.cast.aggregator.survivors(8) == tuple(survivors)
    with pytest.raises(Abandoned, match="confirmations"):
        scene.cast.aggregator.confirmed(8)
    confirmed = scene.confirmations(8, survivors, survivors[:T])
    name = survivors[0]
    silo = scene.cast.silos[name]
    for count in (0, 1, T - 1):
        with pytest.raises(ProtocolError, match=f"{count} silos confirmed the survivors, {T} must"):
            silo.answer(8, survivors, confirmed=dict(list(confirmed.items())[:count]))
    with pytest.raises(ProtocolError, match="0 silos confirmed"):
        silo.answer(8, survivors)
    victim = survivors[1]
    key, good = scene.cast.keys[victim], confirmation(scene.cast.context, 8, victim, scene.shape, survivors)
    wrong = [
        Envelope(CONFIRM, good),
        Envelope(CONFIRM, good).signed(victim, SigningKey.generate()),
        Envelope(READY, good).signed(victim, key),
        Envelope(CONFIRM, {**good, "round": 7}).signed(victim, key),
        Envelope(CONFIRM, {**good, "topology": "0" * 64}).signed(victim, key),
        Envelope(CONFIRM, {**good, "context": "0" * 64}).signed(victim, key),
        Envelope(CONFIRM, {**good, "survivors": names_digest(survivors[1:])}).signed(victim, key),
        confirmed[survivors[2]],
    ]
    for statement in wrong:
        with pytest.raises(VerificationError):
            silo.answer(8, survivors, confirmed={**confirmed, victim: statement})
        with pytest.raises(VerificationError):
            scene.cast.aggregator.add_confirmation(8, victim, statement)
    with pytest.raises(ProtocolError, match="no silo of this treaty"):
        silo.answer(8, survivors, confirmed={**confirmed, "mallory": confirmed[victim]})
    late = scene.cast.silos[survivors[-1]]
    with pytest.raises(ProtocolError, match="this silo confirmed another set of survivors, or none"):
        late.answer(8, survivors, confirmed=confirmed)
    silo.answer(8, survivors, confirmed=confirmed)
    with pytest.raises(ProtocolError, match="was not expected"):
        scene.cast.aggregator.add_confirmation(8, scene.mute, confirmed[victim])


# ── answers ──────────────────────────────────────────────────────────────────────────────────────


def answered(scene: Scene, number: int) -> tuple[list[str], dict[str, Any]]:
    """Everybody's answer, of a round that is closed and confirmed, not yet with the server."""
    scene.upload(number, scene.ready)
    survivors = list(scene.cast.aggregator.survivors(number))
    for name in survivors:
        statement = scene.cast.silos[name].confirm(number, survivors)
        scene.cast.aggregator.add_confirmation(number, name, statement)
    confirmed = scene.cast.aggregator.confirmed(number)
    assert len(confirmed) == T
    assert scene.cast.aggregator.ask(number) == tuple(survivors)
    silos = scene.cast.silos
    return survivors, {n: silos[n].answer(number, survivors, confirmed=confirmed) for n in survivors}


def test_a_wrong_share_is_noticed_where_there_is_one_to_spare(scene: Scene) -> None:
    survivors, given = answered(scene, 9)
    liar = survivors[3]
    statement, seeds, keys = given[liar]
    owner = next(name for name in seeds if name != liar)
    wrong = (shares.from_bytes(seeds[owner]) + 1) % shares.PRIME
    seeds = {**seeds, owner: shares.to_bytes(wrong)}
    told = {**statement.payload, "shares": shares_digest(seeds, keys)}
    given[liar] = (Envelope(statement.kind, told).signed(liar, scene.cast.keys[liar]), seeds, keys)
    for name, answer in given.items():
        scene.cast.aggregator.add_answer(9, name, *answer)
    with pytest.raises(ProtocolError, match="disagree"):
        scene.cast.aggregator.total(9)


def test_a_secret_of_which_too_few_holders_answer_ends_the_round(scene: Scene) -> None:
    survivors, given = answered(scene, 10)
    owner = scene.order[20]
    holders = [name for name in [*neighbours(scene.cast, owner), owner] if name in survivors]
    lost = set(holders[4:])
    present = [name for name in survivors if name not in lost]
    assert len(present) >= T
    for name in present:
        scene.cast.aggregator.add_answer(10, name, *given[name])
    with pytest.raises(Abandoned, match=r"\d shares of s\d+'s secret, 5 are needed"):
        scene.cast.aggregator.total(10)
    for name in sorted(lost)[:-3]:  # they answer after all, and three may still be missing
        scene.cast.aggregator.add_answer(10, name, *given[name])
    opened = scene.cast.aggregator.total(10)
    assert opened.total.tolist() == total(scene.made, survivors)
    for name in survivors:
        scene.cast.silos[name].verify_sum(10, survivors, opened.total, opened.check)
    with pytest.raises(VerificationError):
        scene.cast.silos[survivors[0]].verify_sum(10, survivors, opened.total + 1, opened.check)
    assert np.issubdtype(opened.total.dtype, np.int64)
