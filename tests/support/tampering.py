"""What a coordinator who lies may do to a bundle, and the check that finds it out: for both verifiers' tests."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from foedus.compliance import approvals
from foedus.documents import Envelope, SigningKey

from .bundles import Tampered
from .treaties import make_treaty


def _approval(b: Tampered, name: str, **changes: Any) -> dict[str, Any]:
    study = Envelope.loads(b.files["study.json"])
    who = next(a for a in b.world.treaty.approvers if a.name == name)
    arguments: dict[str, Any] = {
        "study": study.digest, "treaty": b.world.treaty_envelope.digest, "purpose": study.payload["purpose"],
        "epsilon": study.payload["privacy"]["epsilon"], "expires": datetime.now(UTC) + timedelta(days=1),
    }  # fmt: skip
    return approvals.decide(who, b.world.key(name), **(arguments | changes)).to_json()


def _by_author(b: Tampered) -> dict[str, Any]:
    payload = _approval(b, "bruno")["payload"] | {"approver": "dana"}
    return Envelope("approval", payload).signed("dana", b.world.key("dana")).to_json()


def _swap(values: list[Any], one: int, two: int) -> None:
    values[one], values[two] = values[two], values[one]


def _place(entries: list[Any], action: str) -> int:
    return next(i for i, e in enumerate(entries) if e["action"] == action)


def _take_back(entries: list[Any], before: str) -> None:
    """An approver's rejection before the first such entry of the run, which the coordinator did not heed."""
    taken = entries[_place(entries, "study.approved")]
    entries.insert(_place(entries, before), taken | {"action": "study.rejected"})


def edit_sum(b: Tampered, *, logged: bool) -> None:
    digests: list[str] = []

    def change(rounds: list[Any]) -> None:
        rounds[-1]["total"][0] += 1
        digests.append(hashlib.sha256(np.array(rounds[-1]["total"], "<i8").tobytes()).hexdigest())

    def relog(entries: list[Any]) -> None:
        mine = [e for e in entries if e["action"] == "round.summed"]
        mine[-1]["details"]["sum"] = digests[0]

    b.lines("rounds.jsonl", change)
    if logged:
        b.log(relog)


def _resign_answers(b: Tampered, change: Callable[[dict[str, Any]], None], silos: int) -> None:
    """Answers signed anew by `silos` of the silos: they collude with the coordinator."""

    def edit(rounds: list[Any]) -> None:
        answers = rounds[0]["transcript"]["answers"]
        for i in range(silos):
            payload = answers[i]["payload"]
            change(payload)
            answers[i] = (
                Envelope(answers[i]["kind"], payload)
                .signed(payload["silo"], b.silo_key(payload["silo"]))
                .to_json()
            )

    b.lines("rounds.jsonl", edit)


def _resign_upload(b: Tampered, change: Callable[[dict[str, Any]], None]) -> None:
    def edit(rounds: list[Any]) -> None:
        uploads = rounds[0]["transcript"]["uploads"]
        payload = uploads[0]["payload"]
        change(payload)
        silo = payload["silo"]
        uploads[0] = Envelope(uploads[0]["kind"], payload).signed(silo, b.silo_key(silo)).to_json()

    b.lines("rounds.jsonl", edit)


def _released(entries: list[Any], **changes: Any) -> None:
    next(e for e in entries if e["action"] == "released")["details"].update(changes)


def _without(survivor: bool, upload: bool) -> Callable[[list[Any]], None]:
    def edit(rounds: list[Any]) -> None:
        if survivor:
            rounds[0]["survivors"].pop()
        if upload:
            rounds[0]["transcript"]["uploads"].pop()

    return edit


def _broken_signature(document: dict[str, Any]) -> None:
    name, text = next(iter(document["signatures"].items()))
    document["signatures"][name] = ("B" if text[0] == "A" else "A") + text[1:]


Tamper = Callable[[Tampered], Any]
COORDINATOR: dict[str, tuple[int, Tamper]] = {
    # 2, 3: the documents
    "treaty changed": (2, lambda b: b.json("treaty.json", lambda t: t["payload"].update(min_cohort=1))),
    "treaty without a signature": (2, lambda b: b.json("treaty.json", lambda t: t["signatures"].popitem())),
    "treaty signed by a stranger too": (2, lambda b: b.json("treaty.json", lambda t: t["signatures"].update(x="A" * 88))),
    "another treaty": (1, lambda b: b.files.update({"treaty.json": make_treaty(4)[0].dumps()})),
    "study changed": (3, lambda b: b.json("study.json", lambda s: s["payload"].update(title="another"))),
    "study by another key": (3, lambda b: b.signed("study.json", lambda p: None, "dana", SigningKey.generate())),
    "study signed anew with less noise": (
        3, lambda b: b.signed("study.json", lambda p: p["privacy"].update(sigma_train=4), "dana", b.world.key("dana"))
    ),
    "study signed anew with another title": (
        4, lambda b: b.signed("study.json", lambda p: p.update(title="another"), "dana", b.world.key("dana"))
    ),
    # 4: approvals
    "an approval less": (4, lambda b: b.json("approvals.json", lambda a: a.pop())),
    "no approvals": (4, lambda b: b.json("approvals.json", lambda a: [])),
    "an approval broken": (4, lambda b: b.json("approvals.json", lambda a: _broken_signature(a[0]))),
    "an approval by the author": (4, lambda b: b.json("approvals.json", lambda a: [_by_author(b), *a[1:]])),
    "an approval that is a rejection": (
        4, lambda b: b.json("approvals.json", lambda a: [_approval(b, "bruno", decision="reject"), *a[1:]])
    ),
    "an approval with a second signature": (
        4, lambda b: b.json("approvals.json", lambda a: a[0]["signatures"].update(auditor="A" * 88))
    ),
    "an approval of less ε": (4, lambda b: b.json("approvals.json", lambda a: [_approval(b, "bruno", epsilon=1.0), *a[1:]])),
    "an approval that had expired": (
        4,
        lambda b: b.json(
            "approvals.json",
            lambda a: [_approval(b, "bruno", expires=datetime.now(UTC) - timedelta(hours=1)), *a[1:]],
        ),
    ),
    # 5: the log
    "log entry edited": (5, lambda b: b.lines("log/entries.jsonl", lambda e: e[0].update(actor="nobody"))),
    "taken back while it ran": (5, lambda b: b.log(lambda e: _take_back(e, "round.summed"))),
    "taken back before the release": (5, lambda b: b.log(lambda e: _take_back(e, "released"))),
    "log entry removed": (5, lambda b: b.lines("log/entries.jsonl", lambda e: e.pop(1))),
    "log entries reordered": (5, lambda b: b.lines("log/entries.jsonl", lambda e: _swap(e, 1, 2))),
    "log head by another key": (5, lambda b: b.log(lambda e: None, key=SigningKey.generate())),
    "log head missing": (5, lambda b: b.files.pop("log/checkpoint.txt")),
    "log rewritten: start before approvals": (
        5, lambda b: b.log(lambda e: e.insert(0, e.pop(_place(e, "run.started"))))
    ),
    "log rewritten: no submission": (5, lambda b: b.log(lambda e: e.pop(_place(e, "study.submitted")))),
    "log rewritten: no start": (4, lambda b: b.log(lambda e: e.pop(_place(e, "run.started")))),
    "log rewritten: an earlier entry edited": (10, lambda b: b.log(lambda e: e[0].update(actor="nobody"))),
    "log rewritten: an entry slipped in": (10, lambda b: b.log(lambda e: e.insert(0, e[0]))),
    "log rewritten: started twice": (
        4, lambda b: b.log(lambda e: e.insert(_place(e, "run.started"), e[_place(e, "run.started")]))
    ),
    "log rewritten: an approval less": (5, lambda b: b.log(lambda e: e.pop(_place(e, "study.approved")))),
    # 6: keys
    "a batch twice": (6, lambda b: b.json("keys.json", lambda k: k.append(k[0]))),
    "a silo's keys twice": (6, lambda b: b.json("keys.json", lambda k: k[0]["keys"].append(k[0]["keys"][0]))),
    "keys of another run": (4, lambda b: b.json("keys.json", lambda k: k[0]["context"].update(run="2"))),
    "keys of another batch": (6, lambda b: b.json("keys.json", lambda k: k[0]["context"].update(batch=7))),
    "a key's signature broken": (6, lambda b: b.json("keys.json", lambda k: _broken_signature(k[0]["keys"][0]))),
    "a silo's keys missing": (7, lambda b: b.json("keys.json", lambda k: k[0]["keys"].pop())),
    # 7: rounds
    "a round dropped": (7, lambda b: b.lines("rounds.jsonl", lambda r: r.pop())),
    "a round twice": (7, lambda b: b.lines("rounds.jsonl", lambda r: r.append(r[0]))),
    "a survivor less": (7, lambda b: b.lines("rounds.jsonl", _without(True, False))),
    "an upload less": (7, lambda b: b.lines("rounds.jsonl", _without(False, True))),
    "a survivor and its upload less": (7, lambda b: b.lines("rounds.jsonl", _without(True, True))),
    "a survivor named twice": (7, lambda b: b.lines("rounds.jsonl", lambda r: r[0]["survivors"].append("aster-music"))),
    "two answers only": (
        7, lambda b: b.lines("rounds.jsonl", lambda r: r[0]["transcript"].update(answers=r[0]["transcript"]["answers"][:2]))
    ),
    "answers of another round": (
        7, lambda b: b.lines("rounds.jsonl", lambda r: r[0]["transcript"].update(answers=r[1]["transcript"]["answers"]))
    ),
    "one answer naming other survivors": (7, lambda b: _resign_answers(b, lambda p: p.update(survivors="0" * 64), 1)),
    "all answers naming other survivors": (7, lambda b: _resign_answers(b, lambda p: p.update(survivors="0" * 64), 4)),
    "an upload's signature broken": (
        7, lambda b: b.lines("rounds.jsonl", lambda r: _broken_signature(r[1]["transcript"]["uploads"][2]))
    ),
    "a sum changed": (7, lambda b: edit_sum(b, logged=False)),
    "a sum changed, and the log": (9, lambda b: edit_sum(b, logged=True)),
    "a sum that is text": (7, lambda b: b.lines("rounds.jsonl", lambda r: r[0].update(total=["x"]))),
    "rounds that are no objects": (7, lambda b: b.lines("rounds.jsonl", lambda r: [1, 2])),
    "a sum with a half": (
        7, lambda b: b.lines("rounds.jsonl", lambda r: r[0].update(total=[r[0]["total"][0] + 0.5, *r[0]["total"][1:]]))
    ),
    "a round with a note": (7, lambda b: b.lines("rounds.jsonl", lambda r: r[0].update(note="checked by TÜV"))),
    "answers naming others who answer": (7, lambda b: _resign_answers(b, lambda p: p.update(answering="0" * 64), 4)),
    "an answer with a note": (7, lambda b: _resign_answers(b, lambda p: p.update(note="x"), 1)),
    "an upload masked with others": (7, lambda b: _resign_upload(b, lambda p: p.update(participants="0" * 64))),
    "an upload on another graph": (7, lambda b: _resign_upload(b, lambda p: p.update(topology="0" * 64))),
    # 9: the release
    "δ claimed lower": (9, lambda b: b.release("model.json", lambda p: p.update(delta=1e-12))),
    "δ claimed lower in the metrics": (9, lambda b: b.release("metrics.json", lambda p: p.update(delta=1e-12))),
    "ε in the log lower": (9, lambda b: b.log(lambda e: _released(e, epsilon=0.1))),
    "a metric nobody measured": (9, lambda b: b.release("metrics.json", lambda p: p["metrics"].update(recall=0.99))),
    "a claim nobody checked": (9, lambda b: b.release("model.json", lambda p: p.update(audited="by TÜV"))),
    "weights as text": (9, lambda b: b.release("model.json", lambda p: p.update(weights=[str(w) for w in p["weights"]]))),
    "a release with a stranger's signature": (
        9, lambda b: b.json("release/model.json", lambda m: m["signatures"].update(auditor="A" * 88))
    ),
    "a model called metrics": (9, lambda b: b.release("model.json", lambda p: p.update(what="metrics"))),
    "a feature's 1 for true": (9, lambda b: b.release("model.json", lambda p: p["features"][0].update(log=1))),
    "weights changed": (9, lambda b: b.release("model.json", lambda p: p["weights"].reverse(), logged=False)),
    "weights changed, and the log": (9, lambda b: b.release("model.json", lambda p: p["weights"].reverse())),
    "a feature's bounds changed": (9, lambda b: b.release("model.json", lambda p: p["features"][0].update(upper=9.0))),
    "for another purpose": (9, lambda b: b.release("model.json", lambda p: p.update(purpose="dpv:Marketing"))),
    "over another table": (9, lambda b: b.release("model.json", lambda p: p["table"].update(amount="salary"))),
    "AUC changed": (9, lambda b: b.release("metrics.json", lambda p: p["metrics"].update(auc=0.99))),
    "PR-AUC changed": (9, lambda b: b.release("metrics.json", lambda p: p["metrics"].update(pr_auc=0.99))),
    "AUC's error changed": (9, lambda b: b.release("metrics.json", lambda p: p["metrics"].update(auc_error=1e-4))),
    "ε claimed lower": (9, lambda b: b.release("model.json", lambda p: p.update(epsilon=p["epsilon"] / 2))),
    "ε claimed lower in the metrics": (9, lambda b: b.release("metrics.json", lambda p: p.update(epsilon=0.1))),
    "of another run": (9, lambda b: b.release("model.json", lambda p: p.update(run="2"))),
    "model missing": (9, lambda b: b.files.pop("release/model.json")),
    "model not logged": (9, lambda b: b.log(lambda e: e.pop(_place(e, "released")))),
    # 10: receipts
    "no receipts": (10, lambda b: b.json("receipts.json", lambda r: [])),
    "a receipt twice": (10, lambda b: b.json("receipts.json", lambda r: r.append(r[0]))),
    "a receipt's signature broken": (10, lambda b: b.json("receipts.json", lambda r: _broken_signature(r[0]))),
    "one silo's receipt as another's": (10, lambda b: b.json("receipts.json", lambda r: r[0]["payload"].update(silo="x"))),
    "a receipt of a foreign log": (10, lambda b: b.receipt(0, lambda p: p["log"].update(root="0" * 64))),
    "a receipt of a longer log": (10, lambda b: b.receipt(0, lambda p: p["log"].update(size=10_000))),
    "a receipt of no log": (10, lambda b: b.receipt(0, lambda p: p["log"].update(size=0))),
    "a receipt of another run": (10, lambda b: b.receipt(0, lambda p: p.update(run="2"))),
    "a receipt that paid less": (10, lambda b: b.receipt(0, lambda p: p.update(epsilon=0.01))),
    "a receipt of another noise": (10, lambda b: b.receipt(0, lambda p: p["rounds"][0].update(shares=9))),
    "a receipt at another δ": (10, lambda b: b.receipt(0, lambda p: p.update(delta=0.5, epsilon=0.01))),
    "a receipt that forgot rounds and their cost": (10, lambda b: b.receipt(0, lambda p: p.update(rounds=[], epsilon=0.0))),
    "a receipt under another treaty": (10, lambda b: b.receipt(0, lambda p: p.update(treaty="0" * 64))),
    "a receipt of another task": (10, lambda b: b.receipt(0, lambda p: p["rounds"][0].update(task="evaluate"))),
    "a receipt with a claim": (10, lambda b: b.receipt(0, lambda p: p.update(note="all deleted"))),
    "a receipt without cohorts": (10, lambda b: b.receipt(0, lambda p: p.pop("cohorts"))),
    "a receipt of a round without its cohort": (10, lambda b: b.receipt(0, lambda p: p["cohorts"].pop("1"))),
    "a receipt of a cohort of a round there was not": (10, lambda b: b.receipt(0, lambda p: p["cohorts"].update({"99": "0" * 64}))),
    "a receipt of a cohort's round spelt otherwise": (10, lambda b: b.receipt(0, lambda p: p["cohorts"].update({"01": "0" * 64}))),
    "a receipt of a cohort that is no hash": (10, lambda b: b.receipt(0, lambda p: p["cohorts"].update({"1": "nobody"}))),
    "a receipt that is not in the log": (10, lambda b: b.receipt(0, lambda p: p.update(epsilon=9.0), logged=False)),
    "a receipt of a round there was not": (10, lambda b: b.receipt(0, lambda p: p["rounds"][0].update(round=99))),
    "a receipt of another sum": (10, lambda b: b.receipt(0, lambda p: p["sums"].update({"1": "0" * 64}))),
    "receipts that checked too few sums": (10, lambda b: [b.receipt(i, lambda p: p["sums"].pop("2")) for i in range(3)]),
    "another model than was sent": (7, lambda b: b.lines("rounds.jsonl", lambda r: r[2].update(model=r[1]["model"]))),
    "receipts that are no objects": (10, lambda b: b.json("receipts.json", lambda r: [1])),
}  # fmt: skip
