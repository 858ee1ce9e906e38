"""``/v1/studies/{digest}/approvals``: an approver's signed decision."""

from __future__ import annotations

import logging
from typing import Annotated, Any

from fastapi import APIRouter, Depends

from ...errors import Unreachable
from ..auth import Principal, Role, require
from ..desk import Body, DeskOf
from .studies import summary

_log = logging.getLogger(__name__)
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
    try:
        desk.runs.stop_rejected()
    except Unreachable as error:  # the decision is filed; the watch over the runs tries again
        _log.warning("a run may have to be stopped: %s", error.message)
    return summary(desk, desk.registry.find(digest))
