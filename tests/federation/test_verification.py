"""What an officer's offline check finds: every tampering, by outsiders and by the coordinator itself."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.bundles import Tampered
from support.tampering import COORDINATOR, Tamper, edit_sum
from support.treaties import make_treaty

from foedus.compliance import evidence
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


def test_a_file_that_no_check_looks_at_is_refused(bundle: Tampered, tmp_path: Path) -> None:
    for name in ("release/weights.json", "../../release/model.json", "README.txt"):
        extra = Tampered(bundle.path, bundle.world)
        extra.files[name] = b"{}"
        with pytest.raises(VerificationError, match="has no place in a bundle"):
            verify(extra.write(tmp_path / "b.zip"))


def test_a_manifest_by_another_key_is_refused(bundle: Tampered, tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"check 1 \(bundle\)"):
        verify(bundle.write(tmp_path / "b.zip", key=SigningKey.generate()))


def test_the_officers_own_treaty_decides(good: Any, tmp_path: Path) -> None:
    other, _, _ = make_treaty(4)
    (tmp_path / "mine.json").write_bytes(other.dumps())
    with pytest.raises(VerificationError, match=r"check 2 .*not the one you hold"):
        verify(good.run.evidence, own_treaty=tmp_path / "mine.json")


# ── the coordinator, who can sign the manifest, the log and the release ──────────────────────────


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
    edit_sum(bundle, logged=True)
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
