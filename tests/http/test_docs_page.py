"""The page at /docs, used in a real browser as a person uses it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright, expect

from framework.http.docs import page, page_headers
from tests.http.kiosk import Site, described, served
from tests.tools import tool

FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


class Visit:
    """A browser that looks at the page of a kiosk."""

    def __init__(self, site: Site, base: str, page: Page) -> None:
        self.site = site
        self.base = base
        self.page = page
        self.errors: list[str] = []
        self.asked: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: self.asked.append(request.url))

    async def home(self) -> None:
        """Open the page."""
        await self.page.goto(f"{self.base}/docs")
        await expect(self.page.locator("#list a").first).to_be_attached()

    async def method(self, operation: str) -> None:
        """Open a method."""
        await self.page.goto(f"{self.base}/docs#/{operation}")
        await expect(self.page.get_by_role("form", name="Request")).to_be_visible()

    async def press(self, name: str) -> None:
        await self.page.get_by_role("button", name=name, exact=True).first.click()

    async def fill(self, label: str, text: str) -> None:
        await self.page.get_by_label(label, exact=True).first.fill(text)

    async def status(self, text: str) -> None:
        """Wait until the status of the answer begins with this."""
        await expect(self.page.get_by_role("status").locator("strong")).to_have_text(text)

    async def answer(self) -> Any:
        """The body of the answer, which is shown after its status."""
        shown = self.page.locator(".answer pre")
        await expect(shown).to_be_visible()
        return json.loads(await shown.inner_text())

    async def command(self, name: str) -> str:
        """The line for a shell."""
        # It follows the form with the next frame.
        await self.page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")
        return await self.page.locator(f'pre[aria-label="{name}"]').inner_text()


@pytest.fixture
async def visit(request: pytest.FixtureRequest) -> AsyncIterator[Visit]:
    """A page in a browser of its own, with nothing wrong on its console at the end."""
    options: dict[str, Any] = getattr(request, "param", {})
    path = tool("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(FLAGS))
        try:
            # Less than a test may take, so that it is told what was waited for.
            opened = await browser.new_page(**{"viewport": {"width": 1200, "height": 900}, **options})
            opened.set_default_timeout(10_000)
            site = Site()
            async with served(site) as base:
                visit = Visit(site, base, opened)
                yield visit
                await opened.close()
            assert visit.errors == []
            assert all(url.startswith((base, base.replace("http", "ws"), "data:", "blob:")) for url in visit.asked)
        finally:
            await browser.close()


async def test_a_method_is_found_read_and_called(visit: Visit) -> None:
    """From the list to the answer, with the commands that do the same."""
    await visit.home()
    assert (await visit.page.locator("#list .name").all_inner_texts())[:3] == ["GetItem", "ListItems", "CreateItem"]
    await visit.page.keyboard.press("/")
    await visit.page.keyboard.type("kiosk crea")
    links = visit.page.locator("#list a:visible")
    await expect(links).to_have_count(1)
    await links.click()
    await expect(visit.page.get_by_role("heading", level=1)).to_have_text("CreateItem")
    await visit.press("Call")
    await expect(visit.page.get_by_role("alert").filter(has_text="rack is needed")).to_be_visible()
    await visit.fill("rack", "it's 7%")
    await visit.fill("title", "The Daily")
    await visit.page.get_by_label("kind", exact=True).select_option(label="MAGAZINE")
    await visit.press("Add price")
    await visit.fill("currency", "EUR")
    await visit.fill("minorUnits", "9007199254740993")
    await visit.press("Add tags")
    await visit.fill("tags", "new")
    await visit.press("Add to stock")
    await visit.fill("key", "front")
    await visit.fill("value", "3")
    await visit.page.get_by_label("source", exact=True).select_option(label="supplier")
    await visit.fill("supplier", "4")
    await visit.page.keyboard.press("Control+Enter")
    await visit.status("201 Created")
    body = '{"title":"The Daily","kind":"MAGAZINE","price":{"currency":"EUR","minorUnits":"9007199254740993"},'
    body += '"tags":["new"],"stock":{"front":3},"supplier":4}'
    assert await visit.answer() == {"name": "racks/it's 7%/items/1", **json.loads(body)}
    assert await visit.command("curl") == (
        f"curl '{visit.base}/v1/racks/it'\\''s%207%25/items' -H 'content-type: application/json' --data-raw '{body}'"
    )
    message = f'{{"item":{body},"parent":"racks/it\'\\\'\'s 7%"}}'
    assert await visit.command("grpcurl") == (
        f"grpcurl -plaintext -d '{message}' 127.0.0.1:50051 kiosk.v1.Kiosk/CreateItem"
    )


async def test_the_example_comes_back_from_the_server(visit: Visit) -> None:
    """Every kind of field can be filled in: what the form gets, it gives, and the server understands."""
    await visit.method("Kiosk_Echo")
    await visit.press("Example")
    await visit.press("Call")
    await visit.status("200 OK")
    example = described()["components"]["examples"]["kiosk.v1.Bag"]["value"]
    answer = await visit.answer()
    del example["mask"], example["nothing"]  # which are what they are by default, and so not in the answer
    assert example == answer
    await visit.press("JSON")
    await visit.fill("body as JSON", '{"inner": {"inner": {"label": "deep"}}}')
    await visit.press("JSON")
    await expect(visit.page.get_by_label("label").nth(2)).to_have_value("deep")


async def test_headers_and_authentication_reach_the_service(visit: Visit) -> None:
    """A token becomes an authorization header, and a header of one's own is sent as it is."""
    await visit.method("Kiosk_GetItem_2")
    await visit.fill("name", "missing")
    await visit.fill("token", "secret")
    await visit.press("Add header")
    await visit.fill("Header", "x-tenant")
    await visit.fill("Value", "acme")
    await visit.fill("name", "one")
    await visit.press("Call")
    await visit.status("200 OK")
    assert visit.site.kiosk.metadata["authorization"] == "Bearer secret"
    assert visit.site.kiosk.metadata["x-tenant"] == "acme"
    assert "-H 'authorization: Bearer secret' -H 'x-tenant: acme'" in await visit.command("curl")


async def test_a_header_that_is_a_parameter(visit: Visit) -> None:
    """It has its place in the form, and is sent; the entity tag of an answer makes the next one empty."""
    await visit.method("Kiosk_GetItem_2")
    await visit.fill("name", "one")
    async with visit.page.expect_response("**/v1/items/one") as first:
        await visit.press("Call")
    tag = (await first.value).headers["etag"]
    await visit.fill("If-None-Match", tag)
    async with visit.page.expect_response("**/v1/items/one") as again:
        await visit.press("Call")
    assert (await again.value).status == 304
    assert f"-H 'if-none-match: {tag}'" in await visit.command("curl")


async def test_a_stream_is_shown_as_it_comes_and_stopped(visit: Visit) -> None:
    """Messages appear while the call goes on; the stop button cancels it on the server."""
    await visit.method("Kiosk_Watch")
    await visit.fill("count", "3")
    await visit.page.get_by_label("hang", exact=True).select_option(label="true")
    await visit.press("Call")
    await expect(visit.page.get_by_label("Messages").get_by_role("listitem")).to_have_count(3)
    assert not visit.site.kiosk.cancelled.is_set()
    await visit.press("Stop")
    await visit.status("Stopped")
    await asyncio.wait_for(visit.site.kiosk.cancelled.wait(), 10)


@pytest.mark.parametrize("how", ["HTTP, lines", "HTTP, events", "WebSocket"])
async def test_a_failure_behind_messages_is_told(visit: Visit, how: str) -> None:
    """In each format the error is the last thing shown."""
    await visit.method("Kiosk_Watch")
    await visit.fill("count", "2")
    await visit.page.get_by_label("fail", exact=True).select_option(label="true")
    await visit.page.get_by_label("How").select_option(label=how)
    await visit.press("Connect" if how == "WebSocket" else "Call")
    await visit.status("ABORTED (4010)" if how == "WebSocket" else "200 OK, then ABORTED")
    messages = visit.page.get_by_label("Messages").get_by_role("listitem")
    await expect(messages.last).to_contain_text("sold out")
    assert await messages.filter(has_text="item ").count() == 2


async def test_several_requests_are_sent_as_a_stream(visit: Visit) -> None:
    """Each message has a form, and all of them are one call."""
    await visit.method("Kiosk_Collect")
    await visit.fill("rack", "r1")
    await visit.fill("text", "one")
    await visit.press("+ message")
    await visit.page.get_by_label("text", exact=True).nth(1).fill("two")
    await visit.press("Call")
    await visit.status("200 OK")
    answer = await visit.answer()
    assert answer == {"count": 2, "texts": ["r1: one", "r1: two"]}
    assert '-d \'{"text":"one","rack":"r1"} {"text":"two","rack":"r1"}\'' in await visit.command("grpcurl")


async def test_a_conversation_over_websocket(visit: Visit) -> None:
    """Messages go one by one, are answered between, and the end is said."""
    await visit.method("Kiosk_Chat")
    await visit.fill("rack", "r1")
    await visit.press("Connect")
    await visit.status("Open")
    messages = visit.page.get_by_label("Messages").get_by_role("listitem")
    for number, word in enumerate(("hello", "again"), 1):
        await visit.fill("text", word)
        await visit.press("Send message")
        await expect(messages).to_have_count(2 * number)
        await expect(messages.last).to_contain_text(word.upper())
    await visit.press("End requests")
    await visit.status("OK (1000)")


@pytest.mark.parametrize("visit", [{"viewport": {"width": 360, "height": 740}, "color_scheme": "dark"}], indirect=True)
async def test_a_narrow_dark_screen(visit: Visit) -> None:
    """The list is behind a button, nothing is wider than the screen, and the page is dark."""
    await visit.method("Kiosk_Echo")
    await visit.press("Example")
    assert await visit.page.evaluate("document.documentElement.scrollWidth") == 360
    assert await visit.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(21, 22, 26)"
    await visit.press("Methods")
    await visit.page.get_by_role("link", name="GetItem").click()
    await expect(visit.page.get_by_role("heading", level=1)).to_have_text("GetItem")
    await expect(visit.page.get_by_role("link", name="GetItem")).to_be_hidden()


async def test_the_page_works_with_the_keyboard(visit: Visit) -> None:
    """From the list to an answer without a pointer."""
    await visit.home()
    await visit.page.keyboard.press("/")
    await visit.page.keyboard.type("FindItem")
    await visit.page.keyboard.press("Tab")
    await visit.page.keyboard.press("Tab")
    await visit.page.keyboard.press("Enter")
    await expect(visit.page.get_by_role("heading", level=1)).to_contain_text("FindItem")
    for _ in range(4):  # over JSON, Example and Clear to the first field
        await visit.page.keyboard.press("Tab")
    await visit.page.keyboard.type("racks/1")
    await visit.page.keyboard.press("Control+Enter")
    await visit.status("200 OK")
    await expect(visit.page.locator(".answer pre")).to_contain_text("racks/1")


def test_the_page_brings_everything_along() -> None:
    """One file that names no other host, with a policy that lets nothing else in."""
    text = page("../api.json").decode()
    assert 'data-openapi="../api.json"' in text
    assert "{{" not in text.replace("${{", "")
    assert "//" not in text.replace("://", "").split("<script>")[0]
    policy = dict(page_headers())[b"content-security-policy"].decode()
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
