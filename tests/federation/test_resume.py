"""A coordinator killed after any step goes on from its checkpoint; a node that restarts is back in a later batch."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from flwr.app import Message
from support.orders import copy_of, make_draft
from support.sums import scratch

from foedus.clients.app import SiloApp
from foedus.clients.features import Raw, Side
from foedus.clients.home import Home
from foedus.clients.trainer import Trainer
from foedus.compliance import evidence
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.lineage import Store, read_events
from foedus.demo.simulate import prepare
from foedus.demo.world import World
from foedus.errors import Abandoned, VerificationError
from foedus.federation.pricing import price
from foedus.federation.simulation import LocalGrid
from foedus.federation.study import Draft
from foedus.federation.verification import Report, verify
from foedus.privacy.ledger import Ledger
from foedus.server import release
from foedus.server.checkpoint import Checkpoint
from foedus.server.coordinator import conduct

ROUNDS = 3  # curvature, one of training, evaluation
LOST = 103
WRITES = ("new_batch", "keep_batch", "ask_round", "close_round", "keep_sum", "keep")


class Killed(BaseException):
    """In place of SIGKILL: nothing of ours catches it."""


@dataclass
class Mine:
    """Counts the steps that leave something behind, and kills after the one it is set to."""

    deadly: int | None = None
    steps: list[str] = field(default_factory=list)

    def step(self, name: str) -> None:
        self.steps.append(name)
        if len(self.steps) - 1 == self.deadly:
            raise Killed(name)

    @contextmanager
    def laid(self) -> Iterator[None]:
        """After every message pushed, and everything written to disk, comes a step."""
        with pytest.MonkeyPatch.context() as patch:
            self._after(patch, LocalGrid, "push_messages")
            self._after(patch, evidence, "write")
            self._after(patch, release, "_write")
            for name in WRITES:
                self._after(patch, Checkpoint, name)
            append = AuditLog.append

            def appended(log: AuditLog, actor: str, action: str, *rest: Any, **sealed: Any) -> int:
                found = append(log, actor, action, *rest, **sealed)
                if actor == "coordinator":
                    self.step(action)
                return found

            patch.setattr(AuditLog, "append", appended)
            yield

    def _after(self, patch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def stepped(*arguments: Any, **options: Any) -> Any:
            found = real(*arguments, **options)
            self.step(name)
            return found

        patch.setattr(owner, name, stepped)


class Play:
    """A study whose coordinator is killed again and again, over the same silos, log and checkpoint."""

    def __init__(self, world: World, draft: Draft, **options: Any) -> None:
        self.world, self.told, self.heads = world, [], {}  # type: ignore[var-annotated]
        self.grid, self.case = prepare(world, draft, note=self._note, **options)
        self.case = replace(self.case, acknowledge=self.heads.__setitem__)

    def _note(self, kind: str, data: Any) -> None:
        self.told.append((kind, dict(data)))

    def attempt(self, mine: Mine | None = None) -> Path | None:
        """Another process takes the case; None if it was killed."""
        rounds = frozenset(d["round"] for k, d in self.told if k == "round")
        kept = Checkpoint(self.case.kept.path, study=self.case.study_envelope.digest, run=self.case.run)
        self.case = replace(self.case, kept=kept, heads=dict(self.heads), told=rounds, batches=[], sums=[])
        self.grid = LocalGrid(self.grid._apps, self.grid._keys, drop=self.grid._drop)
        with (mine or Mine()).laid():
            try:
                return conduct(self.grid, self.case)
            except Killed:
                return None

    def restart(self, node: int) -> None:
        """A node's process ends and another begins, over the same directory."""
        self.grid._apps[node] = SiloApp(Home.load(list(self.world.homes.values())[node - 100]))

    def check(self, path: Path) -> Report:
        """What must hold however often anybody was killed, of the server and of nodes that never were."""
        report = verify(path)
        assert len(report.checks) == 10
        once = {"round.summed": "round", "run.set-up": "batch", "receipt": "silo", "released": "file"}
        entries = [e.record for e in self.case.log.entries()]
        logged = Counter((e["action"], e["details"].get(once.get(e["action"], ""))) for e in entries)
        assert all(n == 1 for (action, _), n in logged.items() if action != "study.approved")
        assert [e["action"] for e in entries][-1] == "run.finished"
        told = [data["round"] for kind, data in self.told if kind == "round"]
        assert told == list(range(1, self.case.study.rounds + 1))
        # a pair for the run, for each sum, for each silo, for each release: none twice, none half
        lineage = read_events(self.case.out / "lineage.jsonl")
        silos = {s for who in report.survivors.values() for s in who}
        parts = 1 + self.case.study.rounds + len(silos) + 2
        assert len(lineage) == 2 * parts == len({(e["run"]["runId"], e["eventType"]) for e in lineage})
        assert not list(self.case.out.glob("*.partial"))
        return report

    def check_ledger(self, silo: str, report: Report) -> None:
        """Exactly one settled line for each round the silo was in, and the bundle's ε."""
        lines = list(Ledger(self.world.homes[silo] / "ledger.db").lines())
        was_in = [n for n, who in report.survivors.items() if silo in who]
        for kind in ("reserve", "commit"):
            assert [line.kind for line in lines].count(kind) == len(was_in), (silo, kind)
        assert not [line for line in lines if line.kind == "abort"]
        assert Ledger(self.world.homes[silo] / "ledger.db").epsilon(
            self.case.study.privacy.delta
        ) == pytest.approx(report.epsilon, abs=1e-12)
        assert Store(self.world.homes[silo] / "lineage.db").open_runs() == []
        with AuditedJournal(self.world.homes[silo]) as done:
            assert done["upload"] == done["answer"] == was_in


class AuditedJournal:
    """A node's journal: step -> numbers, in order."""

    def __init__(self, home: Path) -> None:
        self._path = home / "journal.db"

    def __enter__(self) -> dict[str, list[int]]:
        import sqlite3

        db = sqlite3.connect(self._path)
        rows = db.execute("SELECT step, number FROM done ORDER BY number").fetchall()
        db.close()
        return {step: [n for s, n in rows if s == step] for step in ("set-up", "upload", "answer")}

    def __exit__(self, *_: object) -> None:
        pass


DRAFT = make_draft(rounds=1, trip_seconds=0.3)


@pytest.fixture(scope="module", autouse=True)
def _tables_are_read_once() -> Iterator[None]:
    """All worlds here are copies of one: the first node that asks for a side of a table reads it for all."""
    real = Trainer.dataset
    read: dict[tuple[Any, ...], Raw] = {}

    def dataset(trainer: Trainer, side: Side, cohort: pd.DataFrame) -> Raw:
        study = trainer.study
        key = (trainer.source.party, side, str(study.split), str(study.label), *cohort["subject"])
        if key not in read:
            read[key] = real(trainer, side, cohort)
        return read[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "dataset", dataset)
        yield


@pytest.fixture
def copies(fresh_world: World) -> Iterator[Callable[[], World]]:
    folders = []

    def copy() -> World:
        folders.append(scratch())
        return copy_of(fresh_world, folders[-1] / "world")

    yield copy
    for folder in folders:
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def steps(fresh_world: World, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The steps of a run that nobody kills."""
    mine = Mine()
    play = Play(copy_of(fresh_world, tmp_path_factory.mktemp("steps") / "world"), DRAFT)
    path = play.attempt(mine)
    assert path is not None
    report = play.check(path)
    for silo in play.world.homes:
        play.check_ledger(silo, report)
    return mine.steps


# ── the coordinator ──────────────────────────────────────────────────────────────────────────────


def test_every_kind_of_step_is_among_those_killed_after(steps: list[str]) -> None:
    pushes = 2 + 2 * ROUNDS + 1
    assert steps.count("push_messages") == pushes
    assert {*WRITES, "write", "_write", "run.set-up", "round.summed", "receipt", "released"} <= set(steps)
    assert steps[-1] == "run.finished"


@pytest.mark.parametrize("part", range(6))
def test_killed_once_after_any_step_the_run_goes_on(
    steps: list[str], copies: Callable[[], World], part: int
) -> None:
    for deadly in range(part, len(steps), 6):
        play = Play(copies(), DRAFT)
        assert play.attempt(Mine(deadly)) is None
        path = play.attempt()
        assert path is not None, steps[deadly]
        report = play.check(path)
        everybody = tuple(sorted(play.world.homes))
        assert set(report.survivors.values()) == {everybody}, steps[deadly]
        assert report.epsilon == price(
            play.case.study, play.world.treaty, survivors=dict.fromkeys(range(1, ROUNDS + 1), 4)
        )
        for silo in everybody:
            play.check_ledger(silo, report)


def test_killed_after_every_step_one_after_the_other_the_run_ends_all_the_same(
    copies: Callable[[], World],
) -> None:
    play, kills = Play(copies(), make_draft(rounds=2, trip_seconds=0.3)), 0
    while True:
        # A step's name may come again: the attempt dies once it has got one *new* thing onto the disk.
        before = _disk(play)
        path, done = None, 0
        while path is None and _disk(play) == before:
            path, done = play.attempt(Mine(done)), done + 1
            assert done < 60
        if path is not None:
            break
        kills += 1
        assert kills < 100
    assert kills > 25
    report = play.check(path)
    assert {len(who) for who in report.survivors.values()} == {4}
    for silo in play.world.homes:
        play.check_ledger(silo, report)


def _disk(play: Play) -> tuple[int, ...]:
    """How far everybody has come: log entries, sums, batches, files, and what the nodes have done."""
    kept = play.case.kept
    nodes = 0
    for home in play.world.homes.values():
        with AuditedJournal(home) as done:
            nodes += len(done["upload"]) + len(done["answer"])  # an unfinished set-up gets nobody further
    return (
        play.case.log.size,
        len(kept.sums()),
        len(kept.batches()),
        kept.closed() is not None,
        kept.kept("receipts") is not None,
        kept.kept("end") is not None,
        sum(1 for _ in play.case.out.glob("*")) if play.case.out.exists() else 0,
        nodes,
    )


def test_a_closed_round_is_opened_over_the_same_survivors_and_no_others(
    copies: Callable[[], World], steps: list[str]
) -> None:
    lost = {"query.vector"}
    drop = lambda node, kind, message: node == LOST and kind in lost
    play = Play(copies(), DRAFT, drop=drop)
    deadly = steps.index("close_round")
    assert play.attempt(Mine(deadly)) is None
    lost.clear()  # the fourth silo is there again, before the sum is opened: too late for this round
    path = play.attempt()
    assert path is not None
    report = play.check(path)
    assert [len(report.survivors[n]) for n in sorted(report.survivors)] == [3, 4, 4]


def test_a_batch_number_is_never_given_twice(copies: Callable[[], World], steps: list[str]) -> None:
    play = Play(copies(), DRAFT)
    for deadly in (0, 1, 2):  # the number is kept; keys were asked; shares were asked
        assert play.attempt(Mine(deadly)) is None
    path = play.attempt()
    assert path is not None
    report = play.check(path)
    with AuditedJournal(play.world.homes["aster-music"]) as done:
        assert done["set-up"] == [1, 2, 3]
    play.check_ledger("aster-music", report)


def test_nodes_that_forgot_their_keys_end_the_run_rather_than_send_a_vector_twice(
    copies: Callable[[], World], steps: list[str]
) -> None:
    play = Play(copies(), DRAFT)
    asked = [i for i, name in enumerate(steps) if name == "push_messages"][2]  # the vectors of round 1
    assert play.attempt(Mine(asked)) is None
    for node in (101, 102, LOST):
        play.restart(node)
    with pytest.raises(Abandoned, match="1 of 4 silos"):
        play.attempt()
    for home in play.world.homes.values():
        with AuditedJournal(home) as done:
            assert (done["upload"], done["answer"]) == ([1], [])


def test_a_log_that_says_otherwise_than_the_checkpoint_stops_the_run(
    copies: Callable[[], World], steps: list[str]
) -> None:
    play = Play(copies(), DRAFT)
    deadly = steps.index("keep_sum")
    assert play.attempt(Mine(deadly)) is None
    told = {"run": play.case.run, "round": 1, "task": "curvature", "survivors": [], "sum": "0" * 64}
    play.case.log.append("coordinator", "round.summed", play.case.study_envelope.digest, told)
    with pytest.raises(VerificationError, match=r"another 'round\.summed'"):
        play.attempt()


def test_a_run_that_the_log_calls_failed_is_not_taken_up(copies: Callable[[], World]) -> None:
    play = Play(copies(), DRAFT)
    assert play.attempt(Mine(5)) is None
    play.case.log.append("coordinator", "run.failed", play.case.study_envelope.digest, {"run": "1"})
    with pytest.raises(Abandoned, match=r"run\.failed"):
        play.attempt()


# ── the nodes ────────────────────────────────────────────────────────────────────────────────────


def restarting(play: Play, at: int) -> None:
    """Restart the fourth node when it has answered its `at`-th message."""
    seen = 0
    real = play.grid._apps[LOST]

    def app(message: Message, context: Any) -> Message:
        nonlocal seen
        seen += 1
        reply = real(message, context)
        if seen == at:
            play.restart(LOST)
        return reply

    play.grid._apps[LOST] = app


@pytest.mark.parametrize("heard", [True, False], ids=["its reply arrives", "its reply is lost"])
def test_a_node_restarted_at_any_message_is_back_in_a_later_batch(
    copies: Callable[[], World], heard: bool
) -> None:
    """It has done its part and written it down, and then its process ends."""
    rounds = 5  # curvature, three of training, evaluation
    for at in range(1, 2 + 2 * rounds + 1):
        replies = 0

        def lost(node: int, kind: str, message: Message, at: int = at) -> bool:
            nonlocal replies
            replies += node == LOST
            return not heard and node == LOST and replies == at

        play = Play(copies(), make_draft(rounds=3, trip_seconds=0.3), lose_reply=lost)
        restarting(play, at)
        path = conduct(play.grid, play.case)
        report = play.check(path)
        was_in = [n for n in range(1, rounds + 1) if "dune-media" in report.survivors[n]]
        assert all(len(report.survivors[n]) >= 3 for n in range(1, rounds + 1))
        assert len(was_in) >= rounds - 1, (at, was_in)
        batches = [b.context.batch for b in play.case.batches]
        if len(was_in) < rounds and was_in[-1] == rounds and at > 2:
            assert len(batches) == 2
            (kind,) = [data for kind, data in play.told if kind == "rejoined"]
            assert kind["silos"] == ["dune-media"]
        for silo in ("aster-music", "birch-records", "cedar-sound"):
            play.check_ledger(silo, report)
        Ledger(play.world.homes["dune-media"] / "ledger.db").head  # noqa: B018 - its chain holds


def test_a_silo_that_says_no_is_not_asked_again(copies: Callable[[], World]) -> None:
    play = Play(copies(), make_draft(rounds=3, trip_seconds=0.3))
    knocks = refusing(play, "query.vector", "COHORT_TOO_SMALL")
    report = play.check(conduct(play.grid, play.case))
    assert {len(who) for who in report.survivors.values()} == {3}
    assert knocks() == 1


def test_a_silo_that_fails_each_set_up_is_asked_less_and_less(copies: Callable[[], World]) -> None:
    play = Play(copies(), make_draft(rounds=8, trip_seconds=0.3))
    keys = refusing(play, "query.shares", "NO_SET_UP")
    report = play.check(conduct(play.grid, play.case))
    assert {len(who) for who in report.survivors.values()} == {3}
    # rounds 1 to 10: tried at 2, 4 (2 + 2) and 8 (4 + 4); each time a knock and a set-up, and one at first
    assert [d["round"] for k, d in play.told if k == "rejoin-failed"] == [2, 4, 8]
    assert keys() == 1 + 2 * 3
    assert [b.context.batch for b in play.case.batches] == [0]


def refusing(play: Play, kind: str, code: str) -> Callable[[], int]:
    """The fourth node refuses every message of a kind; returns how often it was asked for keys."""
    from foedus.federation import messages as m

    real, asked = play.grid._apps[LOST], Counter[str]()

    def app(message: Message, context: Any) -> Message:
        asked[message.metadata.message_type] += 1
        if message.metadata.message_type != kind:
            return real(message, context)
        return Message(m.Refusal(code=code, message="no", log_size=0).record(), reply_to=message)

    play.grid._apps[LOST] = app
    return lambda: asked["query.keys"]


def test_a_silo_that_was_not_there_at_the_roll_call_joins_later(copies: Callable[[], World]) -> None:
    play = Play(copies(), make_draft(rounds=3, trip_seconds=0.3))
    there, keys = False, dict(play.grid._keys)
    nodes = LocalGrid.get_nodes

    def note(kind: str, data: Any) -> None:
        nonlocal there
        play.told.append((kind, dict(data)))
        there = there or (kind == "round" and data["round"] == 2)

    def some(grid: LocalGrid) -> Iterable[Any]:
        found = nodes(grid)
        return found if there else [n for n in found if n.node_id != LOST]

    play.case = replace(play.case, note=note)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LocalGrid, "get_nodes", some)
        patch.setattr("foedus.server.coordinator._ROLL_CALL_SECONDS", 0.1)
        patch.setattr("foedus.server.coordinator.roll_call.__kwdefaults__", {"seconds": 0.1})
        report = play.check(conduct(play.grid, play.case))
    assert keys == play.grid._keys
    assert [len(report.survivors[n]) for n in sorted(report.survivors)] == [3, 3, 4, 4, 4]
