"""The ledger: what is set aside counts, a crash costs budget and never privacy, tampering shows."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from support.processes import Forked, Say

from foedus.errors import BudgetExceeded, InputError, Refused, VerificationError
from foedus.privacy.accountant import PLD
from foedus.privacy.events import DistributedDiscreteGaussian, Event, NonPrivate
from foedus.privacy.ledger import Cap, Ledger, left

DELTA = 1e-5
WIDE = Cap(100.0, DELTA)
CRM, ADS = "dpv:CustomerRelationshipManagement", "dpv:Advertising"
ONE, TWO = "1" * 64, "2" * 64


def event(*, sigma: float = 2000.0, shares: int = 2) -> DistributedDiscreteGaussian:
    return DistributedDiscreteGaussian(sensitivity=256.0, sigma=sigma, shares=shares, dimension=13)


COST = event()
HALF = event(shares=3)  # the same noise with one more share: cheaper


def cost(*events: Event) -> float:
    return PLD(events).epsilon(DELTA)


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def reserve(
    ledger: Ledger,
    what: Event = COST,
    *,
    purpose: str = CRM,
    study: str = ONE,
    cap: Cap = WIDE,
    study_cap: Cap = WIDE,
) -> int:
    return ledger.reserve(
        what, purpose=purpose, study=study, label="run 1 round 1", cap=cap, study_cap=study_cap
    )


# ── reserve, commit, abort ───────────────────────────────────────────────────────────────────────


def test_a_reservation_counts_at_once_and_a_commit_adds_nothing(ledger: Ledger) -> None:
    assert ledger.epsilon(DELTA) == 0
    ref = reserve(ledger)
    assert ledger.epsilon(DELTA) == cost(COST)
    ledger.commit(ref)
    assert ledger.epsilon(DELTA) == cost(COST)
    reserve(ledger)
    assert ledger.epsilon(DELTA) == pytest.approx(cost(COST, COST))
    assert [line.kind for line in ledger.lines()] == ["reserve", "commit", "reserve"]


def test_only_an_abort_gives_back(ledger: Ledger) -> None:
    kept = reserve(ledger)
    ledger.abort(reserve(ledger))
    assert ledger.epsilon(DELTA) == cost(COST)
    ledger.abort(kept)
    assert ledger.epsilon(DELTA) == 0
    assert len(list(ledger.lines())) == 4  # nothing is ever removed


def test_a_commit_may_be_cheaper_and_not_dearer(ledger: Ledger) -> None:
    ref = reserve(ledger)
    for dearer in (event(sigma=1999.0), event(shares=1), NonPrivate()):
        with pytest.raises(InputError, match="more than was reserved"):
            ledger.commit(ref, dearer)
    assert ledger.epsilon(DELTA) == cost(COST)
    ledger.commit(ref, HALF)
    assert ledger.epsilon(DELTA) == cost(HALF) < cost(COST)


def test_what_is_closed_stays_closed(ledger: Ledger) -> None:
    committed, aborted = reserve(ledger), reserve(ledger)
    ledger.commit(committed)
    ledger.abort(aborted)
    steps: list[Callable[[int], None]] = [ledger.commit, ledger.abort]
    for ref in (committed, aborted, 3, 99, 0, -1):
        for step in steps:
            with pytest.raises(InputError, match="no open reservation"):
                step(ref)
    assert ledger.epsilon(DELTA) == cost(COST)


# ── caps ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_purposes_cap_holds_over_all_studies(ledger: Ledger) -> None:
    cap = Cap(cost(COST, COST) * 1.01, DELTA)
    reserve(ledger, study=ONE, cap=cap)
    reserve(ledger, study=TWO, cap=cap)
    with pytest.raises(BudgetExceeded, match="purpose") as found:
        reserve(ledger, study="3" * 64, cap=cap)
    assert found.value.code == "BUDGET_EXCEEDED"
    reserve(ledger, purpose=ADS, study="3" * 64, cap=cap)  # another purpose has its own
    assert ledger.head.size == 3  # what was refused is not written


def test_the_studys_cap_holds_over_all_purposes(ledger: Ledger) -> None:
    study_cap = Cap(cost(COST) * 1.01, DELTA)
    reserve(ledger, study=ONE, study_cap=study_cap)
    for purpose in (CRM, ADS):
        with pytest.raises(BudgetExceeded, match="study"):
            reserve(ledger, purpose=purpose, study=ONE, study_cap=study_cap)
    reserve(ledger, study=TWO, study_cap=study_cap)


def test_the_cap_is_met_exactly(ledger: Ledger) -> None:
    reserve(ledger, cap=Cap(cost(COST), DELTA))
    with pytest.raises(BudgetExceeded):
        reserve(ledger, event(sigma=1e9), cap=Cap(cost(COST), DELTA))


def test_open_reservations_count_and_aborted_ones_do_not(ledger: Ledger) -> None:
    cap = Cap(cost(COST) * 1.3, DELTA)
    ref = reserve(ledger, cap=cap)
    with pytest.raises(BudgetExceeded):
        reserve(ledger, cap=cap)
    ledger.abort(ref)
    reserve(ledger, cap=cap)


def test_what_is_not_private_passes_no_cap(ledger: Ledger) -> None:
    with pytest.raises(BudgetExceeded):
        reserve(ledger, NonPrivate())
    with pytest.raises(BudgetExceeded):
        reserve(ledger, cap=Cap(float("nan"), DELTA))
    assert ledger.head.size == 0


def test_what_is_left(ledger: Ledger) -> None:
    cap = Cap(4.0, DELTA)
    assert left(ledger, CRM, cap) == 4.0
    reserve(ledger)
    assert left(ledger, CRM, cap) == pytest.approx(4.0 - cost(COST))
    assert left(ledger, ADS, cap) == 4.0
    assert left(ledger, CRM, Cap(cost(COST) / 2, DELTA)) == 0.0


def test_a_new_process_reads_the_same(tmp_path: Path, ledger: Ledger) -> None:
    ledger.commit(reserve(ledger), HALF)
    reserve(ledger, purpose=ADS, study=TWO)
    again = Ledger(tmp_path / "ledger.db")
    assert again.head == ledger.head
    assert again.epsilon(DELTA, purpose=CRM) == cost(HALF)
    assert again.epsilon(DELTA, study=TWO) == cost(COST)
    assert again.events() == [HALF, COST]


# ── crashes and races ────────────────────────────────────────────────────────────────────────────


def test_killed_between_reservation_and_commit_the_reservation_stands(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"

    def work(say: Say) -> None:
        reserve(Ledger(path))
        os.kill(os.getpid(), signal.SIGKILL)

    for died in range(1, 3):
        assert Forked(work).end() == (-9, [])
        ledger = Ledger(path)
        assert [line.kind for line in ledger.lines()] == ["reserve"] * died
        assert len(ledger.events()) == died


def test_killed_at_any_moment_nothing_is_lost_or_doubled(tmp_path: Path) -> None:
    path, clock = tmp_path / "ledger.db", random.Random(5)

    def work(say: Say) -> None:
        ledger = Ledger(path)
        while True:
            ref = reserve(ledger)
            say(f"reserved {ref}")
            ledger.commit(ref)
            say(f"committed {ref}")

    acknowledged: list[str] = []
    for _ in range(12):
        process = Forked(work)
        acknowledged.append(process.line())
        time.sleep(clock.uniform(0, 0.08))
        process.kill()
        code, said = process.end()
        assert code == -9
        acknowledged += said
    lines = list(Ledger(path).lines())  # the chain holds
    reserved = {line.number for line in lines if line.kind == "reserve"}
    committed = [line.ref for line in lines if line.kind == "commit"]
    assert {int(a.split()[1]) for a in acknowledged if a.startswith("reserved")} <= reserved
    assert {int(a.split()[1]) for a in acknowledged if a.startswith("committed")} <= set(committed)
    assert len(set(committed)) == len(committed) and set(committed) <= reserved
    assert len(Ledger(path).events()) == len(reserved)
    assert len(acknowledged) > 20  # the processes did work


def test_two_processes_at_once_can_not_pass_the_cap(tmp_path: Path) -> None:
    path, go = tmp_path / "ledger.db", tmp_path / "go"
    cap = Cap(cost(*[COST] * 7) * 1.0001, DELTA)

    def work(say: Say) -> None:
        ledger = Ledger(path)
        say("ready")
        while not go.exists():
            pass
        for _ in range(6):
            try:
                reserve(ledger, cap=cap)
                say("reserved")
            except BudgetExceeded:
                say("refused")

    racers = [Forked(work) for _ in range(2)]
    assert [racer.line() for racer in racers] == ["ready", "ready"]
    go.touch()
    said = [line for racer in racers for line in racer.end()[1]]
    assert (said.count("reserved"), said.count("refused")) == (7, 5)
    assert Ledger(path).epsilon(DELTA) <= cap.epsilon


def test_threads_share_a_ledger(ledger: Ledger) -> None:
    def work() -> None:
        for _ in range(5):
            ledger.commit(reserve(ledger))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.events()) == 20
    assert ledger.head.size == 40


# ── tampering ────────────────────────────────────────────────────────────────────────────────────


def tamper(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DROP TRIGGER line_no_update")
        connection.execute("DROP TRIGGER line_no_delete")
        for statement in statements:
            connection.execute(statement)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE line SET body = replace(body, '2000', '9000') WHERE number = 1",
        "UPDATE line SET body = replace(body, 'reserve', 'abort') WHERE number = 3",
        "UPDATE line SET hash = replace(hash, substr(hash, 1, 1), 'x') WHERE number = 3",
        "DELETE FROM line WHERE number = 1",
        "DELETE FROM line WHERE number = 2",
        "INSERT INTO line SELECT 5, body, hash || 'x' FROM line WHERE number = 2",
        "INSERT INTO line SELECT 5, replace(body, 'commit', 'abort'), 'abc' FROM line WHERE number = 2",
        "UPDATE line SET number = number + 10 WHERE number = 4",
        "UPDATE line SET body = (SELECT body FROM line WHERE number = 1) WHERE number = 3",
    ],
)
def test_an_altered_line_is_noticed_and_nothing_runs(tmp_path: Path, ledger: Ledger, statement: str) -> None:
    for _ in range(2):
        ledger.commit(reserve(ledger))
    tamper(tmp_path / "ledger.db", statement)
    steps: list[Callable[[], object]] = [
        lambda: list(ledger.lines()), lambda: reserve(ledger), lambda: ledger.epsilon(DELTA), lambda: ledger.commit(3),
        lambda: ledger.head,
    ]  # fmt: skip
    for step in steps:
        with pytest.raises(VerificationError, match="does not follow"):
            step()


def test_sqlite_itself_refuses_changes_while_the_triggers_stand(tmp_path: Path, ledger: Ledger) -> None:
    reserve(ledger)
    with closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
        for statement in ("DELETE FROM line", "UPDATE line SET hash = 'x'"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)


def test_a_tail_cut_off_is_known_to_who_kept_the_head(tmp_path: Path, ledger: Ledger) -> None:
    """The file alone can't tell; a process that read it can, and so can who kept the head (`clients.budget`)."""
    path = tmp_path / "ledger.db"
    reserve(ledger)
    first, copy = ledger.head, path.read_bytes()
    reserve(ledger)
    path.write_bytes(copy)
    assert Ledger(path).verify() == first
    for step in (lambda: reserve(ledger), lambda: ledger.head, ledger.verify):
        with pytest.raises(Refused, match="no longer the beginning") as found:
            step()
        assert found.value.code == "LEDGER_ROLLED_BACK"
    path.unlink()
    with pytest.raises(Refused, match="gone"):
        reserve(ledger)
    assert not path.exists()  # it does not come back empty


def test_dropped_triggers_are_noticed(tmp_path: Path, ledger: Ledger) -> None:
    reserve(ledger)
    tamper(tmp_path / "ledger.db")
    with pytest.raises(VerificationError, match="triggers"):
        reserve(ledger)


def test_a_ledger_is_one_populations(tmp_path: Path) -> None:
    mine, other = Ledger(tmp_path / "mine.db", "shop-a"), Ledger(tmp_path / "other.db", "shop-b")
    assert mine.head.hash != other.head.hash
    reserve(mine)
    with pytest.raises(InputError, match="of shop-a, not of shop-b"):
        Ledger(tmp_path / "mine.db", "shop-b")
    assert Ledger(tmp_path / "mine.db").population == "shop-a"
    with closing(sqlite3.connect(tmp_path / "mine.db")) as connection, connection:
        connection.execute("DROP TRIGGER owner_no_update")
        connection.execute("UPDATE owner SET population = 'shop-b'")
    with pytest.raises(VerificationError):
        Ledger(tmp_path / "mine.db", "shop-b").verify()


@pytest.mark.parametrize(
    "content", [b"this is not a database, it is a text of some length" * 40, b"\0" * 5000]
)
def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(content)
    with pytest.raises(InputError, match="not a ledger"):
        Ledger(path)
    assert path.read_bytes() == content


def test_another_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("CREATE TABLE line (other TEXT)")
    with pytest.raises((InputError, VerificationError)):
        reserve(Ledger(path))
