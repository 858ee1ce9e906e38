"""A small world to run in: partners with their directories, people with their keys, a signed treaty."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import overload

import pandas as pd

from ..clients.cohort import PURCHASES
from ..clients.fleet import node_public_key
from ..clients.home import Home, Settings
from ..compliance import approvals
from ..compliance.consent import ConsentRegister, Notice
from ..compliance.treaty import Approver, Coordinator, Overlap, Party, Person, PurposeTerms, Treaty, sign_all
from ..documents import Envelope, SigningKey
from ..errors import InputError
from ..federation.fitting import resolve
from ..federation.study import AnyDraft, AnyStudy, Draft, Study
from .data import Orders, consents, deal

NAMES = (
    "aster-music",
    "birch-records",
    "cedar-sound",
    "dune-media",
    "elm-audio",
    "fern-discs",
    "gale-tapes",
    "holly-vinyl",
)
SHARES = (0.35, 0.30, 0.20, 0.15)
NOTICE = "2026-01/en"
PUBLISHED = datetime(2020, 1, 1, tzinfo=UTC)
PEOPLE = ("dana", "bruno", "delia")


@dataclass(frozen=True)
class World:
    """Where everything lies. Keys are files under `root`: nodes hold theirs, people theirs in ``people/``."""

    root: Path
    treaty_envelope: Envelope
    treaty: Treaty
    homes: dict[str, Path]

    @property
    def server(self) -> Path:
        return self.root / "server"

    def key(self, person: str) -> SigningKey:
        """The key of the scientist or an approver."""
        return SigningKey.load(self.root / "people" / f"{person}.key")

    @overload
    def sign_study(self, draft: Draft) -> tuple[Study, Envelope]: ...
    @overload
    def sign_study(self, draft: AnyDraft) -> tuple[AnyStudy, Envelope]: ...
    def sign_study(self, draft: AnyDraft) -> tuple[AnyStudy, Envelope]:
        """A draft fitted to the treaty and signed by its author."""
        study = resolve(draft, self.treaty, self.treaty_envelope.digest)
        return study, study.envelope().signed(study.author, self.key(study.author))

    def approve(self, study: AnyStudy, digest: str, approver: Approver) -> Envelope:
        """One approver's signature over a study."""
        return approvals.decide(
            approver,
            self.key(approver.name),
            study=digest,
            treaty=self.treaty_envelope.digest,
            purpose=study.purpose,
            epsilon=study.privacy.epsilon,
            expires=datetime.now(UTC) + timedelta(days=30),
        )


def build(
    root: Path,
    orders: Orders,
    draft: AnyDraft,
    *,
    silos: int = 4,
    gateway: str = "127.0.0.1:1",
    consent: bool = True,
    may_exist: bool = False,
) -> World:
    """Deal `orders` to `silos` partners and make all they need; the treaty permits `draft`, twice over.

    Args:
        gateway: where the nodes will find the server. consent: False lets everybody consent.
        may_exist: the caller made the directory and knows what is in it.

    Raises:
        InputError: the directory is in use, or the number of silos is not 3 to 8.
    """
    if not 3 <= silos <= len(NAMES):
        raise InputError(f"{silos} silos: from 3 to {len(NAMES)} can be played here")
    if not may_exist and root.exists() and any(root.iterdir()):
        raise InputError(f"{root}: not empty", remedy="choose another --dir, or remove it")
    names = NAMES[:silos]
    shares = SHARES if silos == len(SHARES) else (1.0,) * silos
    frames = deal(orders, shares)
    homes = {name: root / "nodes" / name for name in names}
    for name, frame in zip(names, frames, strict=True):
        settings = Settings(party=name, server=gateway, table="orders.parquet", categories=(PURCHASES,))
        home = Home.create(homes[name], settings)
        frame.to_parquet(home.table)
        _fill_register(home, frame, draft.purpose, everybody=not consent)
    (root / "people").mkdir()
    coordinator = SigningKey.generate()
    coordinator.save(root / "server" / "server.key")
    treaty = _treaty(root, homes, draft, coordinator, max(len(f["customer"].unique()) for f in frames))
    keys = [(name, Home.load(path).identity()) for name, path in homes.items()]
    envelope = sign_all(treaty, keys)
    for path in (*homes.values(), root / "server"):
        (path / "treaty.json").write_bytes(envelope.dumps())
    return World(root, envelope, treaty, homes)


def _fill_register(home: Home, frame: pd.DataFrame, purpose: str, *, everybody: bool) -> None:
    grants, withdrawals = consents(sorted(frame["customer"].unique()), purpose, NOTICE)
    register = ConsentRegister(home.path / "consent.db")
    register.publish(_notice(home.party, purpose))
    if everybody:
        known = {g.subject: g for g in grants}
        first = next(iter(known.values()))
        missing = [c for c in frame["customer"].unique() if c not in known]
        grants = [
            type(g)(g.subject, g.purpose, g.notice_version, g.granted_at, None, g.method) for g in grants
        ] + [type(first)(c, purpose, NOTICE, first.granted_at, None, "demo") for c in missing]
        withdrawals = []
    register.grant_many(grants)
    register.withdraw_many(withdrawals)


def _notice(party: str, purpose: str) -> Notice:
    """What the customers of a partner of the demo were told."""
    return Notice.checked(
        {
            "version": NOTICE.partition("/")[0],
            "effective_from": PUBLISHED,
            "controller": {"name": party, "address": "1 Demo Road", "contact": f"privacy@{party}.example"},
            "jurisdiction": "EU",
            "audience": "own_consent",
            "purposes": {purpose: [PURCHASES]},
            "storage": {"location": "at home", "days": 1096},
            "withdraw_at": f"https://{party}.example/consent",
            "rights_at": f"https://{party}.example/rights",
            "text": {
                "zh": "我们与合作伙伴共同训练模型，您的购买记录不会离开本公司。您可以随时撤回同意。",
                "en": "We train models together with partners; your purchases never leave us. Withdraw at any time.",
            },
        },
        "the demo's notice",
    )


def _person(root: Path, name: str) -> str:
    key = SigningKey.generate()
    key.save(root / "people" / f"{name}.key")
    return key.public


def _treaty(
    root: Path, homes: dict[str, Path], draft: AnyDraft, coordinator: SigningKey, largest: int
) -> Treaty:
    n = len(homes)
    author, business, dpo = draft.author, "bruno", "delia"
    approvers = [
        Approver(name=business, signing_key=_person(root, business), level="business"),
        Approver(name=dpo, signing_key=_person(root, dpo), level="dpo"),
        *(
            Approver(name=f"officer.{p}", signing_key=_person(root, f"officer.{p}"), level="partner", party=p)
            for p in homes
        ),
    ]
    return Treaty(
        name="Demo treaty of the record shops",
        version=1,
        parties=tuple(
            Party(
                name=name,
                signing_key=Home.load(path).identity().public,
                node_key=node_public_key(path / "fleet.key").decode(),
            )
            for name, path in homes.items()
        ),
        coordinator=Coordinator(origin="foedus.demo/log", signing_key=coordinator.public),
        scientists=(Person(name=author, signing_key=_person(root, author)),),
        approvers=tuple(approvers),
        purposes=(
            PurposeTerms(purpose=draft.purpose, epsilon=2 * draft.privacy.epsilon, delta=draft.privacy.delta),
        ),
        min_silos=3,
        min_cohort=50,
        max_cohort=max(10_000, 10 ** len(str(largest))),
        colluders=max(1, (n - 1) // 3),
        overlap=Overlap(
            max_partners_per_customer=1,
            attestation="Made for the demo: every customer was dealt to one partner only.",
        ),
        retention_days=1096,
        unsafe=draft.privacy.mode.unsafe,
    )
