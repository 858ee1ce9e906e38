"""``/v1/studies``: submit a study, list them, look at one, run one."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from ...compliance.treaty import Treaty
from ...federation.pricing import price
from ..auth import Principal, Role, require
from ..desk import Body, Desk, DeskOf
from ..store import RunRow, StudyRow

router = APIRouter(prefix="/studies")


@router.post("", status_code=201)
def submit(
    caller: Annotated[Principal, Depends(require(Role.SCIENTIST))], desk: DeskOf, body: Body
) -> dict[str, Any]:
    """Submit a signed study; the body is its envelope."""
    return summary(desk, desk.registry.submit(body, actor=caller.name))


@router.get("", dependencies=[Depends(require(*Role))])
def index(desk: DeskOf) -> dict[str, Any]:
    """Every study, newest first."""
    return {"studies": [summary(desk, row) for row in desk.store.studies()]}


@router.get("/{digest}", dependencies=[Depends(require(*Role))])
def show(digest: str, desk: DeskOf) -> dict[str, Any]:
    """One study: standing, price, envelope, decisions and runs."""
    row = desk.registry.find(digest)
    study = desk.registry.study(row)
    return summary(desk, row) | {
        "price": price(study, desk.treaty),
        "envelope": json.loads(row.envelope),
        "approvals": [envelope.to_json() for envelope in desk.store.approvals(row.digest)],
        "runs": [run_json(run) for run in desk.registry.runs(row)],
    }


@router.post("/{digest}/run", status_code=201)
def run(
    digest: str, caller: Annotated[Principal, Depends(require(Role.SCIENTIST))], desk: DeskOf
) -> dict[str, Any]:
    """Run an approved study."""
    return run_json(desk.runs.start(desk.registry.find(digest).digest, actor=caller.name))


def budget(treaty: Treaty, purpose: str) -> str:
    """The budget of a purpose in words; of an older study the treaty may permit it no more."""
    return next((t.budget for t in treaty.purposes if t.purpose == purpose), "not permitted any more")


def summary(desk: Desk, row: StudyRow) -> dict[str, Any]:
    """A study in a line."""
    study, standing = desk.registry.study(row), desk.registry.standing(row)
    return {
        "digest": row.digest,
        "title": row.title,
        "author": row.author,
        "submitted_by": row.submitted_by,
        "submitted_at": row.submitted_at,
        "purpose": study.purpose,
        "epsilon": study.privacy.epsilon,
        "delta": study.privacy.delta,
        "unit": desk.treaty.unit,
        "budget": budget(desk.treaty, study.purpose),
        "status": standing.status,
        "missing": list(standing.missing),
        "reason": standing.reason,
    }


def run_json(row: RunRow) -> dict[str, Any]:
    """A run in a line."""
    return {
        "id": row.id,
        "study": row.study,
        "status": row.status,
        "started": row.started,
        "finished": row.finished,
    }
