"""The book, the sinks and the reader: nothing lost, nothing twice, nothing personal."""

from __future__ import annotations

import hmac
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foedus.compliance.anomalies.alerts import Alert
from foedus.compliance.anomalies.book import Book, blocked
from foedus.compliance.anomalies.events import Reader, label
from foedus.compliance.anomalies.policy import Policy
from foedus.compliance.anomalies.settings import WatchSettings
from foedus.compliance.anomalies.sinks import ACTION, AuditSink, ConsoleSink, Webhook, signature
from foedus.compliance.auditlog.log import AuditLog, Entry
from foedus.documents import canonical
from foedus.errors import InputError, Unreachable, VerificationError

KEY = b"k" * 32
NOW = datetime(2026, 3, 2, 9, tzinfo=UTC)
BLOCKING = Policy(blocks=frozenset({"refusals"}))


def log_of(path: Path, refusals: int = 0, actor: str = "eve") -> AuditLog:
    log = AuditLog(path / "audit.db", "foedus node shop-a")
    log.append_many([(actor, "study.refused", "", {"code": "INPUT"}) for _ in range(refusals)])
    return log


def book_with(path: Path, refusals: int = 5, sinks: tuple[str, ...] = ()) -> tuple[Book, AuditLog]:
    log, book = log_of(path, refusals), Book(path / "watch.db")
    book.turn(BLOCKING, "shop-a", log.entries, sinks)
    return book, log


# ── turns ────────────────────────────────────────────────────────────────────────────────────────


def test_a_turn_goes_on_where_the_last_ended(tmp_path: Path) -> None:
    book, log = book_with(tmp_path, 3)
    assert book.alerts() == []
    log_of(tmp_path, 2)
    (alert,) = book.turn(BLOCKING, "shop-a", log.entries)
    assert alert.evidence == (0, 1, 2, 3, 4) and [a.id for a in book.alerts()] == [alert.id]
    assert book.turn(BLOCKING, "shop-a", log.entries) == []


@pytest.mark.parametrize("after", [2, 4, 9])
def test_another_log_in_its_place_is_noticed(tmp_path: Path, after: int) -> None:
    book, _ = book_with(tmp_path, 4)
    (tmp_path / "other").mkdir()
    other = log_of(tmp_path / "other", after, "mallory")
    with pytest.raises(VerificationError, match=r"the log has 2|not those that the watch saw"):
        book.turn(BLOCKING, "shop-a", other.entries)
    assert book.alerts() == []


def test_a_block_and_its_release(tmp_path: Path) -> None:
    book, log = book_with(tmp_path)
    reason = blocked(tmp_path / "watch.db", "eve")
    assert reason is not None and reason.refusal().code == "ACTOR_BLOCKED"
    assert blocked(tmp_path / "watch.db", "alice") is None and blocked(tmp_path / "none.db", "eve") is None
    logged: list[str] = []
    for officer, why in (("", "x"), ("dora", " ")):
        with pytest.raises(InputError, match="officer and the reason"):
            book.release("eve", officer, why, record=lambda: logged.append("no"))
    book.release("eve", "dora", "it was her", record=lambda: logged.append("yes"))
    assert logged == ["yes"] and book.blocked("eve") is None
    with pytest.raises(InputError, match="not blocked"):
        book.release("eve", "dora", "again", record=lambda: None)
    log_of(tmp_path, 5)
    book.turn(BLOCKING, "shop-a", log.entries)
    assert book.blocked("eve") is not None  # a later alert


def test_an_acknowledgement_releases_nobody(tmp_path: Path) -> None:
    book, _ = book_with(tmp_path)
    (alert,) = book.alerts(open_only=True)
    with pytest.raises(InputError, match="no alert"):
        book.acknowledge("f" * 16, "dora", "seen", record=lambda: None)
    book.acknowledge(alert.id, "dora", "seen", record=lambda: None)
    assert book.alerts(open_only=True) == [] and book.blocked("eve") is not None


# ── sinks ────────────────────────────────────────────────────────────────────────────────────────


class _Hook:
    """A receiver on this machine."""

    def __init__(self) -> None:
        self.status, self.got = 204, list[tuple[dict[str, str], bytes]]()
        hook = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hook.got.append((dict(self.headers), body))
                self.send_response(hook.status)
                self.send_header("Location", "http://127.0.0.1:1/")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Quiet."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()


@pytest.fixture
def hook() -> Iterator[_Hook]:
    hook = _Hook()
    yield hook
    hook.server.shutdown()
    hook.thread.join()
    hook.server.server_close()


def test_a_webhook_gets_what_it_can_check(tmp_path: Path, hook: _Hook) -> None:
    book, _ = book_with(tmp_path, sinks=("webhook",))
    sink = Webhook(hook.url, KEY)
    assert book.deliver([sink], NOW) == [] and book.unsent == 0
    ((headers, body),) = hook.got
    (alert,) = book.alerts()
    assert json.loads(body) == alert.to_json() and headers["X-Foedus-Alert"] == alert.id
    expected = signature(KEY, headers["X-Foedus-Time"], body)
    assert hmac.compare_digest(headers["X-Foedus-Signature"], expected)
    assert expected != signature(b"x" * 32, headers["X-Foedus-Time"], body)
    assert book.deliver([sink], NOW) == [] and len(hook.got) == 1


@pytest.mark.parametrize("status", [302, 404, 500])
def test_what_was_not_received_waits_longer_and_longer(tmp_path: Path, hook: _Hook, status: int) -> None:
    book, _ = book_with(tmp_path, sinks=("webhook",))
    sink, hook.status = Webhook(hook.url, KEY), status
    now, waits = NOW, [30, 60, 120]
    for wait in waits:
        (line,) = book.deliver([sink], now)
        assert str(status) in line and book.deliver([sink], now + timedelta(seconds=wait - 1)) == []
        now += timedelta(seconds=wait)
    assert len(hook.got) == 3 and book.unsent == 1
    hook.status = 200
    assert Book(tmp_path / "watch.db").deliver([sink], now) == [] and book.unsent == 0


def test_nobody_listens_and_bad_addresses(tmp_path: Path) -> None:
    book, _ = book_with(tmp_path, sinks=("webhook",))
    (line,) = book.deliver([Webhook("http://127.0.0.1:1/", KEY, timeout=0.5)], NOW)
    assert "ConnectError" in line and book.unsent == 1
    for url in ("http://example.com/", "ftp://127.0.0.1/", "nonsense"):
        with pytest.raises(InputError, match="https"):
            Webhook(url, KEY)
    with pytest.raises(InputError, match="16 bytes"):
        Webhook("https://soc.example/", b"short")


def test_alerts_go_into_the_log_and_to_the_console(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    book, log = book_with(tmp_path, sinks=("log", "console"))
    with caplog.at_level(logging.WARNING, "foedus.watch"):
        assert book.deliver([AuditSink(log), ConsoleSink()], NOW) == []
    (alert,) = book.alerts()
    last = list(log.entries())[-1].record
    assert (last["action"], last["subject"]) == (ACTION, alert.id) and alert.id in caplog.text
    assert book.turn(BLOCKING, "shop-a", log.entries) == []  # an alert is no cause for one


_KILLED = textwrap.dedent("""
    import sys
    from datetime import UTC, datetime
    from pathlib import Path
    from foedus.compliance.anomalies.book import Book
    from foedus.compliance.anomalies.policy import Policy
    from foedus.compliance.auditlog.log import AuditLog
    here = Path(sys.argv[1])
    log, book = AuditLog(here / "audit.db", "foedus node shop-a"), Book(here / "watch.db")
    class Slow:
        name = "webhook"
        def send(self, alert):
            with (here / "sent").open("a") as file:
                file.write(alert.id + "\\n")
    print("ready", flush=True)
    while True:
        log.append_many([("eve", "study.refused", "", {"code": "INPUT"})] * 5)
        book.turn(Policy(), "shop-a", log.entries, ["webhook"])
        book.deliver([Slow()], datetime.now(UTC))
""")


def test_killed_at_any_moment_no_alert_is_lost_or_made_twice(tmp_path: Path) -> None:
    for wait in (0.02, 0.05, 0.09, 0.16, 0.25):
        with subprocess.Popen(
            [sys.executable, "-c", _KILLED, str(tmp_path)], stdout=subprocess.PIPE, env=dict(os.environ)
        ) as child:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            time.sleep(wait)
            os.kill(child.pid, signal.SIGKILL)
    log, book = log_of(tmp_path), Book(tmp_path / "watch.db")
    book.turn(Policy(), "shop-a", log.entries, ["webhook"])
    made = {a.id: a for a in book.alerts()}
    assert {i for a in made.values() for i in a.evidence} == set(range(log.size)) and log.size >= 5
    assert len(made) * 5 == log.size
    sent = (tmp_path / "sent").read_text().split() if (tmp_path / "sent").exists() else []
    unsent = {a.id for a, _ in book._due("webhook", datetime(2100, 1, 1, tzinfo=UTC))}
    assert set(sent) | unsent == set(made)  # each was sent, or will be


# ── from entries ─────────────────────────────────────────────────────────────────────────────────


def entry(
    index: int, action: str, details: dict[str, object], actor: str = "shop-a", subject: str = ""
) -> Entry:
    time = (NOW + timedelta(seconds=index)).isoformat()
    told = {"time": time, "actor": actor, "action": action, "subject": subject, "details": details}
    return Entry(index, canonical(told))


def test_what_entries_say() -> None:
    study = "a" * 64
    entries = [
        entry(0, "scored", {"customers": 120}),
        entry(1, "access.export", {"rows": 7, "group": "sales"}, "alice"),
        entry(2, "refused", {"code": "VERIFICATION", "reason": "…"}),
        entry(3, "refused", {"code": "LOG_SIZE_UNKNOWN"}),
        entry(4, "study.submitted", {"author": "bob", "epsilon": 2.0, "purpose": "p"}, subject=study),
        entry(5, "run.started", {"run": "r1"}, "olaf", study),
        entry(
            6, "study.accepted", {"author": "bob", "epsilon": 1, "purpose": "p", "run": "r"}, subject=study
        ),
        entry(7, "whatever", {"rows": True}),
    ]
    found = list(Reader("shop-a", KEY).read(entries))
    assert [(e.kind, e.actor, e.rows) for e in found[:4]] == [
        ("read", "shop-a", 120), ("read", "alice", 7), ("refusal", "coordinator", 0), ("other", "coordinator", 0),
    ]  # fmt: skip
    assert [(e.kind, e.actor, e.epsilon, e.run) for e in found[5:7]] == [
        ("spend", "bob", 2.0, "r1"), ("spend", "bob", 1.0, "r"),
    ]  # fmt: skip
    assert found[7].kind == "other" and found[1].group == "sales"


def test_a_time_that_is_none() -> None:
    bad = canonical(
        {"time": "2026-03-02T09:00:00", "actor": "a", "action": "b", "subject": "", "details": {}}
    )
    with pytest.raises(VerificationError, match="entry 3: a time without a zone"):
        list(Reader("shop-a", KEY).read([Entry(3, bad)]))


PERSONAL = [
    "+4915112345678",
    "13800138000",
    "11010519491231002X",
    "mia.k@example.org",
    "Mia Köhler",
    "K-4711-Köhler",
]


@given(st.lists(st.sampled_from(PERSONAL), min_size=4, max_size=4))
@settings(max_examples=25, deadline=None)
def test_an_alert_holds_nothing_personal(tmp_path_factory: pytest.TempPathFactory, who: list[str]) -> None:
    here = tmp_path_factory.mktemp("log")
    log, book = AuditLog(here / "audit.db", f"foedus node {who[3]}"), Book(here / "watch.db")
    log.append_many(
        [(who[0], "access.export", who[1], {"rows": 10**7, "group": who[2], "customer": who[1]})] * 2
        + [(who[0], "study.refused", who[1], {"code": who[2], "reason": who[1]})] * 5
        + [
            (
                who[0],
                "study.accepted",
                who[1],
                {"author": who[1], "epsilon": 3, "purpose": who[2], "run": who[3]},
            )
        ]
        * 2
    )
    book.turn(Policy(hours=(0, 0), caps={who[2]: 4.0}), who[3], log.entries)
    alerts = book.alerts()
    assert {a.rule for a in alerts} >= {"bulk", "refusals", "budget"}
    for alert in alerts:
        said = json.dumps(alert.to_json(), ensure_ascii=False) + alert.sentence
        assert not any(p in said for p in PERSONAL) and alert.actor.startswith("actor-")


def test_labels() -> None:
    assert label("alice", KEY) == "alice" and label("", KEY) == ""
    assert label("13800138000", KEY) == label("13800138000", KEY) != label("13800138000", b"other")
    assert label("user-12345", KEY).startswith("actor-")


def test_settings(tmp_path: Path) -> None:
    (tmp_path / "hook.key").write_text("s" * 40 + "\n")
    (tmp_path / "watch.yaml").write_text(
        "zone: Asia/Shanghai\nblocks: [bulk]\nwebhook: {url: 'https://soc.example/', secret: hook.key}\n"
    )
    told = WatchSettings.load(tmp_path / "watch.yaml")
    policy = told.policy({"p": 1.0})
    assert (policy.zone, policy.blocks, policy.caps) == ("Asia/Shanghai", {"bulk"}, {"p": 1.0})
    assert len(told.webhooks(tmp_path)) == 1
    for text, said in (("zone: [", "not YAML"), ("blocks: [sloth]", "blocks"), ("zoned: x", "zoned")):
        (tmp_path / "watch.yaml").write_text(text)
        with pytest.raises(InputError, match=said):
            WatchSettings.load(tmp_path / "watch.yaml")
    with pytest.raises(Unreachable):
        Webhook("http://127.0.0.1:1/", KEY, timeout=0.2).send(
            Alert("clock", NOW, "s", "a", "policy", {}, {}, (1,))
        )
