"""Heads of ledgers in the server's log: signed by their silos, and a ledger that went back shows to everybody."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.orders import copy_of, make_draft, small_world

from foedus.clients.home import Home
from foedus.compliance.auditlog.log import AuditLog
from foedus.demo.simulate import simulate
from foedus.documents import SigningKey
from foedus.errors import VerificationError
from foedus.federation import ledger_heads
from foedus.federation.ledger_heads import Stated
from foedus.federation.verification import verify
from foedus.privacy.ledger import Head, Ledger

KEYS = {name: SigningKey.generate() for name in ("shop-a", "shop-b")}


def hashed(number: int) -> str:
    return f"{number:064x}"


def said(silo: str, size: int, log: int, *, write_offs: int = 0, mark: int = 0) -> dict[str, Any]:
    return ledger_heads.state(Head(size, hashed(size + mark), write_offs), silo, log, KEYS[silo])


def set_up(**ledgers: dict[str, Any]) -> dict[str, Any]:
    return {
        "action": "run.set-up",
        "details": {"ledgers": {k.replace("_", "-"): v for k, v in ledgers.items()}},
    }


def receipt(silo: str, stated: object) -> dict[str, Any]:
    return {"action": "receipt", "details": {"silo": silo, "ledger": stated}}


def check(*records: dict[str, Any]) -> int:
    return ledger_heads.check_log(records, lambda silo: KEYS[silo].public)


def test_ledgers_that_grow_are_in_order() -> None:
    other = {"action": "round.summed", "details": {"run": "1"}}
    assert check(
        set_up(shop_a=said("shop-a", 0, 5), shop_b=said("shop-b", 40, 5)),
        other,
        receipt("shop-a", said("shop-a", 20, 9)),
        set_up(shop_a=said("shop-a", 20, 12)),
        receipt("shop-b", said("shop-b", 44, 12)),
        # two runs at a time: what was stated earlier is logged later
        receipt("shop-a", said("shop-a", 19, 8)),
        # a write-off may begin anew
        set_up(shop_a=said("shop-a", 1, 20, write_offs=1)),
    ) == 7  # fmt: skip


@pytest.mark.parametrize(
    "later",
    [
        said("shop-a", 19, 13),
        said("shop-a", 20, 13, mark=1),
        said("shop-a", 0, 13),
        said("shop-a", 20, 12, mark=1),
    ],
    ids=["shorter", "another of that size", "empty", "two at one time"],
)
def test_a_ledger_that_went_back_shows(later: dict[str, Any]) -> None:
    with pytest.raises(VerificationError, match="shop-a's ledger went back"):
        check(set_up(shop_a=said("shop-a", 20, 12)), receipt("shop-a", later))


def test_a_write_off_that_was_undone_shows() -> None:
    with pytest.raises(VerificationError, match="went back"):
        check(set_up(shop_a=said("shop-a", 1, 12, write_offs=1)), set_up(shop_a=said("shop-a", 500, 13)))


def test_only_the_silo_can_state_its_head(subtests: pytest.Subtests) -> None:
    good = said("shop-a", 20, 12)
    for name, bad in {
        "another size": {**good, "size": 21},
        "another time": {**good, "log": 3},
        "another silo's": said("shop-b", 20, 12),
        "no signature": {k: v for k, v in good.items() if k != "signature"},
        "no base64": {**good, "signature": "x"},
        "more": {**good, "more": 1},
        "not a head": None,
    }.items():
        with subtests.test(name), pytest.raises(VerificationError):
            check(receipt("shop-a", bad))


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=12), st.randoms())
def test_growth_is_accepted_in_any_order_of_the_log(steps: list[tuple[int, int]], random: Any) -> None:
    heads, size, log = [], 0, 0
    for grown, seen in steps:
        size, log = size + grown, log + seen
        heads.append(Stated(size=size, hash=hashed(size), write_offs=0, log=log))
    random.shuffle(heads)
    ledger_heads.check_order("shop-a", heads)


# ── in a bundle ──────────────────────────────────────────────────────────────────────────────────


def test_a_bundle_anchors_every_ledger_and_one_that_went_back_fails_its_check(tmp_path: Path) -> None:
    draft = make_draft()
    world = small_world(tmp_path / "world", draft)
    log = AuditLog(world.server / "audit.db", world.treaty.coordinator.origin)
    silo = next(iter(world.homes))
    key = Home.load(world.homes[silo]).identity()

    honest = simulate(copy_of(world, tmp_path / "honest"), draft)
    verify(honest.evidence)
    records = [entry.record for entry in honest.case.log.entries()]
    set_up_entry = next(r for r in records if r["action"] == "run.set-up")
    assert set(ledger_heads.silos_in(set_up_entry)) == set(world.homes)
    last = {s: r for r in records if r["action"] == "receipt" for s in ledger_heads.silos_in(r)}
    for name in world.homes:
        public = world.treaty.party(name).signing_key
        head = Ledger(tmp_path / "honest" / "nodes" / name / "ledger.db").head
        assert ledger_heads.read(ledger_heads.stated_in(last[name], name), name, public).head == head

    def note(kind: str, data: Mapping[str, Any]) -> None:
        if kind == "receipts":  # a head from long ago comes to light, of a ledger that was longer then
            stated = ledger_heads.state(Head(99, hashed(99)), silo, 1, key)
            log.append("coordinator", "receipt", "0" * 64, {"run": "0", "silo": silo, "ledger": stated})

    with pytest.raises(VerificationError, match=f"check 10.*{silo}'s ledger went back"):
        verify(simulate(world, draft, note=note).evidence)
