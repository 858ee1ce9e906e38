"""One duty, two stores: what a log must do in an SQLite file and in PostgreSQL; and PostgreSQL's own troubles."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from support import killing, log_attacks, postgres

from foedus.compliance.auditlog import merkle
from foedus.compliance.auditlog import postgres as store
from foedus.compliance.auditlog.checkpoint import open_checkpoint
from foedus.compliance.auditlog.log import AuditLog, customer_key
from foedus.compliance.auditlog.postgres_schema import ddl
from foedus.documents import SigningKey
from foedus.errors import FoedusError, InputError, Unreachable, VerificationError

ORIGIN = "treaty.example/log"
NOW = datetime(2026, 11, 22, 13, 48, 57, 123456, tzinfo=UTC)
needs_postgres = pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "-")


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    with postgres.cluster() as made:
        yield made


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=needs_postgres)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a log may be, or come to be."""
    if request.param == "sqlite":
        return tmp_path / "audit.db"
    made: postgres.Cluster = request.getfixturevalue("cluster")
    return made.log()


def opened(place: Path | str, tmp_path: Path) -> AuditLog:
    return AuditLog(place, ORIGIN, clock=lambda: NOW, keys=tmp_path / "audit-keys")


@pytest.fixture
def log(place: Path | str, tmp_path: Path) -> AuditLog:
    return opened(place, tmp_path)


def fill(log: AuditLog, count: int) -> None:
    log.append_many([("dpo@bank", "study.approve", f"客户-{i}", {"n": i}) for i in range(count)])


# ── both ─────────────────────────────────────────────────────────────────────────────────────────


def test_the_same_entries_give_the_same_roots_and_proofs(log: AuditLog, tmp_path: Path) -> None:
    fill(log, 20)
    fill(log, 13)
    assert log.append("a", "b", "", {"ε": 1.5}) == 33
    assert log.append_many([]) == range(34, 34)
    expected = AuditLog(tmp_path / "expected.db", ORIGIN, clock=lambda: NOW)
    fill(expected, 20)
    fill(expected, 13)
    expected.append("a", "b", "", {"ε": 1.5})
    assert list(log.entries()) == list(expected.entries())
    assert [e.index for e in log.entries(5, 9)] == [5, 6, 7, 8]
    for size in range(0, 35, 3):
        root = log.root(size)
        assert root == expected.root(size)
        assert log.edge(size) == expected.edge(size)
        for index in range(0, size, 5):
            proof = log.inclusion_proof(index, size)
            assert proof == expected.inclusion_proof(index, size)
            merkle.verify_inclusion(next(log.entries(index, index + 1)).leaf, index, size, proof, root)
        for old in range(0, size + 1, 4):
            proof = log.consistency_proof(old, size)
            assert proof == expected.consistency_proof(old, size)
            merkle.verify_consistency(old, log.root(old), size, root, proof)
    assert log.inclusion_proofs(range(34)) == expected.inclusion_proofs(range(34))
    key = SigningKey.generate()
    head = open_checkpoint(log.checkpoint(ORIGIN, key), ORIGIN, key.public)
    assert (head.size, head.root) == (34, expected.root())
    log.check()


def test_it_is_there_when_it_is_opened_again(log: AuditLog, place: Path | str, tmp_path: Path) -> None:
    fill(log, 5)
    again = AuditLog(place, ORIGIN, create=False)
    assert (again.size, again.root()) == (5, log.root())
    with pytest.raises(InputError, match=r"not of other\.example"):
        AuditLog(place, "other.example")
    with pytest.raises(InputError, match="printable"):
        AuditLog(place, "")


def test_a_bad_row_leaves_nothing(log: AuditLog) -> None:
    with pytest.raises(InputError):
        log.append_many([("a", "b", "c", {}), ("a", "b", "c", {"n": 2**60})])
    log._clock = lambda: datetime(2026, 1, 1)
    with pytest.raises(InputError, match="timezone"):
        log.append("a", "b", "c", {})
    assert log.size == 0
    log._clock = lambda: NOW
    assert log.append("a", "b", "c", {}) == 0


def test_what_the_log_never_was_is_refused(log: AuditLog) -> None:
    fill(log, 3)
    asks: list[Callable[[], object]] = [
        lambda: log.root(4),
        lambda: log.root(-1),
        lambda: log.inclusion_proof(3, 3),
        lambda: log.inclusion_proof(0, 4),
        lambda: log.consistency_proof(2, 4),
        lambda: log.consistency_proof(3, 2),
        lambda: list(log.entries(0, 4)),
    ]
    for ask in asks:
        with pytest.raises(InputError):
            ask()


def test_threads_that_share_it_lose_nothing(log: AuditLog, place: Path | str, tmp_path: Path) -> None:
    other, told, proofs = opened(place, tmp_path), list[tuple[int, str]](), list[int]()

    def run(name: str, mine: AuditLog) -> None:
        for _ in range(15):
            index = mine.append(name, "write", "", {})
            told.append((index, name))
            proofs.append(len(mine.inclusion_proof(index)))

    threads = [threading.Thread(target=run, args=(f"t{i}", (log, other)[i % 2])) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(i for i, _ in told) == list(range(90))
    records = [entry.record["actor"] for entry in log.entries()]
    assert all(records[index] == name for index, name in told)
    log.check()


def test_what_is_sealed_is_shredded_and_the_log_verifies(log: AuditLog, tmp_path: Path) -> None:
    for name in ("ada", "bob", "ada"):
        log.append("bank-a", "consent.granted", "customer", {}, sealed={"who": name}, key=customer_key(name))
    opening = log.open_payload(1)
    assert opening is not None
    assert opening.payload == {"who": "bob"}
    root = log.root(3)
    assert log.shred("bank-a", customer_key("ada")) == 2
    assert log.open_payload(0) is None
    assert log.open_payload(1) is not None
    assert log.root(3) == root
    log.check()
    for path in (tmp_path / "audit-keys").glob("*.key"):
        path.unlink()
    with pytest.raises(VerificationError, match="3 sealed payloads"):
        log.check()


@pytest.mark.parametrize("kind", ["sqlite", pytest.param("postgres", marks=needs_postgres)])
def test_every_attack_by_the_owner_is_noticed(kind: str, request: pytest.FixtureRequest) -> None:
    ground = log_attacks.File() if kind == "sqlite" else postgres.Ground(request.getfixturevalue("cluster"))
    table = log_attacks.many(48, seed=7, ground=ground)
    assert table.fine, list(table.rows())
    assert all(table.cases[name] == 6 for name in log_attacks.KINDS)


def test_kill_9_takes_nothing_acknowledged(place: Path | str, tmp_path: Path) -> None:
    where = [place] if isinstance(place, str) else []
    command = [sys.executable, str(killing.__file__), str(tmp_path), "6", "1", *where]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=240)
    found = json.loads(done.stdout)
    assert found["faults"] == []
    assert found["entries"] >= found["acknowledged"] > 6


# ── PostgreSQL: its owner, its roles ─────────────────────────────────────────────────────────────


@needs_postgres
class TestRoles:
    @pytest.fixture
    def url(self, cluster: postgres.Cluster) -> str:
        return cluster.log()

    def statement(self, cluster: postgres.Cluster, url: str, role: str, statement: str) -> None:
        import psycopg

        with psycopg.connect(cluster.url(role), autocommit=True) as db:
            db.execute(statement.replace("log.", url.partition("#")[2] + ".").encode())

    CHANGES = (
        "UPDATE log.entry SET body = ''",
        "DELETE FROM log.node",
        "TRUNCATE log.entry",
        "DELETE FROM log.payload",
        "UPDATE log.log SET origin = 'x'",
    )

    @pytest.mark.parametrize("change", CHANGES)
    def test_neither_the_app_nor_by_accident_its_owner_changes_a_row(
        self, cluster: postgres.Cluster, url: str, change: str
    ) -> None:
        import psycopg

        log = AuditLog(url, ORIGIN)
        fill(log, 2)
        self.statement(cluster, url, "owner", "INSERT INTO log.payload VALUES (sha256(''), 'k', '')")
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            self.statement(cluster, url, "app", change)
        with pytest.raises(psycopg.errors.IntegrityError, match="append-only"):
            self.statement(cluster, url, "owner", change)
        log.check()

    @pytest.mark.parametrize(
        "row",
        [
            "entry VALUES (7, '')",
            "entry VALUES (1, '')",
            "log VALUES ('other')",
            "node VALUES (0, 0, sha256(''))",
        ],
    )
    def test_a_row_out_of_order_is_refused(self, cluster: postgres.Cluster, url: str, row: str) -> None:
        import psycopg

        fill(AuditLog(url, ORIGIN), 2)
        with pytest.raises(psycopg.errors.IntegrityError):
            self.statement(cluster, url, "app", f"INSERT INTO log.{row}")

    @pytest.mark.parametrize(
        "change",
        [
            "ALTER TABLE log.entry DISABLE TRIGGER entry_change",
            "ALTER TABLE log.entry ENABLE TRIGGER entry_change",  # and no more ALWAYS
            "DROP TRIGGER node_truncate ON log.node",
            "CREATE OR REPLACE FUNCTION log.refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
            "ALTER TABLE log.node DROP CONSTRAINT node_pkey",
            "ALTER TABLE log.entry ADD COLUMN note text",
            "CREATE TABLE log.other (x int)",
        ],
    )
    def test_a_changed_schema_is_seen(self, cluster: postgres.Cluster, url: str, change: str) -> None:
        log = AuditLog(url, ORIGIN)
        fill(log, 2)
        self.statement(cluster, url, "owner", change)
        with pytest.raises(VerificationError, match="triggers"):
            log.check()
        with pytest.raises(VerificationError, match="triggers"):
            AuditLog(url, ORIGIN)

    def test_a_role_that_may_more_or_less_is_refused(self, cluster: postgres.Cluster, url: str) -> None:
        schema = url.partition("#")[2]
        AuditLog(url, ORIGIN)
        cluster.execute("DROP ROLE IF EXISTS clerk", "DROP ROLE IF EXISTS nobody_at_all")
        cluster.execute("CREATE ROLE clerk LOGIN", "CREATE ROLE nobody_at_all LOGIN")
        with pytest.raises(InputError, match="owner is a superuser"):
            AuditLog(cluster.url("owner", schema), ORIGIN)
        with pytest.raises(InputError, match="may not do this") as caught:
            AuditLog(cluster.url("nobody_at_all", schema), ORIGIN)
        assert "log-sql --role" in caught.value.remedy
        cluster.execute(
            f"GRANT USAGE ON SCHEMA {schema} TO clerk",
            f"GRANT SELECT, INSERT, UPDATE ON {schema}.entry TO clerk",
        )
        with pytest.raises(InputError, match="clerk may change entries"):
            AuditLog(cluster.url("clerk", schema), ORIGIN)
        cluster.execute(
            f"REVOKE ALL ON {schema}.entry FROM clerk", f"ALTER TABLE {schema}.node OWNER TO clerk"
        )
        with pytest.raises(InputError, match="clerk owns the log"):
            AuditLog(cluster.url("clerk", schema), ORIGIN)

    def test_what_is_no_log_is_refused(self, cluster: postgres.Cluster) -> None:
        cluster.execute(
            "CREATE SCHEMA IF NOT EXISTS foreign_one", "CREATE TABLE IF NOT EXISTS foreign_one.t (x int)"
        )
        for schema in ("foreign_one", "nowhere"):
            with pytest.raises(InputError, match=f"no audit log is in schema {schema}") as caught:
                AuditLog(cluster.url(schema=schema), ORIGIN)
            assert "log-sql" in caught.value.remedy
        with pytest.raises(InputError, match="the schema is empty"):
            AuditLog(cluster.log(), ORIGIN, create=False)
        for bad in (
            "mysql://x",
            "postgresql://app@/db#Bad-Schema",
            "postgresql://app@/db?no=such&password=secret",
        ):
            with pytest.raises(InputError) as refused:
                AuditLog(bad, ORIGIN)
            assert "secret" not in str(refused.value)
        with pytest.raises(InputError, match="lower-case"):
            ddl("app; DROP TABLE x")


# ── PostgreSQL: its troubles ─────────────────────────────────────────────────────────────────────


@needs_postgres
def test_somebody_elses_lock_is_waited_for_then_named(
    cluster: postgres.Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    monkeypatch.setattr(store, "LOCK_SECONDS", 1)
    log = AuditLog(cluster.log(), ORIGIN)
    with psycopg.connect(cluster.url("owner")) as db:
        db.execute("SELECT pg_advisory_xact_lock(%s)", (log._store._lock_key,))  # type: ignore[attr-defined]
        with pytest.raises(InputError, match="another session has held the log's lock for 1 s"):
            log.append("a", "b", "c", {})
    assert log.append("a", "b", "c", {}) == 0


@needs_postgres
def test_a_server_that_does_not_sync_is_refused(cluster: postgres.Cluster) -> None:
    url = cluster.log()
    cluster.execute("ALTER SYSTEM SET fsync = off", "SELECT pg_reload_conf()", "SELECT pg_sleep(0.3)")
    try:
        with pytest.raises(InputError, match="fsync off"):
            AuditLog(url, ORIGIN)
    finally:
        cluster.execute("ALTER SYSTEM RESET fsync", "SELECT pg_reload_conf()", "SELECT pg_sleep(0.3)")


@needs_postgres
def test_a_database_that_crashes_is_named_and_loses_nothing(cluster: postgres.Cluster) -> None:
    log = AuditLog(cluster.log().replace("app@", "app:hunter2@"), ORIGIN)
    told, errors = list[int](), list[FoedusError]()

    def run(name: str) -> None:
        try:
            for i in range(100_000):
                told.append(log.append(name, "write", str(i), {}))
        except FoedusError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    while len(told) < 100:
        time.sleep(0.01)
    cluster.stop(signal.SIGQUIT)
    for thread in threads:
        thread.join()
    with pytest.raises(Unreachable, match="can't be reached"):
        log.append("a", "b", "c", {})
    for error in errors:
        assert isinstance(error, Unreachable)
        assert "hunter2" not in f"{error} {error.remedy}"
    cluster.start()
    time.sleep(0.3)
    size = log.size  # the same object goes on
    assert len(told) <= size <= len(told) + 4
    assert sorted(told) == sorted(set(told))
    assert max(told) < size
    log.append("a", "b", "c", {})
    log.check()


@needs_postgres
def test_a_fork_has_sessions_of_its_own(cluster: postgres.Cluster) -> None:
    code = (
        "import os, sys\nfrom foedus.compliance.auditlog.log import AuditLog\n"
        "log = AuditLog(sys.argv[1], sys.argv[2])\nlog.append('parent', 'b', '', {})\n"
        "if os.fork() == 0:\n    log.append('child', 'b', '', {})\n    print(log.size, flush=True)\n    os._exit(0)\n"
        "os.wait()\nlog.append('parent', 'b', '', {})\nlog.check()\nprint(log.size)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, cluster.log(), ORIGIN],
        capture_output=True,
        text=True,
        check=True,
    )
    assert re.findall(r"\d+", done.stdout) == ["2", "3"]
