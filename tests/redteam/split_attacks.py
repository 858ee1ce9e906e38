"""Check 10b: a server with two histories of its log, each shown to some of the nodes; one silo cosigns both for it."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import combinations
from unittest.mock import patch

from redteam.checks import Check, Outcome, tally
from redteam.node_support import play
from support.split import TwoFaced

from foedus.clients.guard import Guard

_HONEST = 3  # of four; the last one is in league with the server


def _splits(silos: list[str]) -> list[tuple[str, ...]]:
    """Every way to tell the honest nodes apart, one or two of them on the left."""
    return [left for size in (1, 2) for left in combinations(silos[:_HONEST], size)]


def split_view() -> Outcome:
    seen: dict[str, str] = {}
    both, sides = 0, 0
    with play() as first:
        splits = _splits(first.silos)
    for left in splits:
        with play() as rehearsal:
            server = TwoFaced(rehearsal, left, colluders=rehearsal.silos[_HONEST:])
            server.attack()
            seen |= {f"{left}: {silo}": code for silo, code in server.refused.items()}
            honest = rehearsal.silos[:_HONEST]
            given = {id(server.sides[silo]) for silo in server.vectors if silo in honest}
            sides += len(given)
            both += len(given) > 1
    with ExitStack() as stack:
        rehearsal = stack.enter_context(play())
        stack.enter_context(patch.object(Guard, "require_quorum", lambda *_: None))
        server = TwoFaced(rehearsal, splits[0], colluders=rehearsal.silos[_HONEST:])
        server.attack()
        fell = {id(server.sides[silo]) for silo in server.vectors if silo in rehearsal.silos[:_HONEST]}
    return Outcome(
        both == 0 and bool(seen),
        f"{len(splits)} ways to show honest nodes two logs, one silo cosigning both: {tally(seen)} before any share was "
        f"dealt; vectors came from nodes of one log, never of both ({sides} of {2 * len(splits)} sides)",
        len(fell) == 2,
        "nodes that ask for no quorum: vectors come from nodes of both logs",
    )


CHECKS = [Check("10b", "shows two logs to two groups", "server + 1 silo", split_view)]
