"""``/v1/treaty``: the treaty this server works under, as signed by its parties."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends

from ..auth import Role, require
from ..desk import DeskOf

router = APIRouter()


@router.get("/treaty", dependencies=[Depends(require(*Role))])
def treaty(desk: DeskOf) -> dict[str, Any]:
    """The treaty's envelope. Believe your own copy, not this one."""
    return {"digest": desk.document.digest, "envelope": desk.document.to_json()}
