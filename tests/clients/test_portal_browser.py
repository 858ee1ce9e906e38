"""The rights centre in a real browser, against a real server over a real node's directory."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from support.orders import PURPOSE, copy_of, make_draft, small_world
from support.rooms import free_port

from foedus.clients.cohort import Cohorts, ask_of
from foedus.clients.home import Home
from foedus.clients.portal.app import create_app
from foedus.clients.portal.delivery import OUTBOX, PortalSettings
from foedus.compliance.consent import ConsentRegister

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
NODE = "aster-music"
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium here: apt-get install chromium"),
    pytest.mark.filterwarnings("ignore:.*:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
SHOTS = os.environ.get("FOEDUS_SHOTS")  # a folder for pictures of every page, to be looked at


@dataclass
class Site:
    home: Home
    url: str

    def customers(self) -> list[str]:
        register = ConsentRegister(self.home.path / "consent.db")
        ask = ask_of(self.home, PURPOSE, order_log=True)
        return sorted(Cohorts(register).of(ask, datetime.now(UTC)).frame["subject"])

    def code(self, subject: str) -> str:
        """What was sent last; it is sent after the page is there."""
        deadline = time.monotonic() + 10
        while True:
            found = [json.loads(f.read_bytes()) for f in sorted((self.home.path / OUTBOX).glob("*.json"))]
            if found and found[-1]["subject"] == subject:
                return str(found[-1]["code"])
            assert time.monotonic() < deadline, "no code came"
            time.sleep(0.05)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("browser")
    world = copy_of(small_world(folder / "first", make_draft()), folder / "world")
    home, port = Home.load(world.homes[NODE]), free_port()
    url = f"http://127.0.0.1:{port}"
    names = {"en": "Aster Music", "zh": "阿斯特音乐"}
    app = create_app(
        home, PortalSettings.model_validate({"name": names, "origin": url, "delivery": "folder"})
    )
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=port, ws="none", log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.02)
        yield Site(home, url)
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page whose console and network say nothing bad."""
    context = browser.new_context(locale="en-GB", accept_downloads=True)
    found, said = context.new_page(), []
    found.on(
        "console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None
    )
    found.on("pageerror", lambda error: said.append(str(error)))
    found.said = said
    yield found
    context.close()
    assert [s for s in said if "status of 4" not in s] == []


def sign_in(page: Any, site: Site, subject: str) -> None:
    page.goto(site.url)
    page.get_by_role("main").get_by_role("link", name="Sign in").click()
    page.get_by_label("Customer number").fill(subject)
    page.get_by_role("button", name="Send me a code").press("Enter")
    page.get_by_label("Code of 8 digits").fill(site.code(subject))
    page.keyboard.press("Enter")
    page.wait_for_url("**/me")


def test_a_customer_withdraws_in_chinese_and_takes_their_data_along(page: Any, site: Site) -> None:
    who = site.customers()[0]
    sign_in(page, site, who)
    page.get_by_role("link", name="中文").click()
    assert page.locator("html").get_attribute("lang") == "zh-CN"
    page.get_by_role("navigation").get_by_role("link", name="选择").click()
    assert page.get_by_text("已同意", exact=True).is_visible()
    page.get_by_role("button", name="撤回同意").click()
    assert page.get_by_role("status").inner_text().startswith("已撤回")
    assert who not in site.customers()  # the gate of the next batch
    page.get_by_role("navigation").get_by_role("link", name="查阅").click()
    with page.expect_download() as download:
        page.get_by_role("link", name="下载副本").click()
    assert json.loads(Path(download.value.path()).read_bytes())["orders"]
    page.get_by_role("navigation").get_by_role("link", name="我的请求").click()
    assert page.get_by_role("row").count() == 3 and page.get_by_text("已完成").count() == 2


def test_a_customer_deletes_with_a_box_to_tick(page: Any, site: Site) -> None:
    who = site.customers()[1]
    sign_in(page, site, who)
    page.get_by_role("navigation").get_by_role("link", name="Delete").click()
    page.get_by_role("button", name="Delete").click()
    assert "Tick the box" in page.get_by_role("status").inner_text() and who in site.customers()
    page.get_by_label("I want my data deleted").check()
    page.get_by_role("button", name="Delete").click()
    assert page.get_by_role("status").inner_text().startswith("Done.") and who not in site.customers()
    page.goto(site.url + "/me")
    assert page.url.endswith("/sign-in")


def test_wrong_codes_lock_out(page: Any, site: Site) -> None:
    page.goto(site.url + "/sign-in")
    page.get_by_label("Customer number").fill(site.customers()[2])
    page.keyboard.press("Enter")
    for _ in range(5):
        page.get_by_label("Code of 8 digits").fill("00000000")
        page.keyboard.press("Enter")
        page.get_by_role("status").wait_for()
    page.get_by_label("Code of 8 digits").fill(site.code(site.customers()[2]))
    page.keyboard.press("Enter")
    assert "After five attempts" in page.get_by_role("status").inner_text()


@pytest.mark.skipif(SHOTS is None, reason="FOEDUS_SHOTS names no folder: no pictures are asked for")
def test_pictures(browser: Any, site: Site) -> None:
    folder = Path(SHOTS or "")
    who = site.customers()[3]
    for width, scheme, language in ((1100, "light", "en"), (390, "dark", "zh"), (390, "light", "en")):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, locale="en-GB"
        )
        page = context.new_page()
        sign_in(page, site, who) if (width, scheme) == (1100, "light") else None
        if not page.url.endswith("/me"):
            sign_in(page, site, site.customers()[4 if scheme == "dark" else 5])
        page.goto(f"{site.url}/?lang={language}")
        for path in ("", "me", "me/know", "me/choose", "me/access", "me/correct", "me/delete", "me/requests"):
            page.goto(f"{site.url}/{path}")
            name = path.replace("/", "-") or "landing"
            page.screenshot(path=folder / f"{width}-{scheme}-{language}-{name}.png", full_page=True)
        context.close()
    assert len(list(folder.glob("*.png"))) == 24
