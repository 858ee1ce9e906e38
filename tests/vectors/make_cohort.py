"""Makes the known answers of cohorts' trees and proofs again: ``python tests/vectors/make_cohort.py``.

From docs/protocols/cohort-proofs.md, RFC 5869, RFC 2104 and RFC 6962 §2.1 alone, by other code than foedus' own:
the tree is hashed by the RFC's recursion over the whole list. ``*_bad_*`` hold what must be refused.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent / "cohort"
SILO_KEY, STUDY = bytes(range(32)), "5" * 64
CUSTOMERS = [f"K{i:04d}" for i in range(1, 14)] + ["客户-7"]
ABSENT = [f"W{i}" for i in range(40)]


def sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def study_key() -> bytes:
    secret = hmac.new(bytes(32), SILO_KEY, hashlib.sha256).digest()
    return hmac.new(secret, b"foedus cohort key\0" + STUDY.encode() + b"\x01", hashlib.sha256).digest()


def label(customer: str) -> bytes:
    return hmac.new(study_key(), b"foedus cohort label\0" + customer.encode(), hashlib.sha256).digest()


def tree(leaves: list[bytes]) -> bytes:
    if not leaves:
        return sha(b"")
    if len(leaves) == 1:
        return sha(b"\x00" + leaves[0])
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return sha(b"\x01" + tree(leaves[:k]) + tree(leaves[k:]))


def path(m: int, leaves: list[bytes]) -> list[bytes]:
    if len(leaves) == 1:
        return []
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    if m < k:
        return [*path(m, leaves[:k]), tree(leaves[k:])]
    return [*path(m - k, leaves[k:]), tree(leaves[:k])]


def leaf(m: int, leaves: list[bytes]) -> dict[str, Any]:
    return {"index": m, "label": leaves[m].hex(), "path": [h.hex() for h in path(m, leaves)]}


def proof(wanted: bytes, shown: list[int], leaves: list[bytes]) -> dict[str, Any]:
    return {
        "label": wanted.hex(),
        "size": len(leaves),
        "root": tree(leaves).hex(),
        "leaves": [leaf(m, leaves) for m in shown],
    }


def files() -> dict[str, str]:
    leaves = sorted(label(c) for c in CUSTOMERS)
    by_place: dict[int, tuple[str, bytes]] = {}
    for name in ABSENT:  # how many labels are below it
        by_place.setdefault(sum(x < label(name) for x in leaves), (name, label(name)))
    first, last = by_place[0], by_place[len(leaves)]
    place = next(p for p in sorted(by_place) if 1 < p < len(leaves) - 1)
    inside = by_place[place]
    inserted = sorted([*leaves, inside[1]])
    unsorted = [*leaves[:place], inside[1], *leaves[place:]][::-1]
    good = proof(inside[1], [place - 1, place], leaves)
    lost = json.loads(json.dumps(good))
    lost["leaves"][0]["path"][0] = "00" * 32
    small = good | {"size": place}
    out: dict[str, Any] = {
        "tree": {
            "silo_key": SILO_KEY.hex(),
            "study": STUDY,
            "key": hashlib.sha256(b"foedus cohort commitment\0" + study_key()).hexdigest(),
            "customers": CUSTOMERS,
            "labels": {c: label(c).hex() for c in CUSTOMERS},
            "size": len(leaves),
            "root": tree(leaves).hex(),
        },
        "member": {"customer": CUSTOMERS[0], "proof": proof(label(CUSTOMERS[0]), [leaves.index(label(CUSTOMERS[0]))], leaves)},
        "absent": [
            {"customer": first[0], "proof": proof(first[1], [0], leaves)},
            {"customer": last[0], "proof": proof(last[1], [len(leaves) - 1], leaves)},
            {"customer": inside[0], "proof": good},
            {"customer": "nobody else", "proof": proof(label("nobody else"), [], [])},
        ],
        "absent_bad_gap": proof(inside[1], [place - 2, place], leaves),
        "absent_bad_one_neighbour": proof(inside[1], [place], leaves),
        "absent_bad_no_leaves": proof(inside[1], [], leaves),
        "absent_bad_member": proof(inside[1], [inserted.index(inside[1])], inserted),
        "absent_bad_beside": proof(inside[1], [place, place + 1], leaves),
        "absent_bad_descending": proof(inside[1], [unsorted.index(leaves[place]), unsorted.index(leaves[place]) + 1], unsorted),
        "absent_bad_path": lost,
        "absent_bad_size": small,
        "absent_bad_empty_root": good | {"size": 0, "leaves": []},
        "member_bad_other": proof(inside[1], [place], leaves),
    }  # fmt: skip
    return {
        f"{name}.json": json.dumps(value, indent=1, ensure_ascii=False) + "\n" for name, value in out.items()
    }


if __name__ == "__main__":
    HERE.mkdir(exist_ok=True)
    for name, text in files().items():
        (HERE / name).write_text(text, encoding="utf-8")
