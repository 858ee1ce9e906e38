"""A study on simulated silos: the real guard, ledger, secure sum and coordinator, in one process."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..clients.app import SiloApp
from ..clients.home import Home
from ..compliance.auditlog.log import AuditLog, study_key
from ..documents import Envelope, SigningKey
from ..federation.modes import Sampler
from ..federation.simulation import RUN_ID, Drop, LocalGrid
from ..federation.study import Draft, Study
from ..privacy.noise import discrete_gaussian
from ..server.case import Case
from ..server.checkpoint import Checkpoint
from ..server.coordinator import conduct
from .world import World


@dataclass(frozen=True)
class Simulated:
    """What a simulation left: the case with its sums, the evidence, and the grid with the bytes it counted."""

    study: Study
    case: Case
    evidence: Path
    grid: LocalGrid


def prepare(
    world: World,
    draft: Draft,
    *,
    note: Callable[[str, Mapping[str, Any]], None] = lambda kind, data: None,
    drop: Drop | None = None,
    lose_reply: Drop | None = None,
    sampler: Sampler = discrete_gaussian,
    approvals: Callable[[Study, str], list[Envelope]] | None = None,
) -> tuple[LocalGrid, Case]:
    """Silos on an in-process Grid and an approved study in the coordinator's hands."""
    study, envelope = world.sign_study(draft)
    log = AuditLog(world.server / "audit.db", world.treaty.coordinator.origin)
    log.append(
        draft.author,
        "study.submitted",
        envelope.digest,
        {},
        sealed={"title": study.title},
        key=study_key(envelope.digest),
    )
    given = (
        approvals(study, envelope.digest)
        if approvals is not None
        else [world.approve(study, envelope.digest, a) for a in world.treaty.approvers]
    )
    for approval in given:
        name = str(approval.payload["approver"])
        log.append(name, "study.approved", envelope.digest, {"approval": approval.digest})
    log.append("coordinator", "run.started", envelope.digest, {"run": str(RUN_ID)})
    apps = {100 + i: SiloApp(Home.load(path), sampler=sampler) for i, path in enumerate(world.homes.values())}
    keys = {100 + i: party.node_key.encode() for i, party in enumerate(world.treaty.parties)}
    grid = LocalGrid(apps, keys, drop=drop, lose_reply=lose_reply)
    case = Case(
        treaty_envelope=world.treaty_envelope,
        treaty=world.treaty,
        study_envelope=envelope,
        study=study,
        approvals=given,
        run=str(RUN_ID),
        key=SigningKey.load(world.server / "server.key"),
        log=log,
        out=world.server / "evidence" / envelope.digest[:16],
        lineage=world.server / "lineage.db",
        kept=Checkpoint(
            world.server / "runs" / f"{envelope.digest[:16]}.db", study=envelope.digest, run=str(RUN_ID)
        ),
        heads={},
        acknowledge=lambda silo, size: None,
        note=note,
        sampler=sampler,
    )
    return grid, case


def simulate(world: World, draft: Draft, **options: Any) -> Simulated:
    """Run a draft in this process; options as for `prepare`."""
    grid, case = prepare(world, draft, **options)
    return Simulated(case.study, case, conduct(grid, case), grid)
