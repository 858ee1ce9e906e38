"""A treaty of n shops with every key of it, for tests: one process here plays everybody."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from foedus.compliance import approvals
from foedus.compliance.treaty import (
    Approver,
    Coordinator,
    Overlap,
    Party,
    Person,
    PurposeTerms,
    Treaty,
    sign_all,
)
from foedus.documents import Envelope, SigningKey
from foedus.federation.fitting import resolve
from foedus.federation.schema import ChurnLabel
from foedus.federation.study import Draft, DraftPrivacy, Study

PURPOSE = "dpv:ServiceOptimisation"
ORIGIN = "coordinator.example/log"


@dataclass(frozen=True)
class Keys:
    """Every private key behind a treaty, by the name that signs with it.

    `nodes` are PEM EC P-384 private keys (PKCS #8), whose public halves are the parties' ``node_key``.
    """

    parties: dict[str, SigningKey]
    nodes: dict[str, bytes]
    coordinator: SigningKey
    scientists: dict[str, SigningKey]
    approvers: dict[str, SigningKey] = field(default_factory=dict)


def make_treaty(n: int = 4, *, colluders: int | None = None, **changes: Any) -> tuple[Envelope, Treaty, Keys]:
    """A treaty of ``shop-1`` … ``shop-n``, signed by all.

    Scientists ``alice`` and ``bob``; approvers ``bianca`` (business), ``dora`` (dpo) and ``officer-1`` …
    ``officer-n`` (a partner each). `changes` replace fields of the treaty.
    """
    names = [f"shop-{i}" for i in range(1, n + 1)]
    nodes = {name: ec.generate_private_key(ec.SECP384R1()) for name in names}
    keys = Keys(
        parties={name: SigningKey.generate() for name in names},
        nodes={
            name: key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            for name, key in nodes.items()
        },
        coordinator=SigningKey.generate(),
        scientists={name: SigningKey.generate() for name in ("alice", "bob")},
        approvers={
            name: SigningKey.generate()
            for name in ("bianca", "dora", *(f"officer-{i}" for i in range(1, n + 1)))
        },
    )
    fields: dict[str, Any] = {
        "name": "shops",
        "version": 1,
        "parties": tuple(
            Party(name=name, signing_key=keys.parties[name].public, node_key=_public_pem(nodes[name]))
            for name in names
        ),
        "coordinator": Coordinator(origin=ORIGIN, signing_key=keys.coordinator.public),
        "scientists": tuple(Person(name=p, signing_key=k.public) for p, k in keys.scientists.items()),
        "approvers": (
            Approver(name="bianca", signing_key=keys.approvers["bianca"].public, level="business"),
            Approver(name="dora", signing_key=keys.approvers["dora"].public, level="dpo"),
            *(
                Approver(
                    name=f"officer-{i}",
                    signing_key=keys.approvers[f"officer-{i}"].public,
                    level="partner",
                    party=name,
                )
                for i, name in enumerate(names, 1)
            ),
        ),
        "purposes": (PurposeTerms(purpose=PURPOSE, epsilon=8.0, delta=1e-5),),
        "min_silos": min(3, n),
        "min_cohort": 20,
        "max_cohort": 100_000,
        "colluders": max(1, (n - 1) // 3) if colluders is None else colluders,
        "overlap": Overlap(max_partners_per_customer=1, attestation="customers are told apart by region"),
        "retention_days": 365,
    }
    treaty = Treaty(**(fields | changes))
    return sign_all(treaty, list(keys.parties.items())), treaty, keys


def make_study(
    treaty: Envelope, content: Treaty, keys: Keys, *, author: str = "alice", **changes: Any
) -> Envelope:
    """A study of churn that the treaty permits, signed by `author`; `changes` replace fields of the draft."""
    draft = make_draft(author=author, **changes)
    return sign_study(resolve(draft, content, treaty.digest), keys)


def make_draft(*, author: str = "alice", **changes: Any) -> Draft:
    """What `make_study` resolves."""
    fields: dict[str, Any] = {
        "title": "churn of the shops",
        "author": author,
        "purpose": PURPOSE,
        "label": ChurnLabel(train_as_of="2024-06-01", test_as_of="2024-09-01"),
        "privacy": DraftPrivacy(epsilon=4.0),
    }
    return Draft(**(fields | changes))


def sign_study(study: Study, keys: Keys) -> Envelope:
    """The study signed by its author."""
    return study.envelope().signed(study.author, keys.scientists[study.author])


def decision(
    document: Envelope,
    content: Treaty,
    keys: Keys,
    envelope: Envelope,
    approver: str,
    /,
    *,
    days: float = 30,
    **changes: Any,
) -> Envelope:
    """`approver`'s signed decision on a study; `changes` replace arguments of `approvals.decide`."""
    payload = envelope.payload
    arguments: dict[str, Any] = {
        "study": envelope.digest,
        "treaty": document.digest,
        "purpose": payload["purpose"],
        "epsilon": payload["privacy"]["epsilon"],
        "expires": datetime.now(UTC) + timedelta(days=days),
    }
    who = next(a for a in content.approvers if a.name == approver)
    return approvals.decide(who, keys.approvers[approver], **(arguments | changes))


def all_approvals(treaty: Envelope, content: Treaty, keys: Keys, study: Envelope) -> list[Envelope]:
    """The decision of every approver: yes."""
    return [decision(treaty, content, keys, study, approver.name) for approver in content.approvers]


def make_home(home: Path, treaty: Envelope, keys: Keys) -> Path:
    """A server's directory: the treaty and the coordinator's key."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "treaty.json").write_bytes(treaty.dumps())
    keys.coordinator.save(home / "server.key")
    return home


def _public_pem(key: ec.EllipticCurvePrivateKey) -> str:
    return (
        key.public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        .decode()
    )
