"""The rights centre from outside: who may see what, what codes and forms are worth, and what comes of them at the node."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from fastapi.testclient import TestClient
from support.orders import PURPOSE, copy_of, make_draft, small_world

from foedus.clients.cohort import Cohorts, ask_of
from foedus.clients.home import Home
from foedus.clients.portal.app import HERE, MAX_BODY, create_app
from foedus.clients.portal.codes import ATTEMPTS, SECONDS, Codes
from foedus.clients.portal.delivery import PortalSettings
from foedus.clients.portal.sessions import IDLE, Sessions
from foedus.clients.portal.texts import TEXTS
from foedus.clients.rights import Rights
from foedus.compliance.consent import ConsentRegister
from foedus.demo.world import World
from foedus.documents import Envelope
from foedus.errors import InputError, Refused

NODE = "aster-music"
ORIGIN = "http://127.0.0.1:8600"
SETTINGS = {"name": {"en": "Aster Music", "zh": "阿斯特音乐"}, "origin": ORIGIN, "delivery": "folder"}
FORM = {"content-type": "application/x-www-form-urlencoded", "origin": ORIGIN}


@dataclass
class Clock:
    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Sent:
    """Where codes go."""

    codes: list[tuple[str, str]] = field(default_factory=list)

    def send(self, subject: str, code: str, language: str) -> None:
        self.codes.append((subject, code))


@dataclass
class Site:
    home: Home
    sent: Sent
    clock: Clock
    client: TestClient

    @property
    def customers(self) -> list[str]:
        register = ConsentRegister(self.home.path / "consent.db")
        return sorted(
            Cohorts(register)
            .of(ask_of(self.home, PURPOSE, order_log=True), datetime.now(UTC))
            .frame["subject"]
        )

    def post(self, path: str, **fields: str) -> Any:
        return self.client.post(path, data=fields, headers={"origin": ORIGIN})

    def sign_in(self, subject: str) -> str:
        """Sign in as a customer; the token of the session's forms."""
        assert self.post("/sign-in", subject=subject).status_code == 200
        assert self.post("/code", code=self.sent.codes[-1][1]).headers["location"] == "/me"
        return str(re.search(r'name="csrf" value="([^"]+)"', self.client.get("/me").text)[1])  # type: ignore[index]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return small_world(tmp_path_factory.mktemp("portal") / "world", make_draft())


@pytest.fixture
def site(world: World, tmp_path: Path) -> Iterator[Site]:
    copy = copy_of(world, tmp_path / "world")
    home, sent, clock = Home.load(copy.homes[NODE]), Sent(), Clock()
    app = create_app(
        home,
        PortalSettings.model_validate(SETTINGS),
        delivery=sent,
        codes=Codes(clock),
        sessions=Sessions(clock),
    )
    with TestClient(app, base_url=ORIGIN, follow_redirects=False, raise_server_exceptions=False) as client:
        yield Site(home, sent, clock, client)
    shutil.rmtree(tmp_path / "world")


# ── who may see what ─────────────────────────────────────────────────────────────────────────────


def test_nothing_personal_without_a_session(site: Site) -> None:
    paths = {(route.path, method) for route in site.client.app.routes for method in route.methods}  # type: ignore[attr-defined]
    personal = {(p, m) for p, m in paths if p.startswith("/me")}
    assert len(personal) > 12 and {p for p, _ in paths - personal} == {"/", "/style.css", "/sign-in", "/code"}
    for path, method in personal:
        answer = site.client.request(method, path, headers={"origin": ORIGIN})
        assert (answer.status_code, answer.headers.get("location")) in ((303, "/sign-in"), (401, None)), path
        assert site.customers[0] not in answer.text


def test_a_code_signs_in_once_and_only_the_browser_that_asked(site: Site) -> None:
    who = site.customers[0]
    site.post("/sign-in", subject=who)
    ((subject, code),) = site.sent.codes
    assert subject == who and re.fullmatch(r"\d{8}", code)
    ticket = dict(site.client.cookies)
    site.client.cookies.clear()
    assert site.post("/code", code=code).status_code == 401  # another browser
    site.client.cookies.update(ticket)
    before = site.client.cookies.get("foedus")
    first = site.post("/code", code=code)
    assert (
        first.status_code == 303
        and "HttpOnly" in first.headers["set-cookie"]
        and "SameSite=strict" in first.headers["set-cookie"]
    )
    assert before is None and len(site.client.cookies["foedus"]) >= 43
    site.client.cookies.update(ticket)
    assert site.post("/code", code=code).status_code == 401  # replayed


def test_a_session_is_new_with_each_sign_in(site: Site) -> None:
    site.client.cookies.set("foedus", "chosen-by-an-attacker")
    site.sign_in(site.customers[0])
    tokens = [c.value for c in site.client.cookies.jar if c.name == "foedus"]
    assert tokens[-1] != "chosen-by-an-attacker" and len(tokens[-1] or "") >= 43
    site.client.cookies.clear()
    site.client.cookies.set("foedus", "chosen-by-an-attacker")
    assert site.client.get("/me").status_code == 303


def test_five_wrong_codes_and_the_right_one_is_worth_nothing(site: Site) -> None:
    site.post("/sign-in", subject=site.customers[0])
    right = site.sent.codes[-1][1]
    wrong = f"{(int(right) + 1) % 10**8:08d}"
    for _ in range(ATTEMPTS):
        assert site.post("/code", code=wrong).status_code == 401
    assert site.post("/code", code=right).status_code == 401


def test_a_code_is_over_after_ten_minutes_and_a_session_when_idle(site: Site) -> None:
    site.post("/sign-in", subject=site.customers[0])
    site.clock.now += SECONDS + 1
    assert site.post("/code", code=site.sent.codes[-1][1]).status_code == 401
    site.sign_in(site.customers[0])
    site.clock.now += IDLE - 1
    assert site.client.get("/me").status_code == 200
    site.clock.now += IDLE + 1
    assert site.client.get("/me").status_code == 303


def test_who_guesses_much_is_slowed_down(site: Site) -> None:
    who = site.customers[0]
    assert [site.post("/sign-in", subject=who).status_code for _ in range(4)] == [200, 200, 200, 429]
    codes = Codes(site.clock)
    _, ticket = codes.issue("a", "1.2.3.4")
    for _ in range(30):
        assert codes.check("no ticket", "00000000", "6.6.6.6") is None
    with pytest.raises(Refused, match="too many attempts"):
        codes.check(ticket, "00000000", "6.6.6.6")
    assert codes.check(ticket, "0", "1.2.3.4") is None


def test_a_stranger_gets_the_same_page_as_a_customer_and_no_code(site: Site) -> None:
    known, stranger = (site.post("/sign-in", subject=s) for s in (site.customers[0], "NOBODY"))
    assert (known.status_code, known.text) == (stranger.status_code, stranger.text)
    assert [subject for subject, _ in site.sent.codes] == [site.customers[0]]


@pytest.mark.parametrize("origin", [None, "https://evil.example", "null", ORIGIN + ".evil.example"])
def test_forms_come_from_this_site_only(site: Site, origin: str | None) -> None:
    csrf = site.sign_in(site.customers[0])
    headers = {} if origin is None else {"origin": origin}
    fields = {"csrf": csrf, "purpose": PURPOSE, "act": "withdraw", "sure": "yes"}
    for path in ("/me/choose", "/me/delete", "/me/correct", "/me/sign-out", "/sign-in", "/code"):
        assert site.client.post(path, data=fields, headers=headers).status_code == 403
    assert site.client.get("/me").status_code == 200 and len(site.sent.codes) == 1


def test_a_form_without_the_sessions_token_does_nothing(site: Site) -> None:
    who = site.customers[0]
    site.sign_in(who)
    for token in ("", "x", "é"):
        assert site.post("/me/choose", csrf=token, purpose=PURPOSE, act="withdraw").status_code == 403
        assert site.post("/me/delete", csrf=token, sure="yes").status_code == 403
    assert who in site.customers


def test_what_people_wrote_is_text(site: Site) -> None:
    who = site.customers[0]
    site.sign_in(who)
    evil = "<script>alert(1)</script>"
    csrf = re.search(r'name="csrf" value="([^"]+)"', site.client.get("/me").text)[1]  # type: ignore[index]
    answer = site.post("/me/correct", csrf=csrf, place=evil, field=evil, value=evil)
    assert answer.status_code == 422 and evil not in answer.text and "&lt;script&gt;" in answer.text
    assert evil not in site.client.get("/me/requests").text
    for path in ("/", "/me", "/me/requests", "/no/such/page"):
        headers = site.client.get(path).headers
        assert "script" not in headers["content-security-policy"] and headers["x-frame-options"] == "DENY"
        assert headers["cache-control"] == "no-store"


def test_bodies_are_small(site: Site) -> None:
    big = b"subject=" + b"a" * MAX_BODY
    assert site.client.post("/sign-in", content=big, headers=FORM).status_code == 413
    assert site.client.post("/sign-in", content=b"subject=\xff", headers=FORM).status_code in (400, 422)
    assert site.post("/sign-in", subject="a\x00b").status_code == 422
    many = "&".join(f"f{i}=1" for i in range(50)).encode()
    assert site.client.post("/sign-in", content=many, headers=FORM).status_code == 400
    assert not site.sent.codes


# ── what comes of it ─────────────────────────────────────────────────────────────────────────────


def test_who_withdraws_is_out_of_the_next_cohort_and_may_agree_again(site: Site) -> None:
    who = site.customers[0]
    csrf = site.sign_in(who)
    assert "agreed" in site.client.get("/me/choose").text
    assert site.post("/me/choose", csrf=csrf, purpose=PURPOSE, act="withdraw").status_code == 200
    assert who not in site.customers
    (request,) = Rights(site.home).requests_of(who)
    assert (request.kind.value, request.state.value) == ("withdraw", "done")
    proof = site.client.get("/me/cohorts.json")
    assert proof.status_code in (200, 422, 500) and "Traceback" not in proof.text
    receipt = Envelope.loads(site.client.get("/me/receipt.json").content)
    receipt.check(receipt.kind, NODE, site.home.identity().public)


def test_a_customer_sees_what_the_node_keeps_and_takes_it_along(site: Site) -> None:
    who = site.customers[0]
    site.sign_in(who)
    rights = Rights(site.home)
    answer = site.client.get("/me/data.json")
    assert "attachment" in answer.headers["content-disposition"]
    found = answer.json()
    assert set(found) == {place.name for place in rights.map if place.personal}
    assert len(found["orders"]) == len(rights.access(who)["orders"]) > 0
    for language, word in (("en", "See your data"), ("zh", "查阅")):
        page = site.client.get(f"/me/access?lang={language}").text
        assert word in page and str(next(iter(found["orders"][0].values()))) in page
    (request,) = rights.requests_of(who)
    assert (request.kind.value, request.state.value) == ("access", "done")


def test_a_correction_that_people_must_make_waits_with_its_deadline(site: Site) -> None:
    who = site.customers[0]
    csrf = site.sign_in(who)
    answer = site.post("/me/correct", csrf=csrf, place="orders", field="amount", value="1")
    (request,) = Rights(site.home).requests_of(who)
    assert (
        answer.status_code == 200 and request.state.value == "open" and request.due.isoformat() in answer.text
    )
    assert request.due.isoformat() in site.client.get("/me/requests").text
    bad = site.post("/me/correct", csrf=csrf, place="no such place", field="x", value="1")
    assert bad.status_code == 422
    assert {r.state.value for r in Rights(site.home).requests_of(who)} == {"open", "refused"}


def test_who_deletes_is_gone_and_signed_out(site: Site) -> None:
    who = site.customers[0]
    csrf = site.sign_in(who)
    assert site.post("/me/delete", csrf=csrf).status_code == 422 and who in site.customers
    assert site.post("/me/delete", csrf=csrf, sure="yes").status_code == 200
    assert who not in site.customers and site.client.get("/me").status_code == 303
    assert not ConsentRegister(site.home.path / "consent.db").records(who)


def test_a_legal_hold_is_told(site: Site) -> None:
    who = site.customers[0]
    Rights(site.home).holds.set("civil case 2026-17", "dora", who)
    csrf = site.sign_in(who)
    answer = site.post("/me/delete", csrf=csrf, sure="yes")
    assert answer.status_code == 422 and "civil case 2026-17" in answer.text and who in site.customers
    assert "civil case 2026-17" in site.client.get("/me/requests").text


# ── settings and texts ───────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"delivery": None}, "say how codes reach customers"),
        ({"webhook": {"url": "https://a.example", "secret": "s"}}, "one of the two"),
        ({"origin": "ftp://a"}, "origin"),
        ({"colour": "red"}, "colour"),
    ],
)
def test_bad_settings(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    told = {k: v for k, v in (SETTINGS | change).items() if v is not None}
    (tmp_path / "portal.yaml").write_text(yaml.safe_dump(told))
    with pytest.raises(InputError, match=why):
        PortalSettings.load(tmp_path)


def test_a_portal_that_nobody_set_up_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        PortalSettings.load(tmp_path)


def test_a_folder_gets_codes_for_its_owner_only(tmp_path: Path) -> None:
    PortalSettings.model_validate(SETTINGS).deliverer(tmp_path).send("C1", "12345678", "zh")
    (file,) = (tmp_path / "portal-outbox").glob("*.json")
    assert json.loads(file.read_bytes())["code"] == "12345678" and file.stat().st_mode & 0o777 == 0o600


def test_every_text_is_in_both_languages_and_every_page_says_only_such() -> None:
    used = set(
        re.findall(r"\bt\('([a-z_ ]+)'", "".join(p.read_text() for p in (HERE / "pages").glob("*.j2")))
    )
    used |= set(re.findall(r'say\(\s*"([a-z_ ]+)"', (HERE / "app.py").read_text()))
    prefixes = {key for key in used if key.endswith("_")}
    assert prefixes == {"state_", "kind_", "fate_"} and not (used - prefixes) - set(TEXTS)
    for key, (english, chinese) in TEXTS.items():
        assert english and chinese, key
        assert set(re.findall(r"{\w+}", english)) >= set(re.findall(r"{\w+}", chinese)), key
        assert key == "language" or re.search(r"[\u4e00-\u9fff]", chinese), key
