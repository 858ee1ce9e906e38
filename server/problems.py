"""What went wrong, in HTTP: one JSON shape for every error, and the statuses of ours.

::

    {"error": {"code": "PURPOSE_NOT_PERMITTED", "message": "…", "remedy": "…"}}

    InputError 422 · NotFound 404 · TooLarge 413 · Refused 409 · Unauthenticated 401 · Forbidden 403
    VerificationError 400 · Unreachable 503 · anything else 500
"""

from __future__ import annotations

import logging
from http import HTTPStatus

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from ..errors import FoedusError, InputError, Refused, Unreachable, VerificationError

_log = logging.getLogger(__name__)


class NotFound(InputError):
    """Nothing of that name."""


class TooLarge(InputError):
    """A request's body is beyond the bound."""


class Unauthenticated(Refused):
    """Nobody we know: no token, or one that is wrong, expired or revoked."""


class Forbidden(Refused):
    """Somebody we know, whose role may not do this."""


# The first class that fits decides, so subclasses come before their bases.
_STATUS: tuple[tuple[type[FoedusError], int, str], ...] = (
    (NotFound, 404, "NOT_FOUND"),
    (TooLarge, 413, "TOO_LARGE"),
    (Unauthenticated, 401, "UNAUTHENTICATED"),
    (Forbidden, 403, "FORBIDDEN"),
    (InputError, 422, "INPUT"),
    (Refused, 409, "REFUSED"),
    (VerificationError, 400, "VERIFICATION"),
    (Unreachable, 503, "UNREACHABLE"),
)


def code_of(error: FoedusError) -> str:
    """The stable name of an error, for replies and the audit log."""
    return error.code if isinstance(error, Refused) else _look_up(error)[1]


def _look_up(error: FoedusError) -> tuple[int, str]:
    for kind, status, code in _STATUS:
        if isinstance(error, kind):
            return status, code
    return 500, "INTERNAL"


def _reply(status: int, code: str, message: str, remedy: str = "") -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    body = {"error": {"code": code, "message": message, "remedy": remedy}}
    return JSONResponse(body, status_code=status, headers=headers)


def install(app: FastAPI) -> None:
    """Make `app` answer every error in this shape."""

    @app.exception_handler(FoedusError)
    def ours(_: Request, error: FoedusError) -> JSONResponse:
        return _reply(_look_up(error)[0], code_of(error), error.message, error.remedy)

    @app.exception_handler(RequestValidationError)
    def parameters(_: Request, error: RequestValidationError) -> JSONResponse:
        faults = [f"{'.'.join(str(part) for part in e['loc'])}: {e['msg']}" for e in error.errors()]
        return _reply(422, "INPUT", "; ".join(faults[:8]))

    @app.exception_handler(HTTPException)
    def routing(_: Request, error: HTTPException) -> JSONResponse:
        status = HTTPStatus(error.status_code)
        return _reply(status, status.name, str(error.detail))

    @app.exception_handler(Exception)
    def fault(request: Request, error: Exception) -> JSONResponse:
        # The cause goes to the server's own log only: it may quote anything.
        _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return _reply(
            500, "INTERNAL", "a fault of the server", "its operator finds the cause in the server's log"
        )
