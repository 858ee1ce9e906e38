"""``/v1/tokens``: give out, list and revoke tokens."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, ValidationError

from ...compliance.treaty import explain
from ...documents import parse_json
from ..auth import Principal, Role, issue, require
from ..desk import Body, DeskOf
from ..problems import NotFound
from ..store import TokenRow

router = APIRouter(prefix="/tokens")
Admin = Annotated[Principal, Depends(require(Role.ADMIN))]


class _Wanted(BaseModel):
    model_config = ConfigDict(extra="forbid")

    name: str
    role: Role
    days: int = 90


@router.post("", status_code=201)
def create(caller: Admin, desk: DeskOf, body: Body) -> dict[str, Any]:
    """A new token. Its text is in this answer and nowhere else."""
    try:
        wanted = _Wanted.model_validate(parse_json(body))
    except ValidationError as error:
        raise explain(error, "token") from error
    text, row = issue(wanted.name, wanted.role, wanted.days)
    details = {"name": row.name, "role": row.role, "expires": row.expires}
    desk.store.add_token(
        row, record=lambda: desk.log.append(caller.name, "token.created", row.prefix, details)
    )
    return _line(row) | {"token": text}


@router.get("")
def index(caller: Admin, desk: DeskOf) -> dict[str, Any]:
    """Every token there was, without its secret."""
    return {"tokens": [_line(row) for row in desk.store.tokens()]}


@router.delete("/{prefix}", status_code=204)
def revoke(prefix: str, caller: Admin, desk: DeskOf) -> None:
    """Revoke a token, at once and for good."""
    if not desk.store.revoke_token(
        prefix, record=lambda: desk.log.append(caller.name, "token.revoked", prefix, {})
    ):
        raise NotFound("no token of that prefix is in force")


def _line(row: TokenRow) -> dict[str, Any]:
    return {name: getattr(row, name) for name in ("prefix", "name", "role", "created", "expires", "revoked")}
