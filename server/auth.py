"""Who is asking: bearer tokens, each with one of four roles.

A token is ``foedus_<prefix>_<secret>``: 8 hex digits that name it and 64 that are its secret (256 random
bits). The server keeps the secret's SHA-256 only; a random secret of that length needs no slow hash.
A role lets somebody *ask*; what a study may do is decided by signatures, which no token can replace.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum

from fastapi import Request

from ..errors import InputError
from .problems import Forbidden, Unauthenticated
from .store import Store, TokenRow

MAX_DAYS = 366
_FORM = re.compile(r"foedus_([0-9a-f]{8})_([0-9a-f]{64})", re.ASCII)
_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}", re.ASCII)
_NOBODY = hashlib.sha256(b"").hexdigest()


class Role(StrEnum):
    """What a person is to the server."""

    SCIENTIST = "scientist"
    OFFICER = "officer"
    PARTNER = "partner"
    ADMIN = "admin"


@dataclass(frozen=True)
class Principal:
    """The person behind a token."""

    name: str
    role: Role


def issue(name: str, role: Role, days: int, *, now: datetime | None = None) -> tuple[str, TokenRow]:
    """A new token: the text to hand over once, and the row to keep.

    Raises:
        InputError: a name or a number of days out of bounds.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r}: a name is of lower-case letters, digits and . _ @ -, at most 64")
    if not 1 <= days <= MAX_DAYS:
        raise InputError(f"a token lives 1 to {MAX_DAYS} days, not {days}")
    prefix, secret = secrets.token_hex(4), secrets.token_hex(32)
    expires = (now or datetime.now(UTC)) + timedelta(days=days)
    row = TokenRow(prefix, _hash(secret), name, role.value, expires.isoformat(timespec="milliseconds"))
    return f"foedus_{prefix}_{secret}", row


def authenticate(store: Store, header: str | None, *, now: datetime | None = None) -> Principal:
    """The person whose token an ``Authorization`` header carries.

    Raises:
        Unauthenticated: no token, a malformed or unknown one, or one that is expired or revoked.
    """
    scheme, _, text = (header or "").partition(" ")
    if scheme.lower() != "bearer" or not text.strip():
        raise Unauthenticated(
            "NO_TOKEN",
            "this needs a token",
            remedy="send `Authorization: Bearer foedus_…`; the CLI reads FOEDUS_TOKEN",
        )
    form = _FORM.fullmatch(text.strip())
    row = store.token(form[1]) if form else None
    # The same work for an unknown prefix as for a wrong secret.
    kept = _NOBODY if row is None else row.sha256
    if not hmac.compare_digest(_hash(form[2] if form else text), kept) or row is None:
        raise Unauthenticated(
            "UNKNOWN_TOKEN", "the server knows no such token", remedy="ask its operator for one"
        )
    if row.revoked is not None:
        raise Unauthenticated(
            "TOKEN_REVOKED", f"the token {row.prefix} was revoked", remedy="ask for a new one"
        )
    if datetime.fromisoformat(row.expires) <= (now or datetime.now(UTC)):
        raise Unauthenticated(
            "TOKEN_EXPIRED", f"the token {row.prefix} has expired", remedy="ask for a new one"
        )
    return Principal(row.name, Role(row.role))


def require(*roles: Role) -> Callable[[Request], Principal]:
    """A FastAPI dependency: the caller, if they have one of `roles`.

    Raises:
        InputError: no roles are given (an empty policy refuses, at the start and not at night).
    """
    if not roles:
        raise InputError("a route needs at least one role")

    def caller(request: Request) -> Principal:
        store: Store = request.app.state.desk.store
        principal = authenticate(store, request.headers.get("authorization"))
        if principal.role not in roles:
            allowed = " or ".join(role.value for role in roles)
            raise Forbidden(
                "ROLE_NOT_ALLOWED",
                f"{principal.name} is {principal.role.value}; this is for {allowed}",
                remedy=f"use a token of role {allowed}",
            )
        return principal

    return caller


def _hash(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
