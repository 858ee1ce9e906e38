"""``/v1/studies/{digest}/approvals``: an approver's signed decision."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends

from ..auth import Principal, Role, require
from ..desk import Body, DeskOf
from .studies import summary

router = APIRouter(prefix="/studies/{digest}/approvals")


@router.post("", status_code=201)
def decide(
    digest: str,
    caller: Annotated[Principal, Depends(require(Role.OFFICER, Role.PARTNER))],
    desk: DeskOf,
    body: Body,
) -> dict[str, Any]:
    """File an approval or a rejection; the body is its envelope.

    A rejection stops the study's run, if it is running. Whose decision it is stands in its signature, not in the token that carries it.
    """
    desk.registry.decide(digest, body, actor=caller.name)
    desk.runs.stop_rejected()
    return summary(desk, desk.registry.find(digest))
