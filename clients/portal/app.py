"""The rights centre as a web application: pages drawn by the node, forms, no script.

Who may do what:

1. Pages under ``/me`` and every file there are for who has signed in; everything else says nothing of anybody.
2. A form is taken from this origin only (``Origin``), and, signed in, with the session's token in it.
3. Whatever fails is said in a sentence, in the customer's language; what is inside stays in the process' log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from fastapi import BackgroundTasks, FastAPI, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from ...compliance.auditlog.log import AuditLog
from ...compliance.consent import ConsentRegister, proofs, receipts, vocabulary
from ...compliance.rights import Errand, Kind
from ...errors import FoedusError, InputError, Refused
from ..home import Home
from ..rights import Rights
from .codes import Codes
from .delivery import Delivery, PortalSettings
from .sessions import Session, Sessions
from .texts import say

HERE = Path(__file__).parent
MAX_BODY = 16 * 1024
_log = logging.getLogger("foedus.portal")
_HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; style-src 'self'; img-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "cross-origin-opener-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


@dataclass(frozen=True)
class Portal:
    """What the pages work with."""

    home: Home
    settings: PortalSettings
    delivery: Delivery
    codes: Codes
    sessions: Sessions
    secure: bool

    @property
    def cookie(self) -> str:
        """A __Host- cookie is of this host and TLS only; a trial on http has another name."""
        return "__Host-foedus" if self.secure else "foedus"

    @property
    def ticket(self) -> str:
        return self.cookie + "-code"


class _Form(dict[str, str]):
    """The fields of a form, each once."""


class _Answer(Exception):
    """Ends a request with a page."""

    def __init__(self, status: int, key: str) -> None:
        self.status, self.key = status, key


def create_app(
    home: Home,
    settings: PortalSettings,
    *,
    delivery: Delivery | None = None,
    codes: Codes | None = None,
    sessions: Sessions | None = None,
) -> FastAPI:
    """The application of one node's portal.

    Args:
        delivery, codes, sessions: in place of what the settings ask for.

    Raises:
        InputError, VerificationError: the settings, or the node's directory, are not what they must be.
    """
    Rights(home)  # what is broken is found now, not by the first customer
    portal = Portal(
        home,
        settings,
        delivery or settings.deliverer(home.path),
        codes or Codes(),
        sessions or Sessions(),
        settings.origin.startswith("https://"),
    )
    app = FastAPI(title="rights centre", docs_url=None, openapi_url=None, redoc_url=None)
    app.state.portal = portal
    pages = Environment(
        loader=FileSystemLoader(HERE / "pages"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )

    def language(request: Request) -> str:
        asked = request.query_params.get("lang") or request.cookies.get("lang")
        if asked in ("en", "zh"):
            return asked
        return "zh" if request.headers.get("accept-language", "").lower().startswith("zh") else "en"

    def page(
        request: Request, name: str, status: int = 200, session: Session | None = None, **more: Any
    ) -> HTMLResponse:
        lang = language(request)

        def text(key: str, **values: object) -> str:
            return say(key, lang, **{"name": getattr(settings.name, lang), **values})

        drawn = pages.get_template(f"{name}.html.j2").render(
            t=text,
            lang=lang,
            path=request.url.path,
            session=session,
            **{"message": "", "good": False, **more},
        )
        answer = HTMLResponse(drawn, status)
        if request.query_params.get("lang") in ("en", "zh"):
            answer.set_cookie("lang", lang, max_age=365 * 86400, samesite="strict", secure=portal.secure)
        return answer

    def who(request: Request) -> Session | None:
        token = request.cookies.get(portal.cookie, "")
        return portal.sessions.find(token) if token else None

    def signed_in(request: Request) -> Session:
        session = who(request)
        if session is None:
            raise _Answer(401, "sign_in")
        return session

    async def form(request: Request, session: Session | None = None) -> _Form:
        """2. The fields of a form that comes from a page of ours."""
        if request.headers.get("origin") != settings.origin:
            raise _Answer(403, "wrong_form")
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > MAX_BODY:
                raise _Answer(413, "wrong_form")
        try:
            fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=20, errors="strict")
        except ValueError as error:
            raise _Answer(400, "wrong_form") from error
        found = _Form({name: values[0].strip() for name, values in fields.items() if len(values) == 1})
        if session is not None and not _same(found.get("csrf", ""), session.csrf):
            raise _Answer(403, "wrong_form")
        return found

    def address(request: Request) -> str:
        return request.client.host if request.client else ""

    # ── for everybody ────────────────────────────────────────────────────────────────────────────

    @app.get("/")
    def landing(request: Request) -> Response:
        return page(request, "landing", session=who(request))

    @app.get("/style.css")
    def style() -> Response:
        return Response((HERE / "style.css").read_bytes(), media_type="text/css")

    @app.get("/sign-in")
    def sign_in(request: Request) -> Response:
        return page(request, "sign_in")

    @app.post("/sign-in")
    async def send(request: Request, tasks: BackgroundTasks) -> Response:
        subject = (await form(request)).get("subject", "")
        if not subject or len(subject) > 200 or not subject.isprintable():
            return page(request, "sign_in", 422)
        try:
            code, ticket = portal.codes.issue(subject, address(request))
        except Refused:
            return page(request, "sign_in", 429, message=say("too_many", language(request)))
        # After the answer: how long it takes tells nobody whether the customer is known.
        tasks.add_task(_send, portal, subject, code, language(request))
        answer = page(request, "code")
        answer.background = tasks
        answer.set_cookie(
            portal.ticket, ticket, max_age=900, httponly=True, samesite="strict", secure=portal.secure
        )
        return answer

    @app.post("/code")
    async def enter(request: Request) -> Response:
        code = (await form(request)).get("code", "")
        try:
            subject = portal.codes.check(request.cookies.get(portal.ticket, ""), code, address(request))
        except Refused:
            return page(request, "code", 429, message=say("too_many", language(request)))
        if subject is None:
            return page(request, "code", 401, message=say("code_wrong", language(request)))
        portal.sessions.end(request.cookies.get(portal.cookie, ""))
        token, _ = portal.sessions.begin(subject)
        answer = RedirectResponse("/me", 303)
        answer.set_cookie(portal.cookie, token, httponly=True, samesite="strict", secure=portal.secure)
        answer.delete_cookie(portal.ticket)
        return answer

    # ── for who has signed in ────────────────────────────────────────────────────────────────────

    def view(
        name: str, told: Callable[[Rights, str, str], Mapping[str, Any]]
    ) -> Callable[[Request], Response]:
        def show(request: Request) -> Response:
            session = signed_in(request)
            lang = language(request)
            return page(request, name, session=session, **told(Rights(home), session.subject, lang))

        return show

    def act(
        name: str,
        told: Callable[[Rights, str, str], Mapping[str, Any]],
        do: Callable[[Rights, Session, _Form, str], tuple[str, bool]],
    ) -> Callable[[Request], Any]:
        """A form: do it, and show the page again with what became of it."""

        async def take(request: Request) -> Response:
            session = signed_in(request)
            fields, lang = await form(request, session), language(request)

            def work() -> tuple[str, bool, Mapping[str, Any]]:
                rights = Rights(home)
                try:
                    message, good = do(rights, session, fields, lang)
                except (InputError, Refused) as error:
                    message, good = say("refused", lang, reason=error.message), False
                return message, good, told(rights, session.subject, lang)

            message, good, more = await run_in_threadpool(work)
            return page(
                request, name, 200 if good else 422, session=session, message=message, good=good, **more
            )

        return take

    def nothing(rights: Rights, subject: str, lang: str) -> Mapping[str, Any]:
        return {}

    for path, name, told in (
        ("/me", "overview", nothing),
        ("/me/know", "know", _known),
        ("/me/choose", "choose", _choices),
        ("/me/access", "access", _seen),
        ("/me/correct", "correct", _correctable),
        ("/me/delete", "delete", _fates),
        ("/me/requests", "requests", _asked),
    ):
        app.get(path)(view(name, told))
    app.post("/me/choose")(act("choose", _choices, _choose))
    app.post("/me/correct")(act("correct", _correctable, _correct))
    app.post("/me/requests")(act("requests", _asked, _ask))

    @app.post("/me/delete")
    async def delete(request: Request) -> Response:
        session = signed_in(request)
        fields, lang = await form(request, session), language(request)
        if fields.get("sure") != "yes":
            more = await run_in_threadpool(lambda: _fates(Rights(home), session.subject, lang))
            return page(request, "delete", 422, session=session, message=say("delete_confirm", lang), **more)
        message, good = await run_in_threadpool(_delete, Rights(home), session, fields, lang)
        if not good:
            more = await run_in_threadpool(lambda: _fates(Rights(home), session.subject, lang))
            return page(request, "delete", 422, session=session, message=message, **more)
        portal.sessions.end_all(session.subject)
        answer = page(request, "landing", message=message, good=True)
        answer.delete_cookie(portal.cookie)
        return answer

    @app.post("/me/sign-out")
    async def sign_out(request: Request) -> Response:
        await form(request, signed_in(request))
        portal.sessions.end(request.cookies.get(portal.cookie, ""))
        answer = RedirectResponse("/", 303)
        answer.delete_cookie(portal.cookie)
        return answer

    def file(name: str, content: Callable[[str], bytes]) -> Callable[[Request], Response]:
        def give(request: Request) -> Response:
            session = signed_in(request)
            headers = {"content-disposition": f'attachment; filename="{name}"'}
            return Response(content(session.subject), media_type="application/json", headers=headers)

        return give

    app.get("/me/data.json")(file("my-data.json", lambda subject: _data(home, subject)))
    app.get("/me/receipt.json")(file("receipt.json", lambda subject: _receipt(home, subject)))
    app.get("/me/cohorts.json")(file("cohorts.json", lambda subject: _absence(home, subject)))

    # ── what fails ───────────────────────────────────────────────────────────────────────────────

    @app.exception_handler(_Answer)
    async def answered(request: Request, found: Exception) -> Response:
        if not isinstance(found, _Answer):  # FastAPI's type is wider
            raise found
        if found.status == 401:
            return (
                RedirectResponse("/sign-in", 303)
                if request.method == "GET"
                else page(request, "sign_in", 401)
            )
        return page(request, "message", found.status, message=say(found.key, language(request)))

    @app.exception_handler(HTTPException)
    async def missing(request: Request, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        return page(request, "message", status, message=say("not_found", language(request)))

    @app.exception_handler(FoedusError)
    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> Response:
        _log.error("%s: %s", request.url.path, error.message if isinstance(error, FoedusError) else error)
        return page(request, "message", 500, message=say("fault", language(request)))

    @app.middleware("http")
    async def careful(request: Request, call: Callable[[Request], Any]) -> Response:
        answer: Response = await call(request)
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        if portal.secure:
            answer.headers.setdefault("strict-transport-security", "max-age=31536000")
        return answer

    return app


def _same(one: str, other: str) -> bool:
    import hmac

    return hmac.compare_digest(one.encode(errors="replace"), other.encode())


def _send(portal: Portal, subject: str, code: str, language: str) -> None:
    """Bring the code to a customer whom the node knows; to anybody else nothing is sent."""
    try:
        rights = Rights(portal.home)
        if any(place.read(subject) for place in rights.map if place.personal):
            portal.delivery.send(subject, code, language)
    except FoedusError as error:
        _log.error("a code was not delivered: %s", error.message)


# ── what pages show ──────────────────────────────────────────────────────────────────────────────────


def _known(rights: Rights, subject: str, lang: str) -> Mapping[str, Any]:
    language: Any = lang
    return {"holdings": rights.know(subject, language), "models": rights.explain(subject, language)}


def _choices(rights: Rights, subject: str, lang: str) -> Mapping[str, Any]:
    notices = rights.places.register().notices()
    shown = []
    for choice in rights.choices(subject):
        notice = notices.get((choice.notice or "").split("/")[0])
        shown.append(
            {
                "choice": choice,
                "version": "" if notice is None else notice.version,
                "text": "" if notice is None else getattr(notice.text, lang),
                "sensitive": vocabulary.sensitive(choice.categories),
                "desk": notice is None or notice.audience != "own_consent",
            }
        )
    return {"choices": shown}


def _seen(rights: Rights, subject: str, lang: str) -> Mapping[str, Any]:
    told: Any = lang
    names = {holding.place: holding.what for holding in rights.know(subject, told)}
    return {"places": rights.access(subject), "names": names}


def _correctable(rights: Rights, subject: str, lang: str) -> Mapping[str, Any]:
    language: Any = lang
    return {"holdings": [h for h in rights.know(subject, language) if h.count]}


def _fates(rights: Rights, subject: str, lang: str) -> Mapping[str, Any]:
    return {"fates": rights.models_of(subject, rights.home.rights.models)}


def _asked(rights: Rights, subject: str, lang: str) -> Mapping[str, Any]:
    return {"requests": rights.requests_of(subject)}


# ── what forms do ────────────────────────────────────────────────────────────────────────────────────


def _choose(rights: Rights, session: Session, fields: _Form, lang: str) -> tuple[str, bool]:
    purpose, subject = fields.get("purpose", ""), session.subject
    language: Any = lang
    found = {c.purpose: c for c in rights.choices(subject)}.get(purpose)
    if found is None:
        raise InputError(f"there is no purpose {purpose!r}")
    if fields.get("act") == "withdraw":
        request = rights.requests.open(Kind.WITHDRAW, subject, language, note=purpose)
        rights.withdraw(subject, purpose)
        rights.requests.done(request.id)
        return say("withdrawn_done", lang), True
    if fields.get("act") != "agree":
        raise InputError("agree or withdraw")
    (shown,) = [c for c in _choices(rights, subject, lang)["choices"] if c["choice"].purpose == purpose]
    if shown["desk"]:
        return say("desk_only", lang), False
    if fields.get("version") != shown["version"] or (shown["sensitive"] and fields.get("separate") != "yes"):
        return say("wrong_form", lang), False
    rights.grant(subject, purpose, f"{shown['version']}/{lang}", sensitive=shown["sensitive"])
    return say("granted_done", lang), True


def _correct(rights: Rights, session: Session, fields: _Form, lang: str) -> tuple[str, bool]:
    place, field, value = (fields.get(name, "") for name in ("place", "field", "value"))
    if not place or not field or not value:
        return say("correct_lead", lang), False
    language: Any = lang
    was = fields.get("was") or None
    note = f"{place}.{field}: {'' if was is None else was} -> {value}"
    request = rights.requests.open(Kind.CORRECT, session.subject, language, note=note)
    try:
        count = rights.correct(session.subject, place, field, value, was=was)
    except Refused as error:
        if error.code == "TABLE_READ_ONLY":  # the company's people do it; the request waits for them
            return say("queued", lang, due=request.due.isoformat()), True
        rights.requests.refuse(request.id, error.message)
        raise
    except InputError as error:
        rights.requests.refuse(request.id, error.message)
        raise
    rights.requests.done(request.id)
    return say("corrected", lang, n=count), True


def _ask(rights: Rights, session: Session, fields: _Form, lang: str) -> tuple[str, bool]:
    language: Any = lang
    if fields.get("kind") != "explain":
        raise InputError("that can't be asked for here")
    request = rights.requests.open(Kind.EXPLAIN, session.subject, language)
    return say("queued", lang, due=request.due.isoformat()), True


def _delete(rights: Rights, session: Session, fields: _Form, lang: str) -> tuple[str, bool]:
    language: Any = lang
    rights.requests.open(Kind.DELETE, session.subject, language)
    try:
        report = rights.erase(session.subject)
    except Refused as error:
        return say("refused", lang, reason=error.message), False
    ordered = any(step.errand is Errand.ORDERED for step in report.steps)
    told = (
        "Your data was erased here; what the company's own table says of you is removed by the company, and used no more."
        if ordered
        else "Your data was erased; records that must be kept name you no more."
    )
    return say("deleted", lang, told=told), True


# ── files ────────────────────────────────────────────────────────────────────────────────────────────


def _data(home: Home, subject: str) -> bytes:
    rights = Rights(home)
    request = rights.requests.open(Kind.ACCESS, subject)
    found = rights.access(subject)
    rights.requests.done(request.id)
    return json.dumps(found, ensure_ascii=False, indent=2, default=str).encode()


def _receipt(home: Home, subject: str) -> bytes:
    register = ConsentRegister(home.path / "consent.db")
    records = register.records(subject)
    if not records:
        raise _Answer(404, "nothing")
    notice = register.notices()[records[-1].notice_version.split("/")[0]]
    content = receipts.receipt(
        records[-1], notice, home.party, pseudonyms=home.cohort_key(), at=datetime.now(UTC)
    )
    return receipts.sign(content, home.party, home.identity()).dumps()


def _absence(home: Home, subject: str) -> bytes:
    register = ConsentRegister(home.path / "consent.db")
    made = proofs.prove(
        subject,
        silo=home.party,
        log=AuditLog(home.path / "audit.db", f"foedus node {home.party}", create=False),
        register=register,
        silo_key=home.cohort_key(),
        identity=home.identity(),
        since=max((r.withdrawn_at for r in register.records(subject) if r.withdrawn_at), default=None),
    )
    return made.dumps()
