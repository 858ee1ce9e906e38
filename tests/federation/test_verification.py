"""What an officer's offline check finds: every tampering, by outsiders and by the coordinator itself."""

from __future__ import annotations

import hashlib
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import Tampered
from support.treaties import make_treaty

from foedus.compliance import approvals, evidence
from foedus.documents import Envelope, SigningKey
from foedus.errors import InputError, VerificationError
from foedus.federation.study import parse
from foedus.federation.tasks import evaluate
from foedus.federation.verification import verify

FILES = [
    "approvals.json", "keys.json", "lineage.jsonl", "log/checkpoint.txt", "log/entries.jsonl", "receipts.json",
    "release/metrics.json", "release/model.json", "rounds.jsonl", "study.json", "treaty.json",
]  # fmt: skip


@pytest.fixture
def bundle(good: Any) -> Tampered:
    return Tampered(good.run.evidence, good.world)


def test_the_good_bundle_holds(good: Any, bundle: Tampered, tmp_path: Path) -> None:
    report = verify(good.run.evidence, own_treaty=good.world.server / "treaty.json")
    assert [c.number for c in report.checks] == list(range(1, 11))
    assert "your own copy" in report.checks[1].detail
    assert sorted(bundle.files) == FILES
    # Written again unchanged it is the same file: so what is refused below is refused for the change alone.
    assert bundle.write(tmp_path / "same.zip").read_bytes() == good.run.evidence.read_bytes()


# ── whoever has no key ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", FILES)
def test_every_files_digest_is_in_the_manifest(
    bundle: Tampered, tmp_path: Path, good: Any, name: str
) -> None:
    def rewrite(change: Callable[[dict[str, bytes]], None]) -> Path:
        with zipfile.ZipFile(good.run.evidence) as old:
            files = {n: old.read(n) for n in old.namelist()}
        change(files)
        with zipfile.ZipFile(tmp_path / "b.zip", "w") as new:
            for n, data in files.items():
                new.writestr(n, data)
        return tmp_path / "b.zip"

    for change, why in (
        (lambda f: f.__setitem__(name, f[name][:-2] + b" \n"), f"{name} was changed"),
        (lambda f: f.pop(name), f"{name} is missing"),
        (lambda f: f.__setitem__("more", b""), "more is not in the manifest"),
    ):
        with pytest.raises(VerificationError, match=re.escape(why)):
            verify(rewrite(change))


def test_a_manifest_by_another_key_is_refused(bundle: Tampered, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"check 1 \(bundle\)"):
        verify(bundle.write(tmp_path / "b.zip", key=SigningKey.generate()))


def test_the_officers_own_treaty_decides(good: Any, tmp_path: Path) -> None:
    other, _, _ = make_treaty(4)
    (tmp_path / "mine.json").write_bytes(other.dumps())
    with pytest.raises(VerificationError, match=r"check 2 .*not the one you hold"):
        verify(good.run.evidence, own_treaty=tmp_path / "mine.json")


# ── the coordinator, who can sign the manifest, the log and the release ──────────────────────────


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


def _edit_sum(b: Tampered, *, logged: bool) -> None:
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
    # 6: keys
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
    "a sum changed": (7, lambda b: _edit_sum(b, logged=False)),
    "a sum changed, and the log": (9, lambda b: _edit_sum(b, logged=True)),
    "a sum that is text": (7, lambda b: b.lines("rounds.jsonl", lambda r: r[0].update(total=["x"]))),
    "rounds that are no objects": (7, lambda b: b.lines("rounds.jsonl", lambda r: [1, 2])),
    # 9: the release
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
    "a receipt of a round there was not": (10, lambda b: b.receipt(0, lambda p: p["rounds"][0].update(round=99))),
    "a receipt of another sum": (10, lambda b: b.receipt(0, lambda p: p["sums"].update({"1": "0" * 64}))),
    "receipts that checked too few sums": (10, lambda b: [b.receipt(i, lambda p: p["sums"].pop("2")) for i in range(3)]),
    "another model than was sent": (7, lambda b: b.lines("rounds.jsonl", lambda r: r[2].update(model=r[1]["model"]))),
    "receipts that are no objects": (10, lambda b: b.json("receipts.json", lambda r: [1])),
}  # fmt: skip


@pytest.mark.parametrize(("number", "tamper"), COORDINATOR.values(), ids=COORDINATOR.keys())
def test_a_coordinator_who_lies_is_found_out(
    bundle: Tampered, tmp_path: Path, number: int, tamper: Tamper
) -> None:
    before = dict(bundle.files)
    tamper(bundle)
    assert bundle.files != before
    with pytest.raises(VerificationError, match=rf"^check {number} \("):
        verify(bundle.write(tmp_path / "b.zip"))


def test_a_sum_changed_throughout_is_not_the_one_the_nodes_saw(bundle: Tampered, tmp_path: Path) -> None:
    """The coordinator changes a sum, and everything that follows from it; the receipts know another log."""
    _edit_sum(bundle, logged=True)
    plan = parse(Envelope.loads(bundle.files["study.json"]))
    totals: list[Any] = []
    bundle.lines("rounds.jsonl", lambda r: totals.append(r[-1]["total"]))
    metrics = asdict(evaluate.metrics(np.array(totals[0], np.int64), plan, 4))
    metrics["roc"] = [list(point) for point in metrics["roc"]]
    bundle.release("metrics.json", lambda p: p.update(metrics=metrics))
    with pytest.raises(VerificationError, match=r"^check 10 .*saw another log"):
        verify(bundle.write(tmp_path / "b.zip"))


def test_the_receipts_of_colluders_alone_are_not_enough(bundle: Tampered, tmp_path: Path) -> None:
    bundle.json("receipts.json", lambda r: r[:1])
    with pytest.raises(VerificationError, match=r"check 10 .* 1 receipts, 3 are needed"):
        verify(bundle.write(tmp_path / "b.zip"))


# ── what is no bundle at all ─────────────────────────────────────────────────────────────────────


def test_what_is_no_bundle_is_an_input_error(good: Any, tmp_path: Path) -> None:
    whole = good.run.evidence.read_bytes()
    contents = {
        "text": b"hello", "nothing": b"", "zeros": bytes(1000), "half": whole[: len(whole) // 2], "tail": whole[-500:],
        "cut": whole[:-30],
    }  # fmt: skip
    for name, data in contents.items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InputError):
            verify(path)
    for path in (tmp_path / "missing.zip", tmp_path):
        with pytest.raises(InputError):
            verify(path)


def test_a_damaged_stream_is_refused_or_says_the_same(good: Any, tmp_path: Path) -> None:
    """A flipped byte of a zip may fall on a date or a length that is written twice; content it can't change."""
    data = bytearray(good.run.evidence.read_bytes())
    whole = evidence.read(good.run.evidence)
    refused = 0
    for place in range(60, len(data) - 1500, 997):
        broken = bytearray(data)
        broken[place] ^= 0xFF
        path = tmp_path / "b.zip"
        path.write_bytes(bytes(broken))
        try:
            assert evidence.read(path) == whole
        except (InputError, VerificationError):
            refused += 1
    assert refused > 10


@pytest.mark.parametrize(
    "manifest", [None, b"", b"[]", b"{}", b"\xff", b'{"kind":"evidence","payload":{},"signatures":{}}']
)
def test_a_zip_of_something_else_is_refused(tmp_path: Path, manifest: bytes | None) -> None:
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as bundle:
        bundle.writestr("holiday.txt", "sun")
        if manifest is not None:
            bundle.writestr("manifest.json", manifest)
    with pytest.raises((InputError, VerificationError)):
        verify(tmp_path / "b.zip")


def test_an_empty_zip_is_refused(tmp_path: Path) -> None:
    zipfile.ZipFile(tmp_path / "b.zip", "w").close()
    with pytest.raises(InputError, match=r"no manifest\.json"):
        verify(tmp_path / "b.zip")


def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    many = tmp_path / "many.zip"
    with zipfile.ZipFile(many, "w") as bundle:
        for i in range(evidence.MAX_FILES + 1):
            bundle.writestr(f"{i}", b"")
    monkeypatch.setattr(evidence, "MAX_FILE", 1 << 20)
    monkeypatch.setattr(evidence, "MAX_TOTAL", 3 << 20)
    large, wide = tmp_path / "large.zip", tmp_path / "wide.zip"
    for path, size, count in ((large, (1 << 20) + 1, 1), (wide, 1 << 20, 4)):
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bundle:
            for i in range(count):
                bundle.writestr(f"{i}", bytes(size))
        assert path.stat().st_size < 10_000
    monkeypatch.setattr(zipfile.ZipFile, "read", lambda *_: pytest.fail("it was unpacked"))
    for path in (many, large, wide):
        with pytest.raises(InputError, match="larger than"):
            verify(path)


def test_a_name_twice_in_the_zip_is_refused(tmp_path: Path, good: Any) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(good.run.evidence.read_bytes())
    with zipfile.ZipFile(path, "a") as bundle, pytest.warns(UserWarning, match="Duplicate"):
        bundle.writestr("study.json", b"{}")
    with pytest.raises(VerificationError, match="occurs twice"):
        verify(path)
