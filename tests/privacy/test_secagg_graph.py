"""The sparse neighbour graph: its bounds worked out again, its three promises, and what breaks without the check."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import random
import re
import time
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from support.goodness import chi_square

from foedus.errors import InputError, ProtocolError
from foedus.privacy.secagg import graph, masks
from foedus.privacy.secagg.graph import Graph, Parameters, parameters, rare

REJECT = 1e-9
SIZES = (65, 100, 200, 500, 1000, 5000, 10_000)
CASES = [(m, c) for m in SIZES for c in (max(1, (m - 1) // 3), m // 10, m // 20)]


def names(count: int) -> tuple[str, ...]:
    return tuple(f"s{i:05}" for i in range(count))


def seed(number: int) -> bytes:
    return number.to_bytes(32, "big")


def vectors() -> Any:
    path = Path(__file__).parents[1] / "vectors" / "secagg" / "graph.json"
    return json.loads(path.read_text())


def parts(drawn: Graph, members: Iterable[str]) -> int:
    """How many pieces the graph falls into between these silos, by the neighbours it states."""
    left, pieces = set(members), 0
    while left:
        pieces += 1
        reached = [left.pop()]
        while reached:
            near = left.intersection(drawn.neighbours(reached.pop()))
            left -= near
            reached += near
    return pieces


def windows(drawn: Graph) -> list[set[str]]:
    twice = drawn.order * 2
    return [set(twice[i : i + drawn.parameters.half]) for i in range(len(drawn.order))]


# ── the bounds ───────────────────────────────────────────────────────────────────────────────────


def exact_tail(population: int, marked: int, size: int, most: int) -> Fraction:
    """P[Hypergeometric > most] by every term from below: 1 − the rest, so not the sum `rare` takes."""
    ways = (math.comb(marked, j) * math.comb(population - marked, size - j) for j in range(most + 1))
    return 1 - Fraction(sum(ways), math.comb(population, size))


def log2_of_union(population: int, marked: int, size: int, most: int) -> float:
    """log2 of population · P[Hypergeometric > most], by scipy's terms (its logsf loses such tails)."""
    terms = stats.hypergeom.logpmf(range(most + 1, min(size, marked) + 1), population, marked, size)
    if not len(terms):
        return -math.inf
    top = float(max(terms))
    if top == -math.inf:
        return top
    return (top + math.log(sum(math.exp(t - top) for t in terms)) + math.log(population)) / math.log(2)


@given(
    silos=st.integers(3, 60),
    data=st.data(),
    bits=st.integers(0, 70),
)
@settings(max_examples=400, deadline=None)
def test_a_tail_is_judged_as_by_fractions(silos: int, data: st.DataObject, bits: int) -> None:
    marked = data.draw(st.integers(0, silos))
    size = data.draw(st.integers(1, silos))
    most = data.draw(st.integers(0, size))
    tail = silos * exact_tail(silos, marked, size, most)
    assert rare(silos, marked, size, most, bits) == (tail <= Fraction(1, 2**bits))


def test_a_tail_just_at_its_bound_is_rare_and_just_above_is_not() -> None:
    # By hand: 8 · P[Hypergeometric(8, 2, 2) > 1] = 8/28 ≤ 1/2; 16 · P[Hypergeometric(16, 1, 1) > 0] = 1.
    assert exact_tail(8, 2, 2, 1) == Fraction(1, 28)
    assert rare(8, 2, 2, 1, 1) and not rare(8, 2, 2, 1, 2)
    assert rare(16, 1, 1, 0, 0) and not rare(16, 1, 1, 0, 1)


@pytest.mark.parametrize(("m", "c"), CASES)
@pytest.mark.parametrize("losses", [0.05, 0.1])
def test_both_bounds_hold_at_h_and_one_fails_at_every_lesser_h(m: int, c: int, losses: float) -> None:
    found = parameters(m, c, losses=losses)
    assert found is not None
    lost = math.ceil(round(losses * m, 6))

    def union(h: int, w: int) -> tuple[float, float]:
        return log2_of_union(m, c, h, w), log2_of_union(m, lost, h, h - w - 1)

    colluding, losing = union(found.half, found.window)
    assert colluding <= -100 and losing <= -40
    # By scipy, with a slack of 1e-6 bits, no lesser h has any w. (Least w of each h: greater ones lose more.)
    w = 0
    for h in range(1, found.half):
        while log2_of_union(m, c, h, w) > -100 + 1e-6:
            w += 1
        assert h <= w or log2_of_union(m, lost, h, h - w - 1) > -40 - 1e-6, f"h = {h}, w = {w} would do"


@pytest.mark.parametrize("case", vectors()["parameters"], ids=str)
def test_parameters_are_those_that_fractions_give(case: Any) -> None:
    found = parameters(case["silos"], case["colluders"], losses=case["losses"])
    assert (found and [found.half, found.window]) == case["half_window"]


@given(silos=st.integers(3, 90), data=st.data())
@settings(max_examples=60, deadline=None)
def test_parameters_are_the_first_of_all_pairs(silos: int, data: st.DataObject) -> None:
    """Weak bounds, so that w < c and chance decides even at a few silos."""
    c = data.draw(st.integers(1, silos - 2))
    lost = data.draw(st.integers(0, silos // 3))
    bits = data.draw(st.integers(1, 12))
    found = graph._sparsest(silos, c, lost, bits, bits)
    pairs = (Parameters(h, w) for h in range(1, silos) for w in range(h) if 2 * h < silos - 1)
    bound = Fraction(1, silos * 2**bits)
    wanted = (
        p
        for p in pairs
        if exact_tail(silos, c, p.half, p.window) <= bound
        and exact_tail(silos, lost, p.half, p.half - p.window - 1) <= bound
    )
    assert found == next(wanted, None)


def test_the_table_of_the_docstring() -> None:
    rows = re.findall(r"^ +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)$", parameters.__doc__ or "", re.MULTILINE)
    assert len(rows) == 7
    for row in rows:
        m, c, h, k, w, t = map(int, row)
        found = parameters(m, c)
        assert found == Parameters(h, w)
        assert (found.degree, found.threshold, found.least) == (k, t, w + 1)


def test_secrecy_counts_2_to_the_40_seeds_and_more_losses_cost_neighbours() -> None:
    assert (graph.FAILURE_BITS, graph.GRINDING_BITS, graph.SPARSE_ABOVE) == (40, 60, 64)
    half = [p.half for losses in (0, 0.05, 0.1, 0.2) if (p := parameters(2000, 200, losses=losses))]
    assert len(half) == 4 and half == sorted(set(half))


def test_where_all_may_sit_together_no_chance_is_left() -> None:
    found = parameters(100, 33)
    assert found == Parameters(
        33 + 10 + 1, 33
    )  # w = c, and h keeps w + 1 though all ⌈10 %⌉ be lost in one window


def test_none_where_only_the_complete_graph_keeps_the_bounds() -> None:
    assert parameters(10, 3) is None  # h = 3 + 1 + 1 would join all to all
    assert parameters(100, 60) is None
    assert parameters(3, 1) is None
    assert parameters(1000, 998) is None


@pytest.mark.parametrize("c", [1, 500, 3333, 5000, 8000, 9000, 9998])
def test_parameters_of_ten_thousand_silos_take_less_than_a_second(c: int) -> None:
    graph._sparsest.cache_clear()
    before = time.process_time()
    parameters(10_000, c)
    assert time.process_time() - before < 1


@pytest.mark.parametrize(("m", "c"), [(2, 1), (100, 99), (100, 0), (100, -1), (0, 0)])
def test_somebody_must_be_left_to_protect(m: int, c: int) -> None:
    with pytest.raises(InputError, match="nobody to protect"):
        parameters(m, c)


@pytest.mark.parametrize("losses", [-0.1, 1, 1.5, math.nan, math.inf])
def test_losses_are_a_share(losses: float) -> None:
    with pytest.raises(InputError, match="losses"):
        parameters(100, 10, losses=losses)


@pytest.mark.parametrize(("h", "w"), [(3, 3), (3, 4), (3, -1), (0, 0)])
def test_a_window_has_room_for_a_survivor_who_does_not_collude(h: int, w: int) -> None:
    with pytest.raises(InputError, match="can't be checked"):
        Parameters(h, w)


# ── the draw ─────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("case", vectors()["draws"], ids=lambda case: case["seed"][:8])
def test_known_draws(case: Any) -> None:
    material = bytes.fromhex(case["seed"])
    assert masks.derive(material, "secure-sum-graph").hex() == case["key"]
    given_order = sorted(case["order"], reverse=True)
    drawn = Graph.draw(given_order, material, Parameters(case["half"], 0))
    assert list(drawn.order) == case["order"]
    ((silo, near),) = case["neighbours_of"].items()
    assert sorted(drawn.neighbours(silo)) == near


def test_a_draw_that_passes_a_word_over() -> None:
    case = vectors()["draw_of_0_to_9999_that_passes_a_word_over"]
    assert case["refused"] >= 1
    drawn = Graph.draw(map(str, range(10_000)), bytes.fromhex(case["seed"]), Parameters(1, 0))
    assert (
        hashlib.sha256(",".join(drawn.order).encode()).hexdigest() == case["sha256_of_order_joined_by_commas"]
    )


def shuffles(count: int, draws: int) -> list[tuple[str, ...]]:
    return [Graph.draw(names(count), seed(i), Parameters(1, 0)).order for i in range(draws)]


def test_all_orders_of_four_silos_are_equally_likely() -> None:
    draws = 12_000
    seen = shuffles(4, draws)
    orders = list(itertools.permutations(names(4)))
    counts = [seen.count(order) for order in orders]
    assert chi_square(counts, [draws / 24] * 24) > REJECT
    # What the test would see: the well-known wrong shuffle (each swapped with any), whose orders are known exactly.
    wrong = dict.fromkeys(orders, 0)
    for swaps in itertools.product(range(4), repeat=4):
        order = list(names(4))
        for i, j in enumerate(swaps):
            order[i], order[j] = order[j], order[i]
        wrong[tuple(order)] += 1
    assert chi_square(counts, [draws * n / 256 for n in wrong.values()]) < REJECT
    # … and one order in 24 that comes 1.4 times as often as it should.
    heavy = [1.4 * draws / 24, *[(draws - 1.4 * draws / 24) / 23] * 23]
    assert chi_square(counts, heavy) < REJECT


def test_the_last_of_many_silos_comes_to_every_place() -> None:
    draws = 6_000
    last = names(30)[-1]
    places = [order.index(last) for order in shuffles(30, draws)]
    assert chi_square([places.count(i) for i in range(30)], [draws / 30] * 30) > REJECT


def test_a_draw_does_not_depend_on_the_order_of_the_names_but_on_every_name_and_the_seed() -> None:
    base = Graph.draw(names(50), seed(1), Parameters(5, 2))
    assert Graph.draw(reversed(names(50)), seed(1), Parameters(5, 2)) == base
    assert Graph.draw(names(50), seed(2), Parameters(5, 2)).order != base.order
    assert sorted(Graph.draw(names(51)[1:], seed(1), Parameters(5, 2)).order) == sorted(names(51)[1:])


@pytest.mark.parametrize("length", [0, 31, 33])
def test_a_seed_has_32_bytes(length: int) -> None:
    with pytest.raises(InputError, match="32 bytes"):
        Graph.draw(names(50), bytes(length), Parameters(5, 2))


def test_a_silo_has_one_place() -> None:
    with pytest.raises(InputError, match="two places"):
        Graph.draw((*names(50), "s00000"), seed(1), Parameters(5, 2))


def test_a_sparse_graph_is_sparse() -> None:
    Graph(names(12), Parameters(5, 2))
    with pytest.raises(InputError, match="sparse"):
        Graph(names(11), Parameters(5, 2))


# ── neighbours ───────────────────────────────────────────────────────────────────────────────────


def test_neighbours_are_the_h_next_on_either_side_and_mutual() -> None:
    drawn = Graph.draw(names(40), seed(7), Parameters(6, 3))
    for place, silo in enumerate(drawn.order):
        near = drawn.neighbours(silo)
        distances = sorted(
            min((drawn.order.index(p) - place) % 40, (place - drawn.order.index(p)) % 40) for p in near
        )
        assert distances == sorted([1, 2, 3, 4, 5, 6] * 2)
        assert near == tuple(sorted(set(near))) and silo not in near and len(near) == drawn.parameters.degree
        assert all(silo in drawn.neighbours(peer) for peer in near)
        assert drawn.holders(silo) == tuple(sorted({*near, silo}))


def test_who_is_not_in_the_graph_is_refused_by_name() -> None:
    drawn = Graph.draw(names(40), seed(7), Parameters(6, 3))
    for ask in (drawn.neighbours, drawn.holders, lambda name: drawn.check([*names(40), name])):
        with pytest.raises(ProtocolError, match="stranger has no place"):
            ask("stranger")
    with pytest.raises(ProtocolError, match="s00003 is named twice"):
        drawn.check([*names(40), "s00003"])


# ── what the check buys ──────────────────────────────────────────────────────────────────────────


@st.composite
def rings(draw: st.DrawFn) -> tuple[Graph, set[str], set[str]]:
    """A graph, colluders within the window's bound, and survivors that pass the check by a hair.

    Silos are added to the colluders, and taken from the survivors, one by one, as long as it is allowed:
    what comes out is at the edge of both rules.
    """
    m = draw(st.integers(8, 48))
    h = draw(st.integers(1, (m - 2) // 2))
    w = draw(st.integers(0, h - 1))
    drawn = Graph.draw(names(m), seed(draw(st.integers(0, 2**32))), Parameters(h, w))
    chance = random.Random(draw(st.integers(0, 2**32)))
    all_windows = windows(drawn)
    colluders: set[str] = set()
    for silo in chance.sample(drawn.order, draw(st.integers(0, m))):
        if all(len(win & colluders) < w for win in all_windows if silo in win):
            colluders.add(silo)
    survivors = set(drawn.order)
    # Honest ones go first: that is what a server that wants a cut would do.
    for silo in sorted(chance.sample(drawn.order, m), key=lambda s: s in colluders):
        if all(len(win & survivors) > w + 1 for win in all_windows if silo in win):
            survivors.remove(silo)
    return drawn, colluders, survivors


@given(rings())
@settings(max_examples=300, deadline=None)
def test_what_passes_the_check_is_connected_secret_and_available(
    ring: tuple[Graph, set[str], set[str]],
) -> None:
    drawn, colluders, survivors = ring
    w, t = drawn.parameters.window, drawn.parameters.threshold
    drawn.check(survivors)
    assert parts(drawn, survivors - colluders) == 1  # (a)
    for silo in drawn.order:
        holders = set(drawn.holders(silo))
        if silo not in colluders:
            assert len(holders & colluders) <= 2 * w < t  # (b)
        assert len(holders & survivors) >= t + (2 if silo in survivors else 1)  # (c)


@given(rings(), st.data())
@settings(max_examples=200, deadline=None)
def test_the_check_is_what_it_says(ring: tuple[Graph, set[str], set[str]], data: st.DataObject) -> None:
    """Refused if and only if some window is too empty, and the window named is one."""
    drawn, _, survivors = ring
    gone = data.draw(st.sets(st.sampled_from(sorted(survivors)), max_size=3))
    left = survivors - gone
    held = [len(win & left) for win in windows(drawn)]
    half, least = drawn.parameters.half, drawn.parameters.least
    if min(held) >= least:
        drawn.check(left)
        return
    with pytest.raises(ProtocolError) as refusal:
        drawn.check(left)
    first = next(i for i, count in enumerate(held) if count < least)
    start, end = drawn.order[first], drawn.order[(first + half - 1) % len(drawn.order)]
    assert f"from {start} to {end} in the neighbour graph {held[first]} survive, {least} must" in str(
        refusal.value
    )
    assert "nothing was revealed" in refusal.value.remedy


def test_two_empty_windows_cut_an_arc_off_and_are_refused() -> None:
    """The attack, at full size: the server calls two windows dropped, within the quorum."""
    m, c = 1000, 333
    found = parameters(m, c, losses=0.05)
    assert found is not None
    drawn = Graph.draw(names(m), seed(3), found)
    h = found.half
    victims = set(drawn.order[h : h + 3])
    survivors = set(drawn.order) - set(drawn.order[:h]) - set(drawn.order[h + 3 : 2 * h + 3])
    assert len(survivors) >= (m + c) // 2 + 1  # the quorum alone lets it pass
    assert parts(drawn, survivors) == 2 and parts(drawn, victims) == 1  # three silos' sum would open
    with pytest.raises(ProtocolError, match="neighbour graph 0 survive"):
        drawn.check(survivors)


def test_one_survivor_less_a_window_and_colluders_cut_an_arc_off() -> None:
    """w + 1 is the least that does: with w, two windows of which colluders alone survive would pass."""
    drawn = Graph.draw(names(60), seed(4), Parameters(8, 3))
    order, h = drawn.order, 8
    colluders = {*order[0:3], *order[20:23]}
    assert max(len(win & colluders) for win in windows(drawn)) == 3
    dropped = {*order[3:8], *order[23:28]}
    survivors = set(order) - dropped
    assert parts(drawn, survivors - colluders) == 2
    Graph(order, Parameters(h, 2)).check(survivors)
    with pytest.raises(ProtocolError, match="3 survive, 4 must"):
        drawn.check(survivors)


def test_with_fewer_neighbours_than_the_window_is_long_the_survivors_may_fall_apart() -> None:
    """h − 1 windows and h neighbours are matched: a gap of h − 1 passes, and needs the h-th neighbour."""
    drawn = Graph.draw(names(60), seed(5), Parameters(8, 0))
    survivors = set(drawn.order[::8])  # 8 apart (the last gap is 4): every window of 8 holds one
    drawn.check(survivors)
    assert parts(drawn, survivors) == 1
    assert parts(Graph(drawn.order, Parameters(7, 0)), survivors) > 1


# ── how often, in fact ───────────────────────────────────────────────────────────────────────────

M, C, LOST, BITS, DRAWS = 120, 24, 12, 5, 4_000


def at_most(events: int, draws: int, chance: float) -> float:
    """p-value of `events` or more, were the chance of each `chance`."""
    return float(stats.binom.sf(events - 1, draws, chance))


def test_colluders_and_losses_break_the_bounds_no_oftener_than_worked_out() -> None:
    """At bounds of 2^-5, over 4,000 draws; twice the colluders, or thrice the losses, are seen to break them."""
    found = graph._sparsest(M, C, LOST, BITS, BITS)
    assert found is not None and found.window < C
    chance = random.Random(11)
    crowded, doubled, refused, tripled = 0, 0, 0, 0
    first_window = [0] * (found.half + 1)
    for i in range(DRAWS):
        drawn = Graph.draw(names(M), seed(i), found)
        first_window[len({*drawn.order[: found.half]} & {*names(C)})] += 1
        crowded += fullest(drawn, set(names(C))) > found.window
        doubled += fullest(drawn, set(names(2 * C))) > found.window
        refused += is_refused(drawn, set(chance.sample(names(M), M - LOST)))
        tripled += is_refused(drawn, set(chance.sample(names(M), M - 3 * LOST)))
    limit = 2.0**-BITS
    assert at_most(crowded, DRAWS, limit) > REJECT and at_most(doubled, DRAWS, limit) < REJECT
    assert at_most(refused, DRAWS, limit) > REJECT and at_most(tripled, DRAWS, limit) < REJECT
    # One window on its own is hypergeometric, with this many colluders and no others.
    for colluders, fits in ((C, True), (C - 2, False), (C + 2, False)):
        pmf = stats.hypergeom.pmf(range(found.half + 1), M, colluders, found.half)
        assert (chi_square(first_window, (pmf * DRAWS).tolist()) > REJECT) == fits


def fullest(drawn: Graph, marked: set[str]) -> int:
    """The most of the marked in any window."""
    flags = [silo in marked for silo in drawn.order] * 2
    half = drawn.parameters.half
    inside = most = sum(flags[:half])
    for i in range(len(drawn.order)):
        inside += flags[i + half] - flags[i]
        most = max(most, inside)
    return most


def is_refused(drawn: Graph, survivors: set[str]) -> bool:
    try:
        drawn.check(survivors)
    except ProtocolError:
        return True
    return False


def test_ten_thousand_silos_are_quick() -> None:
    found = parameters(10_000, 3333)
    assert found is not None
    everybody = names(10_000)
    before = time.process_time()
    drawn = Graph.draw(everybody, seed(9), found)
    drawn.check(everybody)
    dealt = sum(len(drawn.holders(silo)) for silo in everybody[:500])
    assert dealt == 500 * (found.degree + 1)
    assert time.process_time() - before < 2
