"""A server whose audit log is in PostgreSQL: set up by one option, found by every process of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import postgres
from support.treaties import make_treaty

from foedus import cli
from foedus.compliance.auditlog.log import AuditLog
from foedus.errors import InputError
from foedus.server import log_place

from .conftest import World

ORIGIN = "coordinator.example/log"
needs_postgres = pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing() or "-")


@pytest.fixture(scope="module")
def cluster() -> Iterator[postgres.Cluster]:
    with postgres.cluster() as made:
        yield made


@pytest.fixture
def foedus(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*words: object) -> tuple[int, str]:
        code: object = 0
        try:
            cli.main([str(word) for word in words])
        except SystemExit as end:
            code = end.code
        told = capsys.readouterr()
        return int(str(code or 0)), " ".join((told.out + told.err).split())

    return run


@needs_postgres
def test_a_server_keeps_its_log_in_a_database(
    cluster: postgres.Cluster, tmp_path: Path, foedus: Callable[..., tuple[int, str]]
) -> None:
    document, _, keys = make_treaty()
    home, treaty = tmp_path / "home", tmp_path / "treaty.json"
    treaty.write_bytes(document.dumps())
    home.mkdir()
    keys.coordinator.save(home / "server.key")
    code, sql = foedus("server", "log-sql", "--role", "app", "--schema", "partner_log")
    assert code == 0
    url = cluster.url(schema="partner_log").replace("app@", "app:hunter2@")

    code, said = foedus("server", "init", home, "--log-database", url)
    assert code == 2 and "needs --treaty" in said
    code, said = foedus("server", "init", home, "--treaty", treaty, "--log-database", url)
    assert code == 2 and "no audit log is in schema partner_log" in said and "log-sql" in said
    assert not (home / log_place.FILE).exists() and "hunter2" not in said
    cluster.execute(sql)
    for _ in range(2):
        code, said = foedus("server", "init", home, "--treaty", treaty, "--log-database", url)
        assert code == 0
    assert (home / log_place.FILE).stat().st_mode & 0o777 == 0o600
    assert not (home / "audit.db").exists()
    code, said = foedus("server", "init", home, "--treaty", treaty, "--log-database", cluster.log())
    assert code == 2 and "stays where it began" in said

    code, _ = foedus("server", "token", home, "--name", "alice", "--role", "scientist")
    assert code == 0
    (entry,) = AuditLog(url, ORIGIN, create=False).entries()
    assert entry.record["action"] == "token.created"
    cluster.stop()
    try:
        code, said = foedus("server", "token", home, "--name", "bob", "--role", "scientist")
        assert code == 6 and "can't be reached" in said and "hunter2" not in said
    finally:
        cluster.start()


@needs_postgres
def test_studies_run_over_it(cluster: postgres.Cluster, serve: Callable[..., World], tmp_path: Path) -> None:
    home = tmp_path / "server"
    home.mkdir()
    (home / log_place.FILE).write_text(cluster.log())
    (home / log_place.FILE).chmod(0o600)
    world = serve(home)
    study, _ = world.started(title="what Mr Wang fears")
    assert world.desk.log.name.startswith("postgresql://")
    assert not list(home.glob("audit*.db"))
    assert world.actions() == ["study.submitted", *["study.approved"] * 6, "run.started"]
    opening = world.desk.log.open_payload(0)
    assert opening is not None
    assert opening.payload == {"title": "what Mr Wang fears"}
    world.desk.log.check()
    with world.client("officer") as client:
        assert len(list(client.log_entries())) == 8
        assert client.payload(next(client.log_entries())) == {"title": "what Mr Wang fears"}
    assert study.digest == world.audit()[-1][2]


def test_a_log_stays_where_it_began(tmp_path: Path) -> None:
    log_place.open_log(tmp_path, ORIGIN)
    with pytest.raises(InputError, match="is in this file"):
        log_place.choose(tmp_path, "postgresql://app@db/foedus", ORIGIN)
    with pytest.raises(InputError, match="postgresql://ROLE"):
        log_place.choose(tmp_path, "mysql://x", ORIGIN)
    (tmp_path / log_place.FILE).write_text("x")
    with pytest.raises(InputError, match="readable by others"):
        log_place.open_log(tmp_path, ORIGIN)
    (tmp_path / log_place.FILE).chmod(0o600)
    with pytest.raises(InputError, match="not the URL"):
        log_place.open_log(tmp_path, ORIGIN)
