"""Checks 2 and 3: a malicious server that asks one silo for both its secrets, and silos for different sets.

The cast is that of `sum_attacks`: ``s4`` is the victim, ``s1`` helps the server.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from redteam.checks import Check, Outcome, tally
from redteam.crypt import ALL, HELPED, TARGET, Amnesiac, Plain, Stage
from redteam.node_support import TRAIN, VICTIM, play, same, uploads, word
from redteam.spy import D, Reading, Spy
from support.sums import vectors

MIXED = ((7, 2), (10, 3))  # silos, colluders

# ── 2: both shares of one silo ───────────────────────────────────────────────────────────────────


def _ask_both(**options: Any) -> tuple[Reading, dict[str, str]]:
    """First with the victim among the survivors, then without: its seed *and* its mask key, it alone open."""
    stage = Stage(**options)
    stage.set_up()
    made = vectors(ALL, D)
    spy = stage.spy(["s1"], made)
    for name in ALL:
        stage.send(spy, 1, name, made[name])
    refused = {}
    for name in ALL[1:]:
        for survivors in (ALL, ALL[:3]):
            if why := stage.ask(spy, 1, name, survivors):
                refused[f"{name} {survivors}"] = why
    return spy.read(1, TARGET, made[TARGET]), refused


def both_shares() -> Outcome:
    reading, refused = _ask_both()
    with play() as rehearsal:
        rehearsal.set_up()
        uploads(rehearsal)
        heard = [
            rehearsal.ask(VICTIM, rehearsal.answer_request(TRAIN, list(asked)))
            for asked in (rehearsal.silos, rehearsal.silos[:3], rehearsal.silos)
        ]
        said = [word(one) for one in heard]
    weak, weak_refused = _ask_both(journal=Amnesiac)
    return Outcome(
        not reading.broken
        and said == ["(answered)", "ALREADY_DONE", "(answered)"]
        and same(heard[0], heard[2]),
        f"{reading}; silos refused {tally(refused)}; the real node: {', '.join(said)} (the first answer again, to the byte)",
        weak.exact == D,
        f"silos that forget what they answered ({len(weak_refused)} refusals): {weak}",
    )


# ── 3: two sets of survivors ─────────────────────────────────────────────────────────────────────


def _two_stories(told: Sequence[Sequence[str]], **options: Any) -> tuple[int, Reading]:
    """Silos ``s2`` … ``s4`` are told different survivors, then all of the others' stories too; each with less to answer."""
    stage = Stage(**options)
    stage.set_up()
    made = vectors(ALL, D)
    spy = stage.spy(["s1"], made)
    for name in ALL:
        stage.send(spy, 1, name, made[name])
    for name, first in zip(ALL[1:], told, strict=True):
        for survivors in dict.fromkeys((first, *told)):
            for answering in (survivors, *_without_one(survivors, name)):
                stage.ask(spy, 1, name, survivors, answering)
    readings = [spy.read(1, name, made[name]) for name in ALL[1:]]
    return spy.honest_sums(1), max(readings, key=lambda r: (r.exact, abs(r.correlation)))


def _without_one(survivors: Sequence[str], name: str) -> list[tuple[str, ...]]:
    """The ways to ask one less of them, as if it had fallen silent, where the threshold of three allows it."""
    return [s for s in itertools.combinations(survivors, 3) if name in s and len(survivors) > 3]


def _mixture(n: int, c: int, *, again: bool = False, **options: Any) -> tuple[Stage, Spy, int]:
    """The attack of decision 7: each honest silo is told a set of its own, so that of every secret enough shares go round.

    Two honest silos are in every set; of each other honest silo t − c hear that it dropped. The last c help.

    Args:
        again: afterwards each is asked for its own set with every one less to answer, as it may be.
    """
    stage = Stage(n, c, **options)
    stage.set_up()
    honest, helpers = stage.names[: n - c], stage.names[n - c :]
    made = vectors(stage.names, 100)
    spy = stage.spy(helpers, made)
    for name in stage.names:
        stage.send(spy, 1, name, made[name])
    dropped: dict[str, list[str]] = {name: [] for name in honest}
    for lost in honest[2:]:
        willing = sorted((s for s in honest if s != lost), key=lambda s: len(dropped[s]))
        for name in willing[: stage.t - c]:
            dropped[name].append(lost)
    sets = {name: tuple(s for s in stage.names if s not in gone) for name, gone in dropped.items()}
    assert min(len(members) for members in sets.values()) >= stage.t, "the silos would say no"
    answers = 0
    for name, members in sets.items():
        answers += stage.ask(spy, 1, name, members) == ""
        for left in [s for s in members if s != name] if again else ():
            stage.ask(spy, 1, name, members, [s for s in members if s != left])
    assert answers == n - c, "a silo said no"
    return stage, spy, len(set(sets.values()))


def _told_alike(n: int, c: int) -> tuple[int, int]:
    """The same spy where all are told one set, and where one of them falls silent: honest vectors in the least sum opened."""
    opened = []
    for silent in (0, 1):
        stage = Stage(n, c)
        stage.set_up()
        made = vectors(stage.names, 100)
        spy = stage.spy(stage.names[n - c :], made)
        for name in stage.names:
            stage.send(spy, 1, name, made[name])
        for name in stage.names[silent : n - c]:
            stage.ask(spy, 1, name, stage.names)
        opened.append(spy.least_honest(1))
    return opened[0], opened[1]


def survivor_sets() -> Outcome:
    sets = [s for size in (3, 4) for s in itertools.combinations(ALL, size)]
    options = [[s for s in sets if name in s] for name in ALL[1:]]
    found = [_two_stories(told) for told in itertools.product(*options)]
    most, readings = max(f[0] for f in found), [f[1] for f in found]
    with play() as rehearsal:
        rehearsal.set_up()
        uploads(rehearsal)
        a, b, c, d = rehearsal.silos
        heard = [
            rehearsal.ask(VICTIM, rehearsal.answer_request(TRAIN, asked))
            for asked in ([a, b, c], [a, b, d], [a, c, d], [a, b, c, d], [a, b, c])
        ]
    said = [word(one) for one in heard]
    node_holds = said == ["(answered)", *["ALREADY_DONE"] * 3, "(answered)"] and same(heard[0], heard[4])
    mixed = [_mixture(n, k, again=n == 7)[1].honest_sums(1) for n, k in MIXED]
    alike = [_told_alike(n, k) for n, k in MIXED]
    weak_sums, weak = _two_stories([ALL[:3], ALL[:3], ALL], journal=Amnesiac)
    plain = [_mixture(n, k, silo=Plain) for n, k in MIXED]
    promised = [stage.t - stage.roster.colluders for stage, *_ in plain]
    got = [spy.least_honest(1) for _, spy, _ in plain]
    worst = max(readings, key=lambda r: (r.exact, abs(r.correlation)))
    return Outcome(
        most == 1 and not any(r.broken for r in readings) and node_holds and not any(mixed),
        f"all {len(found)} ways to tell three honest silos different sets, each asked for all of them and with one less to "
        f"answer: never more than {most} sum opened; the most read of any silo: {worst}; the real node: {', '.join(said)}. "
        f"The mixing attack of decision 7 with n, c = {', '.join(f'{n}, {k}' for n, k in MIXED)} ({plain[0][2]} and "
        f"{plain[1][2]} different sets): {' and '.join(str(m) for m in mixed)} sums opened, however answers are read or "
        f"added up (told alike, the same spy opens one of {' and '.join(str(a[0]) for a in alike)} honest silos; and none "
        "if one of those asked is silent)",
        weak_sums > 1
        and weak.exact == D
        and all(0 < g < p for g, p in zip(got, promised, strict=True))
        and all(a == (n - k, 0) for a, (n, k) in zip(alike, MIXED, strict=True)),
        f"silos that forget what they answered: {weak_sums} sums opened, {weak}; silos that give plain shares, each once: "
        + ", ".join(
            f"a sum of {g} where {p} honest vectors are promised" for g, p in zip(got, promised, strict=True)
        ),
    )


CHECKS = [
    Check("2", "asks for both shares of one silo", HELPED, both_shares),
    Check("3", "asks twice with different survivors", HELPED, survivor_sets),
]
