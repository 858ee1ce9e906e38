"""The coordinator's control plane as a FastAPI application.

Every route but ``/health`` asks for a token; who may do what stands in the signature of each route.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import problems
from .desk import Desk, Settings
from .routes import approvals, log, results, runs, studies, tokens, treaty

__all__ = ["Settings", "create_app"]

_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "strict-transport-security": "max-age=31536000",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


def create_app(settings: Settings) -> FastAPI:
    """The application over the directory ``settings.home``.

    What it opened is closed when the application's lifespan ends.

    Raises:
        InputError, VerificationError: see `Desk.open`.
    """
    desk = Desk.open(settings)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        desk.runs.open()
        desk.patrol.start()
        try:
            yield
        finally:
            desk.patrol.stop()
            desk.close()

    app = FastAPI(
        title="foedus",
        lifespan=lifespan,
        docs_url="/docs" if settings.docs else None,
        openapi_url="/openapi.json" if settings.docs else None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.desk = desk
    problems.install(app)
    for module in (studies, approvals, runs, results, log, treaty, tokens):
        app.include_router(module.router, prefix="/v1")
    app.add_middleware(SecurityHeaders, relaxed=("/docs",) if settings.docs else ())

    @app.get("/health")
    def health() -> dict[str, str]:
        """Says that the process answers, and nothing else."""
        return {"status": "ok"}

    return app


class SecurityHeaders:
    """Adds the headers a browser needs to be careful, where a route has not set its own.

    Args:
        relaxed: paths that get no content security policy (FastAPI's own pages load scripts).
    """

    def __init__(self, app: ASGIApp, relaxed: tuple[str, ...] = ()) -> None:
        self._app, self._relaxed = app, relaxed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def careful(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    if name != "content-security-policy" or scope["path"] not in self._relaxed:
                        headers.setdefault(name, value)
            await send(message)

        await self._app(scope, receive, careful if scope["type"] == "http" else send)
