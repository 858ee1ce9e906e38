"""Before anything leaves: what a node refuses at set-up, whatever the server says."""

from __future__ import annotations

import json
import math
import random
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from flwr.app import ConfigRecord, RecordDict
from support.nodes import SILENT, Rehearsal, assert_refused
from support.orders import PURPOSE

from foedus.clients.app import SiloApp
from foedus.clients.home import Home
from foedus.compliance.auditlog.log import AuditLog
from foedus.compliance.consent import ConsentRegister
from foedus.compliance.treaty import sign_all
from foedus.documents import Envelope, SigningKey, b64
from foedus.errors import InputError, VerificationError
from foedus.federation import messages as m
from foedus.federation.study import Study
from foedus.privacy.accountant import epsilon_to_mu
from foedus.privacy.events import DistributedDiscreteGaussian
from foedus.privacy.ledger import Cap, Ledger

NODE = "aster-music"


def keys(play: Rehearsal, **changes: Any) -> m.KeysRequest:
    return play.keys_request(NODE, **changes)


def test_a_good_request_is_accepted(play: Rehearsal) -> None:
    said = play.ask(NODE, keys(play))
    assert said.refusal is None and said.action == "keys-reply" and said.data == b""
    assert [action for action, _ in play.journal(NODE)] == ["study.accepted", "sent"]
    assert play.spent(NODE) == 0.0


# ── the study and its approvals ──────────────────────────────────────────────────────────────────


def resigned(
    play: Rehearsal, *, signer: str = "dana", key: SigningKey | None = None, **changes: Any
) -> m.KeysRequest:
    """The study with changed fields, signed by its author, approved by everybody."""
    payload = {**play.case.study_envelope.payload, **changes}
    payload["privacy"] = {**play.case.study_envelope.payload["privacy"], **changes.get("privacy", {})}
    envelope = Envelope("study", payload).signed(signer, key or play.world.key("dana"))
    study = Study.model_validate(payload)
    given = [play.world.approve(study, envelope.digest, a).to_json() for a in play.world.treaty.approvers]
    return keys(play, study=envelope.to_json(), approvals=given)


UNFIT: list[tuple[dict[str, Any], str]] = [
    ({"purpose": "dpv:Advertising"}, "PURPOSE_NOT_PERMITTED"),
    ({"privacy": {"epsilon": 50.0}}, "EPSILON_OVER_CAP"),
    ({"privacy": {"delta": 1e-4}}, "DELTA_OVER_CAP"),
    ({"privacy": {"sigma_train": 4}}, "NOISE_TOO_SMALL"),
    ({"privacy": {"sigma_evaluate": 4}}, "NOISE_TOO_SMALL"),
    ({"privacy": {"scale_bits_train": 30}}, "SUM_COULD_WRAP"),
    ({"privacy": {"sigma_train": 2**29}}, "SUM_COULD_WRAP"),
    ({"treaty": "0" * 64}, "OTHER_TREATY"),
    ({"author": "mallory"}, "UNKNOWN_AUTHOR"),
    ({"signer": "mallory"}, "VERIFICATION"),
    ({"key": SigningKey.generate()}, "VERIFICATION"),
]


def test_a_study_the_treaty_does_not_permit_is_refused(play: Rehearsal, subtests: pytest.Subtests) -> None:
    for changes, code in UNFIT:
        with subtests.test(str(changes)):
            assert_refused(play, NODE, play.ask(NODE, resigned(play, **changes)), code)


def test_a_study_changed_on_the_way_is_refused(play: Rehearsal) -> None:
    study = json.loads(play.case.study_envelope.dumps())
    study["payload"]["title"] = "another"
    refusal = assert_refused(play, NODE, play.ask(NODE, keys(play, study=study)), "VERIFICATION")
    assert "signature does not hold" in refusal.message


def test_what_is_no_study_is_refused(play: Rehearsal) -> None:
    for study in ({}, {"kind": "study", "payload": {}, "signatures": {}}, {"kind": "x"}):
        assert_refused(play, NODE, play.ask(NODE, keys(play, study=study)), "INPUT")


Change = Callable[[Rehearsal, list[dict[str, Any]]], list[dict[str, Any]]]
APPROVALS: dict[str, tuple[Change, str]] = {
    "none": (lambda p, a: [], "APPROVAL_MISSING"),
    "the node's own officer's": (
        lambda p, a: [x for x in a if x["payload"]["party"] != NODE],
        "APPROVAL_MISSING",
    ),
    "the data protection officer's": (
        lambda p, a: [x for x in a if x["payload"]["level"] != "dpo"],
        "APPROVAL_MISSING",
    ),
    "one forged": (lambda p, a: [{**a[0], "signatures": a[1]["signatures"]}, *a[1:]], "VERIFICATION"),
    "one for another study": (lambda p, a: [changed(p, a[0], study="0" * 64), *a[1:]], "VERIFICATION"),
    "one for another treaty": (lambda p, a: [changed(p, a[0], treaty="0" * 64), *a[1:]], "VERIFICATION"),
    "one for less": (lambda p, a: [changed(p, a[0], epsilon=1.0), *a[1:]], "APPROVAL_MISSING"),
    "one rejecting": (lambda p, a: [changed(p, a[0], decision="reject"), *a[1:]], "STUDY_REJECTED"),
    "one expired": (
        lambda p, a: [
            changed(p, a[0], expires=(datetime.now(UTC) - timedelta(seconds=1)).isoformat()),
            *a[1:],
        ],
        "APPROVAL_MISSING",
    ),
}


def changed(play: Rehearsal, approval: dict[str, Any], **fields: Any) -> dict[str, Any]:
    payload = {**approval["payload"], **fields}
    name = payload["approver"]
    return Envelope("approval", payload).signed(name, play.world.key(name)).to_json()


def test_a_missing_or_bad_approval_is_refused(play: Rehearsal, subtests: pytest.Subtests) -> None:
    given = [a.to_json() for a in play.case.approvals]
    for name, (change, code) in APPROVALS.items():
        with subtests.test(name):
            assert_refused(play, NODE, play.ask(NODE, keys(play, approvals=change(play, given))), code)


def test_rounds_the_study_does_not_have_are_refused(play: Rehearsal) -> None:
    for rounds in ([0], [2, 1], [1, 1], [1, 5], [99], [1, 2, 3, 4, 5]):
        assert_refused(play, NODE, play.ask(NODE, keys(play, rounds=rounds)), "UNKNOWN_ROUND")


def test_a_node_with_another_treaty_refuses(play: Rehearsal) -> None:
    world = play.world
    amended = world.treaty.model_copy(update={"version": 2})
    signed = sign_all(amended, [(name, Home.load(path).identity()) for name, path in world.homes.items()])
    (play.home(NODE) / "treaty.json").write_bytes(signed.dumps())
    play.restart(NODE)
    assert_refused(play, NODE, play.ask(NODE, keys(play)), "OTHER_TREATY")


def test_a_node_does_not_start_with_a_treaty_not_everybody_signed_or_anothers_key(play: Rehearsal) -> None:
    home = play.home(NODE)
    treaty = json.loads((home / "treaty.json").read_bytes())
    treaty["signatures"].popitem()
    (home / "treaty.json").write_text(json.dumps(treaty))
    with pytest.raises(VerificationError, match="has not signed"):
        SiloApp(Home.load(home))
    (home / "treaty.json").write_bytes(play.world.treaty_envelope.dumps())
    (home / "identity.key").unlink()
    SigningKey.generate().save(home / "identity.key")
    with pytest.raises(InputError, match="not the key the treaty names"):
        SiloApp(Home.load(home))


# ── the log ──────────────────────────────────────────────────────────────────────────────────────


def forked(play: Rehearsal, folder: Path, entries: int) -> AuditLog:
    """Another history, which the coordinator signs as readily."""
    log = AuditLog(folder / "fork.db", play.case.origin)
    for i in range(entries):
        log.append("coordinator", "run.started", play.case.study_envelope.digest, {"run": "1", "i": i})
    return log


@pytest.mark.parametrize(("entries", "why"), [(50, "fork"), (8, "fork"), (2, "truncated")])
def test_a_forked_or_truncated_log_is_refused_and_the_proof_kept(
    play: Rehearsal, tmp_path: Path, entries: int, why: str
) -> None:
    assert play.ask(NODE, keys(play)).refusal is None
    play.case.seen(NODE, play.case.log.size)
    log = forked(play, tmp_path, entries)
    size = play.case.log.size
    proof = [b64(h) for h in log.consistency_proof(size)] if entries > size else []
    head = m.LogHead(note=log.checkpoint(play.case.origin, play.case.key), since=size, proof=proof)
    refusal = assert_refused(play, NODE, play.ask(NODE, keys(play, log=head, batch=1)), "VERIFICATION")
    assert why in refusal.message
    assert list(play.home(NODE).glob("log-head.refused-*.json"))
    assert refusal.log_size == size


def test_a_head_by_another_key_is_refused(play: Rehearsal) -> None:
    note = play.case.log.checkpoint(play.case.origin, SigningKey.generate())
    said = play.ask(NODE, keys(play, log=m.LogHead(note=note, since=0, proof=[])))
    assert_refused(play, NODE, said, "VERIFICATION")
    assert not (play.home(NODE) / "log-head").exists()


def test_a_proof_from_another_size_is_asked_for_again(play: Rehearsal) -> None:
    """A reply of the node got lost: no fork, and the server learns where to start."""
    assert play.ask(NODE, keys(play)).refusal is None
    stale = keys(play, batch=1)
    refusal = assert_refused(play, NODE, play.ask(NODE, stale), "LOG_SIZE_UNKNOWN")
    assert refusal.log_size == play.case.log.size
    assert not list(play.home(NODE).glob("log-head.refused-*"))
    play.case.seen(NODE, refusal.log_size)
    assert play.ask(NODE, keys(play, batch=1)).refusal is None


def started(play: Rehearsal, action: str, subject: str, details: dict[str, Any]) -> m.LoggedEntry:
    index = play.case.log.append("coordinator", action, subject, details)
    body = next(iter(play.case.log.entries(index, index + 1))).body.decode()
    return m.LoggedEntry(index=index, body=body, proof=[b64(h) for h in play.case.log.inclusion_proof(index)])


def test_a_start_that_is_not_this_runs_is_refused(play: Rehearsal) -> None:
    digest = play.case.study_envelope.digest
    for action, subject, details in (
        ("run.started", digest, {"run": "2"}),
        ("run.started", "0" * 64, {"run": "1"}),
        ("study.approved", digest, {"run": "1"}),
        ("run.started", digest, {}),
    ):
        entry = started(play, action, subject, details)
        said = play.ask(NODE, keys(play, started=entry))
        refusal = assert_refused(play, NODE, said, "VERIFICATION")
        assert "not the start of run 1" in refusal.message
        play.case.seen(NODE, refusal.log_size)
    honest = keys(play)
    assert_refused(play, NODE, play.ask(NODE, honest.model_copy(update={"run": "2"})), "VERIFICATION")
    lie = honest.started.model_copy(update={"body": honest.started.body.replace('"run":"1"', '"run":"2"')})
    assert_refused(play, NODE, play.ask(NODE, keys(play, run="2", started=lie)), "VERIFICATION")


# ── consent, budget, table ───────────────────────────────────────────────────────────────────────


def test_a_cohort_under_the_minimum_is_refused_without_its_size(play: Rehearsal) -> None:
    register = ConsentRegister(play.home(NODE) / "consent.db")
    for subject in register.in_force(PURPOSE, datetime.now(UTC))["subject"][40:]:
        register.withdraw(subject, PURPOSE)
    refusal = assert_refused(play, NODE, play.ask(NODE, keys(play)), "COHORT_TOO_SMALL")
    assert refusal.message == SILENT
    assert "customers" in play.last_refusal(NODE)["reason"]  # the node itself knows more


def test_a_budget_used_up_is_refused(play: Rehearsal) -> None:
    wide = Cap(1000.0, 1e-5)
    sigma = 256.0 / math.sqrt(2) / epsilon_to_mu(39.7, 1e-5)
    event = DistributedDiscreteGaussian(sensitivity=256.0, sigma=sigma, shares=2, dimension=13)
    Ledger(play.home(NODE) / "ledger.db").reserve(
        event, purpose=PURPOSE, study="0" * 64, label="earlier", cap=wide, study_cap=wide
    )
    before = play.spent(NODE)
    assert 39 < before < 40
    refusal = assert_refused(play, NODE, play.ask(NODE, keys(play)), "BUDGET_EXCEEDED", before=before)
    assert refusal.message == SILENT  # what others spent here is not the server's business


def test_a_ledger_that_was_tampered_with_stops_the_node_silently(play: Rehearsal) -> None:
    path = play.home(NODE) / "ledger.db"
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("INSERT INTO line VALUES (1, '{}', 'x')")
    said = play.ask(NODE, keys(play))
    assert said.refusal is not None and (said.refusal.code, said.refusal.message) == ("VERIFICATION", SILENT)
    assert "does not follow" in play.last_refusal(NODE)["reason"]


TABLES: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "no amounts": lambda f: f.drop(columns="amount"),
    "no customers": lambda f: f.rename(columns={"customer": "client"}),
    "dates as text": lambda f: f.assign(date=f["date"].astype(str)),
    "amounts as text": lambda f: f.assign(amount=f["amount"].astype(str)),
    "an amount that is no number": lambda f: f.assign(amount=f["amount"].where(f.index % 7 != 0, np.nan).astype(float) * np.inf),
    "an infinite amount": lambda f: f.assign(amount=f["amount"].where(f.index % 7 != 0, np.inf)),
}  # fmt: skip


def test_a_table_that_can_not_serve_is_refused(play: Rehearsal, subtests: pytest.Subtests) -> None:
    path = play.home(NODE) / "orders.parquet"
    whole = path.read_bytes()
    for name, change in TABLES.items():
        with subtests.test(name):
            path.write_bytes(whole)
            change(pd.read_parquet(path)).to_parquet(path)
            request = keys(play, log=play.case.head(NODE))
            refusal = assert_refused(play, NODE, play.ask(NODE, request), "INPUT")
            play.case.seen(NODE, refusal.log_size)
            assert refusal.message == SILENT


def test_a_table_that_can_not_be_read_is_refused(play: Rehearsal) -> None:
    path = play.home(NODE) / "orders.parquet"
    whole = path.read_bytes()
    for content in (None, b"", b"not a parquet file at all"):
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        said = play.ask(NODE, keys(play))
        path.write_bytes(whole)
        refusal = assert_refused(play, NODE, said, "INPUT")
        play.case.seen(NODE, refusal.log_size)
        assert refusal.message == SILENT


# ── messages that are none ───────────────────────────────────────────────────────────────────────


def test_an_unknown_kind_of_message_is_refused(play: Rehearsal) -> None:
    for kind in ("query", "query.weights", "train", "train.keys", "evaluate", "query.receipts"):
        assert_refused(play, NODE, play.send(NODE, kind, keys(play).record()), "UNKNOWN_MESSAGE")


def records(play: Rehearsal) -> dict[str, RecordDict]:
    good = dict(keys(play).record().config_records[m.RECORD])
    body = json.loads(bytes(good["body"]))
    noise = random.Random(1)

    def record(**changes: Any) -> RecordDict:
        return RecordDict({m.RECORD: ConfigRecord({**good, **changes})})

    return {
        "nothing": RecordDict(),
        "another record": RecordDict({"other": ConfigRecord(good)}),
        "two records": RecordDict({m.RECORD: ConfigRecord(good), "more": ConfigRecord({})}),
        "a field more": record(more=1),
        "no data": RecordDict({m.RECORD: ConfigRecord({k: v for k, v in good.items() if k != "data"})}),
        "text for bytes": record(body="{}"),
        "another action": record(action="shares"),
        "random bytes": record(body=noise.randbytes(500)),
        "not JSON": record(body=b"{"),
        "JSON of another shape": record(body=b"[]"),
        "an empty object": record(body=b"{}"),
        "a field too many": record(body=json.dumps({**body, "x": 1}).encode()),
        "a field of another type": record(body=json.dumps({**body, "batch": "0"}).encode()),
        "a negative batch": record(body=json.dumps({**body, "batch": -1}).encode()),
        "a huge batch": record(body=json.dumps({**body, "batch": 2**60}).encode()),
        "not a number": record(body=json.dumps({**body, "batch": float("nan")}).encode()),
        "a key twice": record(body=b'{"run":"1",' + json.dumps(body).encode()[1:]),
        "no rounds": record(body=json.dumps({**body, "rounds": []}).encode()),
        "deep": record(body=b"[" * 100_000),
        "a proof that is none": record(
            body=json.dumps({**body, "log": {**body["log"], "proof": ["x"]}}).encode()
        ),
        "a lone surrogate": record(
            body=json.dumps({**body, "study": {**body["study"], "kind": "\ud800"}}).encode()
        ),
    }


def test_malformed_messages_are_refused(play: Rehearsal) -> None:
    for name, record in records(play).items():
        try:
            assert_refused(play, NODE, play.send(NODE, "query.keys", record), "PROTOCOL")
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    assert play.ask(NODE, keys(play)).refusal is None  # and the node still serves


def test_what_is_no_text_is_refused(play: Rehearsal) -> None:
    body = json.dumps({"run": "\ud800", "batch": 0, "keys": []}).encode()
    record = RecordDict({m.RECORD: ConfigRecord({"action": "shares", "body": body, "data": b""})})
    refusal = assert_refused(play, NODE, play.send(NODE, "query.shares", record), "PROTOCOL")
    assert "surrogate" in refusal.message
