"""A small HTTP server at the node that takes in consents as they happen: ``POST /events``.

Messages are signed as Standard Webhooks are (standardwebhooks.com): headers ``webhook-id``,
``webhook-timestamp`` (Unix seconds) and ``webhook-signature``, a list of ``v1,`` + base64 of
HMAC-SHA-256(secret, id + "." + timestamp + "." + body). The body is JSON::

    {"type": "consent.granted", "subject": …, "purpose": …, "notice_version": …, "granted_at": …, …}
    {"type": "consent.withdrawn", "subject": …, "purpose": …, "at": …}

with the fields of `compliance.consent.rows`, all text. What is done, in this order:

1. at most 64 KiB are read;                                            else 413
2. the timestamp is within five minutes of our clock, the signature holds;   else 401
3. the body is such an event;                                          else 422, naming the field
4. the node's audit log says so, then event and id are on disk, in one transaction;                       409 if that id, or a grant of that
   instant, says something else; 503 if the register can't be written now: send it again
5. 200 ``{"event": id, "taken": true}``; ``false`` where it was here already.

So what was answered with 200 outlives a power cut, and sending it again changes nothing.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from ..compliance.consent import Change, ConsentRegister, Grant, Withdrawal
from ..compliance.consent.records import FieldError, micros
from ..compliance.consent.rows import OPTIONAL, REQUIRED, grant_of
from ..compliance.consent.store import Conflict
from ..documents import ensure_private_file, parse_json, read_private_file
from ..errors import FoedusError, InputError
from .consent_log import ConsentLog

MAX_BYTES = 64 * 1024
WINDOW_SECONDS = 300
PREFIX = "whsec_"
_GRANTED = frozenset(("type", *REQUIRED, *OPTIONAL)) - {"withdrawn_at"}
_WITHDRAWN = frozenset(("type", "subject", "purpose", "at"))
_log = logging.getLogger("foedus.consent")


def load_secret(path: Path) -> bytes:
    """The shared secret; the file is made (mode 0600) if there is none.

    Raises:
        InputError: readable by others, or not ``whsec_`` + base64 of 24 bytes or more.
    """
    fresh = PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()
    ensure_private_file(path, f"{fresh}\n".encode())
    text = read_private_file(path).decode(errors="replace").strip()
    try:
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error:
        secret = b""
    if not text.startswith(PREFIX) or len(secret) < 24:
        raise InputError(f"{path}: not a webhook secret: {PREFIX} and base64 of 24 bytes or more")
    return secret


def signature(secret: bytes, event: str, timestamp: str, body: bytes) -> str:
    """One entry of ``webhook-signature``."""
    signed = f"{event}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()


def create_app(
    register: ConsentRegister,
    secret: bytes,
    *,
    clock: Callable[[], float] = time.time,
    log: ConsentLog | None = None,
) -> FastAPI:
    """The server's application.

    Args:
        log: the node's, where each event is noted.
    """
    app = FastAPI(openapi_url=None)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/events")
    async def events(request: Request) -> JSONResponse:
        body = b""
        async for chunk in request.stream():  # 1
            body += chunk
            if len(body) > MAX_BYTES:
                return _no(413, f"more than {MAX_BYTES} bytes")
        event = request.headers.get("webhook-id", "")
        if not _authentic(request.headers, event, body, secret, clock()):  # 2
            return _no(401, "not signed with our secret, or not within five minutes of our clock")
        return await run_in_threadpool(_take, register, event, body, log)

    return app


def _take(register: ConsentRegister, event: str, body: bytes, log: ConsentLog | None) -> JSONResponse:
    try:
        change = _parsed(event, body)  # 3
        taken = register.take_event(change, record=_noted(log, change.what))  # 4
    except Conflict as error:
        return _no(409, error.message)
    except FieldError as error:
        return _no(422, f"{error.field}: {error.problem}", field=error.field)
    except FoedusError as error:
        _log.error("the event %r is not taken: %s", event, error.message)
        return _no(503, "the register can't be written now; send it again")
    return JSONResponse({"event": event, "taken": taken})  # 5


def _noted(log: ConsentLog | None, what: Grant | Withdrawal) -> Callable[[], object]:
    if log is None:
        return lambda: None
    return log.granted(what) if isinstance(what, Grant) else log.withdrawn(what, "webhook")


def _authentic(headers: Mapping[str, str], event: str, body: bytes, secret: bytes, now: float) -> bool:
    stamp = headers.get("webhook-timestamp", "")
    if not event or not event.isascii() or len(event) > 200 or not event.isprintable():
        return False
    if not (stamp.isascii() and stamp.isdigit() and len(stamp) < 12):
        return False
    if abs(now - int(stamp)) > WINDOW_SECONDS:
        return False
    expected = signature(secret, event, stamp, body).encode()
    given = headers.get("webhook-signature", "").split(" ")
    return any(hmac.compare_digest(expected, one.encode(errors="replace")) for one in given)


def _parsed(event: str, body: bytes) -> Change:
    try:
        content: Any = parse_json(body)
    except InputError as error:
        raise FieldError("body", error.message) from error
    if not isinstance(content, dict) or not all(isinstance(v, str) for v in content.values()):
        raise FieldError("body", "not an object of texts")
    kind = content.get("type")
    known = {"consent.granted": _GRANTED, "consent.withdrawn": _WITHDRAWN}.get(kind or "")
    if known is None:
        raise FieldError("type", f"{kind!r} is neither consent.granted nor consent.withdrawn")
    if unknown := sorted(set(content) - known):
        raise FieldError(unknown[0], "unknown")
    digest = hashlib.sha256(body).hexdigest()
    if kind == "consent.granted":
        grant = grant_of({"method": "webhook"} | content)
        if grant.granted_at is None:  # an event that is sent again must say the same
            raise FieldError("granted_at", "a time is missing")
        return Change(event, digest, grant)
    try:
        at = datetime.fromisoformat(content.get("at", ""))
    except ValueError as error:
        raise FieldError("at", f"{content.get('at')!r} is not an ISO 8601 time") from error
    micros("at", at)
    return Change(event, digest, Withdrawal(content.get("subject", ""), content.get("purpose", ""), at))


def _no(status: int, problem: str, **more: str) -> JSONResponse:
    return JSONResponse({"problem": problem, **more}, status_code=status)


def serve(register: ConsentRegister, secret: bytes, host: str, port: int, log: ConsentLog) -> None:
    """Serve until interrupted."""
    import uvicorn

    uvicorn.run(
        create_app(register, secret, log=log), host=host, port=port, log_level="warning", access_log=False
    )
