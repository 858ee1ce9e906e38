"""The batches of a run: set up, taken up again after a kill, and set up anew when a lost silo is back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from flwr.serverapp import Grid

from ..errors import Abandoned
from ..federation.messages import LOG_SIZE_UNKNOWN
from ..federation.secure_sum import (
    ABSENT,
    NODE_FAILED,
    SET_UP_PATIENCE,
    SILENT,
    SecureSum,
    Silence,
)
from ..privacy.secagg.keys import Context, Roster
from .case import Case
from .checkpoint import Closed

BATCH_ROUNDS = 100
_COSIGN_TRIES = 3
_REJOIN_PATIENCE = 1.0  # times a trip's deadline: the others wait for a newcomer's set-up no longer than this
# Who is out for one of these may come back in the run. Every other reason is the silo's own no (budget,
# consent, cohort, approvals) or nonsense that it sent: asking again would not change it.
_PASSING = frozenset({ABSENT, LOG_SIZE_UNKNOWN, NODE_FAILED, "NO_SET_UP", SILENT})
Begin = Callable[[int, Mapping[str, int]], SecureSum]


def connected(grid: Grid, case: Case) -> dict[str, int]:
    """The silos whose nodes are connected now: party name -> Flower node id; other nodes are ignored."""
    by_key = {party.node_key.strip(): party.name for party in case.treaty.parties}
    found = {}
    for node in grid.get_nodes():
        name = by_key.get(bytes(node.public_key).decode(errors="replace").strip())
        if name is not None:
            found[name] = int(node.node_id)
    return found


class Batches:
    """Which batch a round runs in. A batch's number is on disk before anybody is asked for its keys.

    Args:
        nodes: the roll call: silo -> Flower node id.
    """

    def __init__(self, grid: Grid, case: Case, nodes: Mapping[str, int]) -> None:
        self._grid, self._case, self._nodes = grid, case, dict(nodes)
        self._absent = _Absent(grid, case, self._begin)
        self._current: SecureSum | None = None
        for kept in case.kept.batches():
            self._adopt(self._make(kept.number, kept.rounds, self._nodes))
            self.current.restore(kept.state)
            self._record(self.current)
        closed = case.kept.closed()
        if closed is not None:
            self.current.restore_round(closed.round, closed.state, closed.total)

    @property
    def current(self) -> SecureSum:
        """The batch in use.

        Raises:
            Abandoned: there is none.
        """
        if self._current is None:
            raise Abandoned("no batch of rounds was set up")
        return self._current

    def for_round(self, number: int) -> SecureSum:
        """The batch to sum this round in.

        1. After the last round of a batch there is a new one, with every silo that is connected.
        2. A round that was asked for before goes on in its batch: no silo sends its vector under other keys.
        3. With silos that were lost and are back there is a new one, if that makes more silos than there are.

        Raises:
            Abandoned: by 1, fewer than t silos.
        """
        current = self._current
        if current is None or number not in current.context.rounds:  # 1.
            return self._set_up(number)
        if self._case.kept.asked(number) is None:  # 2.
            back = self._absent.look(current, number)
            if back:
                self._rejoin(current, number, back)  # 3.
        return self.current

    def _set_up(self, number: int) -> SecureSum:
        """A new batch, with every silo there is: one that was lost may be back."""
        if self._current is not None:
            self._nodes |= connected(self._grid, self._case)
        batch = self._begin(number, self._nodes)
        try:
            self._ask_keys(batch, SET_UP_PATIENCE)
        except Abandoned as error:
            said = "; ".join(f"{s.silo}: {s.code}: {s.message}" for s in batch.out.values())
            raise Abandoned(f"{error.message} ({said})", remedy=error.remedy) from error
        self._keep(batch)
        return batch

    def _rejoin(self, current: SecureSum, number: int, back: Mapping[str, int]) -> None:
        self._nodes |= back
        there = {silo: self._nodes[silo] for silo in (*current.present, *back)}
        batch = self._begin(number, there)
        try:
            self._ask_keys(batch, _REJOIN_PATIENCE)
        except Abandoned:
            joined: tuple[str, ...] = ()
        else:
            joined = batch.aggregator.participants
        if len(joined) > len(current.present):
            self._keep(batch)
            self._case.note("rejoined", {"silos": sorted(set(back) & set(joined)), "round": number})
        else:
            self._case.note("rejoin-failed", {"silos": sorted(back), "round": number})
        self._absent.tried(back, number)

    def _begin(self, first: int, nodes: Mapping[str, int]) -> SecureSum:
        """A batch of a new number, for round `first` and those after it; nobody has been asked."""
        rounds = tuple(range(first, min(first + BATCH_ROUNDS, self._case.study.rounds + 1)))
        return self._make(self._case.kept.new_batch(rounds), rounds, nodes)

    def _make(self, number: int, rounds: tuple[int, ...], nodes: Mapping[str, int]) -> SecureSum:
        case, treaty = self._case, self._case.treaty

        def closed(round_number: int) -> None:
            state, total = batch.aggregator.round_state(round_number)
            case.kept.close_round(Closed(round_number, number, state, total))

        batch = SecureSum(
            grid=self._grid,
            nodes=dict(nodes),
            roster=Roster({p.name: p.signing_key for p in treaty.parties}, treaty.colluders),
            context=Context(
                treaty=case.treaty_envelope.digest,
                study=case.study_envelope.digest,
                run=case.run,
                batch=number,
                rounds=rounds,
            ),
            seconds=case.study.trip_seconds,
            head=case.head,
            acknowledge=case.seen,
            closed=closed,
            observe=case.note,
            pause=case.pause,
            sampler=case.sampler,
            ledger=case.take_ledger,
            witnesses=case.cosigned,
        )
        return batch

    def cosigned(self, note: str) -> str:
        """A head of the log under the cosignatures of every node that is connected, of those out of the run too.

        Raises:
            Abandoned: fewer than the treaty's quorum have cosigned it, three times asked.
        """
        case, size = self._case, int(note.split("\n")[1])
        context = self.current.context
        with case.cosigned.one_head(note):
            for _ in range(_COSIGN_TRIES):
                asked = connected(self._grid, case)
                lacking = {silo: node for silo, node in asked.items() if silo not in case.cosigned.by(size)}
                carrier = self._make(context.batch, context.rounds, lacking)
                carrier.observe = lambda kind, data: (
                    None
                )  # who is silent now is named below, and left no round
                carrier.cosign()
                if len(by := case.cosigned.by(size)) >= case.treaty.quorum:
                    break
        missing = sorted(set(case.treaty.witnesses) - set(by))
        told = {"size": size, "by": by, "missing": missing, "quorum": case.treaty.quorum}
        case.note("log-cosigned", told)
        if len(by) < case.treaty.quorum:
            raise Abandoned(
                f"the log's last head is cosigned by {len(by)} parties' nodes, {case.treaty.quorum} must; missing: "
                f"{', '.join(missing)}",
                remedy="see the nodes' own logs for why; the study can be run again",
            )
        return case.cosigned.whole(size)

    def _ask_keys(self, batch: SecureSum, patience: float) -> None:
        context = batch.context
        batch.set_up(
            lambda silo: self._case.keys_request(silo, context.batch, list(context.rounds)), patience=patience
        )

    def _keep(self, batch: SecureSum) -> None:
        parts, stated = batch.aggregator.participants, self._case.ledgers
        # Before the batch is: its entry in the audit log must come out the same after a kill.
        self._case.kept.keep(_ledgers(batch), {silo: stated[silo] for silo in parts if silo in stated})
        self._case.kept.keep_batch(batch.context.batch, batch.aggregator.set_up_state())
        self._record(batch)
        self._adopt(batch)

    def _record(self, batch: SecureSum) -> None:
        told = {
            "batch": batch.context.batch,
            "participants": list(batch.aggregator.participants),
            "ledgers": self._case.kept.kept(_ledgers(batch)) or {},
        }
        self._case.record("run.set-up", told, once=("batch",))

    def _adopt(self, batch: SecureSum) -> None:
        self._current = batch
        self._case.batches.append(batch)


def _ledgers(batch: SecureSum) -> str:
    return f"ledgers of batch {batch.context.batch}"


@dataclass
class _Missing:
    """What is known of a silo that is out: when to ask it again, and the knock nobody has answered yet."""

    tries: int = 0
    next_round: int = 0
    knock: SecureSum | None = None
    knocked: float = 0.0
    refused: bool = False

    def later(self, number: int) -> None:
        """Ask it less and less often, lest it cost the others a set-up a round."""
        self.tries += 1
        self.next_round = number + 2**self.tries


class _Absent:
    """Looks, at the border of two rounds, whether a silo that is out is back.

    Nobody waits for it: a knock is set-up's first message, for a batch of its own that is never used; the
    round goes on, and the reply is looked for at the next border. So a dead node delays nobody, and one
    that reads its table for the first time delays nobody either.
    """

    def __init__(self, grid: Grid, case: Case, begin: Begin) -> None:
        self._grid, self._case, self._begin = grid, case, begin
        self._missing: dict[str, _Missing] = {}

    def look(self, current: SecureSum, number: int) -> dict[str, int]:
        """The silos that have answered a knock, and so would take part: name -> node id."""
        out = [p.name for p in self._case.treaty.parties if p.name not in current.present]
        due = [silo for silo in out if self._is_due(silo, current.out.get(silo), number)]
        there = connected(self._grid, self._case) if due else {}
        for silo in due:
            if silo in there:
                self._knock(silo, there[silo], number)
        return {silo: node for silo in out if (node := self._answer(silo, number)) is not None}

    def tried(self, silos: Iterable[str], number: int) -> None:
        """A set-up with these silos was made, whatever came of it."""
        for silo in silos:
            self._missing[silo].later(number)

    def _is_due(self, silo: str, why: Silence | None, number: int) -> bool:
        seen = self._missing.setdefault(silo, _Missing())
        seen.refused |= why is not None and why.code not in _PASSING
        if seen.knock is not None and time.monotonic() - seen.knocked > seen.knock.time_to_live():
            seen.knock = None
        return not seen.refused and seen.knock is None and number >= seen.next_round

    def _knock(self, silo: str, node: int, number: int) -> SecureSum:
        batch, seen = self._begin(number, {silo: node}), self._missing[silo]
        context = batch.context
        batch.knock(silo, self._case.keys_request(silo, context.batch, list(context.rounds)))
        seen.knock, seen.knocked = batch, time.monotonic()
        return batch

    def _answer(self, silo: str, number: int) -> int | None:
        """The node id of a silo that advertised keys; None if it did not (yet)."""
        seen = self._missing[silo]
        knock, corrected = seen.knock, False
        while knock is not None and silo in (heard := knock.heard()):
            why, node = heard[silo], knock.nodes[silo]
            seen.knock = None
            if why is None:
                return node
            if why.code == LOG_SIZE_UNKNOWN and not corrected:  # it is there; a reply of its own was lost
                knock, corrected = self._knock(silo, node, number), True
                continue
            seen.refused = why.code not in _PASSING
            seen.later(number)
            told = {"silo": silo, "code": why.code, "message": why.message}
            self._case.note("silo-stays-out", told)
            break
        return None
